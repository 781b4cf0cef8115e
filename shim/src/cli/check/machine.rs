//! What the host's machine and kernel have.

use std::fs;

use saya_vmm::kvm::{self, KvmError};

use crate::cgroup;
use crate::config::Config;
use crate::network::{self, NetworkError};

use super::finding::Finding;

/// Modules of Linux that use the processor's own virtualisation, with its name.
const HARDWARE: [(&str, &str); 2] = [("kvm_intel", "Intel VT-x"), ("kvm_amd", "AMD-V")];

pub(super) fn root() -> Finding {
    const SUBJECT: &str = "user";
    if nix::unistd::geteuid().is_root() {
        Finding::good(SUBJECT, "root")
    } else {
        Finding::doubtful(SUBJECT, "not root: what only root can see was not looked at", "run it as root")
    }
}

pub(super) fn kvm() -> Finding {
    let module = HARDWARE
        .into_iter()
        .find(|(module, _)| fs::exists(format!("/sys/module/{module}")).unwrap_or_default());
    judge_kvm(module.map(|(_, name)| name), kvm::open().map(drop))
}

fn judge_kvm(hardware: Option<&str>, opened: Result<(), KvmError>) -> Finding {
    const SUBJECT: &str = "KVM";
    match (opened, hardware) {
        (Err(error), _) => {
            Finding::missing(SUBJECT, error.to_string(), "see above: pods are virtual machines")
        }
        (Ok(()), Some(name)) => Finding::good(SUBJECT, format!("/dev/kvm, by {name}")),
        (Ok(()), None) => Finding::missing(
            SUBJECT,
            "/dev/kvm opens, but neither kvm_intel nor kvm_amd is behind it: Linux may not boot on it",
            "use a host with hardware or nested virtualisation; to try Saya on this one: cargo xtask lab",
        ),
    }
}

/// The kernel whose mount_setattr(2) the shim's mounts are made with.
const OLDEST_KERNEL: (u32, u32) = (5, 12);

pub(super) fn kernel() -> Finding {
    judge_kernel(&rustix::system::uname().release().to_string_lossy())
}

fn judge_kernel(release: &str) -> Finding {
    const SUBJECT: &str = "host kernel";
    let mut numbers = release.split(['.', '-', '+']).map_while(|number| number.parse().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) < OLDEST_KERNEL => Finding::missing(
            SUBJECT,
            release,
            format!("use Linux {}.{} or later", OLDEST_KERNEL.0, OLDEST_KERNEL.1),
        ),
        (Some(_), Some(_)) => Finding::good(SUBJECT, release),
        _ => Finding::doubtful(SUBJECT, format!("{release}: no version of Linux"), "use Linux"),
    }
}

pub(super) fn memory(config: &Config) -> Finding {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    judge_memory(available_mib(&meminfo), config.memory)
}

/// `MemAvailable` in MiB (proc(5)).
fn available_mib(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib / 1024)
}

fn judge_memory(available: Option<u64>, pod: u64) -> Finding {
    const SUBJECT: &str = "memory";
    match available {
        None => Finding::doubtful(SUBJECT, "/proc/meminfo has no MemAvailable", "is /proc mounted?"),
        Some(available) if available < pod => Finding::doubtful(
            SUBJECT,
            format!("{available} MiB available, and a pod without a limit gets {pod} MiB"),
            "set `memory` lower, or give pods memory limits",
        ),
        Some(available) => {
            Finding::good(SUBJECT, format!("{available} MiB available; a pod without a limit gets {pod} MiB"))
        }
    }
}

/// Which memory the kernel gives large pages (Linux, Documentation/admin-guide/mm/transhuge.rst). The VMM asks for them.
const LARGE_PAGES: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

pub(super) fn large_pages() -> Finding {
    judge_large_pages(&fs::read_to_string(LARGE_PAGES).unwrap_or_default())
}

/// `setting`: all the values that are possible, the present one in brackets.
fn judge_large_pages(setting: &str) -> Finding {
    const SUBJECT: &str = "large pages";
    let chosen = setting.split_whitespace().find_map(|value| value.strip_prefix('[')?.strip_suffix(']'));
    match chosen {
        None => Finding::good(SUBJECT, "the kernel has none to give"),
        Some("never") => Finding::improvable(
            SUBJECT,
            "none",
            format!("echo madvise > {LARGE_PAGES} gives them to guests: fewer page faults, a quicker start"),
        ),
        Some(chosen) => Finding::good(SUBJECT, format!("for guest memory ({chosen})")),
    }
}

/// The controllers by which a pod's cgroup bounds what its shim and its VMM may take.
const CONTROLLERS: [&str; 2] = ["memory", "pids"];

pub(super) fn cgroups() -> Finding {
    if cgroup::is_unified() {
        let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
        return judge_cgroups("v2", controllers.split_whitespace());
    }
    let hierarchies = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let separate: Vec<&str> = hierarchies.lines().filter_map(controllers_of_v1).collect();
    if separate.is_empty() {
        return Finding::doubtful(
            CGROUPS,
            "no hierarchy is mounted at /sys/fs/cgroup",
            "mount cgroup2 there, as systemd does",
        );
    }
    let controllers = separate.iter().flat_map(|names| names.split(','));
    judge_cgroups("v1: pods are placed in each of its hierarchies", controllers)
}

const CGROUPS: &str = "cgroups";

/// Those in a line `id:controllers:path` of `/proc/self/cgroup` (cgroups(7)), where it is not v2's.
fn controllers_of_v1(line: &str) -> Option<&str> {
    let (id, rest) = line.split_once(':')?;
    (id != "0").then(|| rest.split(':').next())?
}

fn judge_cgroups<'a>(version: &str, controllers: impl Iterator<Item = &'a str>) -> Finding {
    let there: Vec<&str> = controllers.collect();
    let missing: Vec<&str> = CONTROLLERS.into_iter().filter(|name| !there.contains(name)).collect();
    if missing.is_empty() {
        return Finding::good(CGROUPS, version);
    }
    let parameters: Vec<String> = missing.iter().map(|name| format!("cgroup_enable={name}")).collect();
    Finding::doubtful(
        CGROUPS,
        format!("{version}, without {}: what a pod takes of the host is not limited", missing.join(" and ")),
        format!("boot the host with {} (and without cgroup_disable)", parameters.join(" ")),
    )
}

pub(super) fn overlay() -> Finding {
    judge_overlay(&fs::read_to_string("/proc/filesystems").unwrap_or_default())
}

/// `known`: what `/proc/filesystems` lists.
fn judge_overlay(known: &str) -> Finding {
    const SUBJECT: &str = "overlayfs";
    if known.lines().any(|line| line.split_whitespace().last() == Some("overlay")) {
        return Finding::good(SUBJECT, "the kernel has it");
    }
    Finding::doubtful(
        SUBJECT,
        "the kernel does not list it (it may be a module that is not loaded yet)",
        "modprobe overlay, or have containerd use its native snapshotter",
    )
}

pub(super) fn network() -> Finding {
    judge_network(network::probe())
}

fn judge_network(tied: Result<(), NetworkError>) -> Finding {
    const SUBJECT: &str = "network";
    match tied {
        Ok(()) => Finding::good(SUBJECT, "taps and tc redirects work"),
        Err(error) => Finding::doubtful(
            SUBJECT,
            format!("a tap could not be tied to an interface: {error}"),
            "modprobe tun sch_ingress cls_u32 act_mirred; without them only pods without a network run",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    #[test]
    fn a_kvm_that_is_not_the_processors_is_told_apart() {
        assert_eq!(judge_kvm(Some("AMD-V"), Ok(())).verdict, Verdict::Good);
        assert_eq!(judge_kvm(None, Ok(())).verdict, Verdict::Missing);
        let error = KvmError::Missing { path: "/dev/kvm".into() };
        let missing = judge_kvm(None, Err(error));
        assert!(missing.verdict == Verdict::Missing && missing.found.contains("kvm_intel"), "{missing}");
    }

    #[test]
    fn a_kernel_is_judged_by_its_version_however_its_distribution_writes_it() {
        assert_eq!(judge_kernel("6.1.0-56-amd64").verdict, Verdict::Good);
        assert_eq!(judge_kernel("5.12+").verdict, Verdict::Good);
        assert_eq!(judge_kernel("5.4.0-200-generic").verdict, Verdict::Missing);
        assert_eq!(judge_kernel("what").verdict, Verdict::Doubtful);
    }

    #[test]
    fn cgroups_that_cannot_limit_a_pod_are_told_with_what_gives_them_back() {
        let judge = |controllers: &'static str| judge_cgroups("v2", controllers.split_whitespace());
        assert_eq!(judge("cpuset cpu io memory hugetlb pids rdma misc\n"), Finding::good("cgroups", "v2"));
        let doubtful = judge("cpuset cpu io pids");
        assert_eq!(doubtful.verdict, Verdict::Doubtful);
        assert!(doubtful.found.contains("without memory:"), "{doubtful}");
        assert!(doubtful.remedy.is_some_and(|remedy| remedy.contains("cgroup_enable=memory (")));
        assert!(judge("").found.contains("without memory and pids"));
        // What begins like a controller is another one.
        assert_eq!(judge("memory_recursiveprot pids").verdict, Verdict::Doubtful);
    }

    #[test]
    fn the_controllers_of_v1_are_those_of_its_hierarchies() {
        let lines = ["4:cpu,cpuacct:/a", "1:name=systemd:/b", "0::/c", "nonsense"].map(controllers_of_v1);
        assert_eq!(lines, [Some("cpu,cpuacct"), Some("name=systemd"), None, None]);
    }

    #[test]
    fn an_overlayfs_that_may_be_a_module_is_a_doubt() {
        assert_eq!(judge_overlay("nodev\ttmpfs\n\text4\nnodev\toverlay\n").verdict, Verdict::Good);
        let doubtful = judge_overlay("nodev\toverlayfs2\n\text4\n");
        assert!(doubtful.verdict == Verdict::Doubtful && doubtful.remedy.is_some(), "{doubtful}");
    }

    #[test]
    fn large_pages_that_guests_could_have_are_a_hint_and_no_doubt() {
        let hint = judge_large_pages("always madvise [never]\n");
        assert!(hint.verdict == Verdict::Good && hint.remedy.is_some(), "{hint}");
        let good = judge_large_pages("always [madvise] never\n");
        assert!(good.verdict == Verdict::Good && good.remedy.is_none(), "{good}");
        assert_eq!(judge_large_pages("").verdict, Verdict::Good);
    }

    #[test]
    fn memory_is_compared_in_mib() {
        assert_eq!(available_mib("MemTotal: 9 kB\nMemAvailable:    2097152 kB\n"), Some(2048));
        assert_eq!(judge_memory(Some(2048), 512).verdict, Verdict::Good);
        assert_eq!(judge_memory(Some(511), 512).verdict, Verdict::Doubtful);
        assert_eq!(judge_memory(available_mib(""), 512).verdict, Verdict::Doubtful);
    }
}
