//! What the shim and the VMM of a running container may do on the host. These are about ours: of other runtimes nothing is
//! asked.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

use super::Test;
use super::context::{BUSYBOX, Context, bind, ctr};
use super::host_mount::HostMount;
use super::task_api::shim_of;

pub(super) const TESTS: &[Test] = &[
    Test { name: "the_vmm_of_a_running_container_is_jailed", check: jailed },
    Test { name: "the_shim_of_a_running_container_has_the_rights_that_it_uses", check: shim },
    Test { name: "what_is_mounted_later_reaches_the_jail_with_its_flags", check: later_mounts },
];

/// `CAP_CHOWN`, `DAC_OVERRIDE`, `FOWNER`, `FSETID`, `SETGID`, `SETUID`, `MKNOD`, `SETFCAP` (linux/capability.h).
const FILES: u64 = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 27 | 1 << 31;

fn jailed(context: &Context) -> anyhow::Result<()> {
    context.for_ours_alone("it has no VMM")?;
    let container = context.start(BUSYBOX, "jailed", &[], &["sleep", "3600"])?;
    let vmm = vmm_of("jailed")?;
    let mut names = Vec::new();
    for thread in fs::read_dir(vmm.join("task"))? {
        let thread = thread?.path();
        let name = fs::read_to_string(thread.join("comm"))?.trim().to_owned();
        let status = fs::read_to_string(thread.join("status"))?;
        let expected = if name == "fs" { FILES } else { 0 };
        for (field, expected) in [("CapEff", expected), ("CapPrm", expected), ("CapBnd", 0), ("CapInh", 0)] {
            let found = u64::from_str_radix(value(&status, field)?, 16)?;
            ensure!(found == expected, "thread {name}: {field} is {found:x} and not {expected:x}");
        }
        // A filter (2), by seccomp(2)'s mode.
        ensure!(value(&status, "Seccomp")? == "2", "thread {name} has no filter");
        ensure!(value(&status, "NoNewPrivs")? == "1", "thread {name} may gain privileges");
        names.push(name);
    }
    for expected in ["fs", "vsock", "vcpu0"] {
        ensure!(names.iter().any(|name| name == expected), "no thread {expected} among {names:?}");
    }
    for namespace in ["mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        let [theirs, ours] =
            [&vmm, Path::new("/proc/self")].map(|process| fs::read_link(process.join("ns").join(namespace)));
        ensure!(theirs? != ours?, "the VMM is in the host's {namespace} namespace");
    }
    limited(&vmm)?;
    ensure!(fs::read(vmm.join("environ"))?.is_empty(), "the VMM has an environment");
    resource_limits(&fs::read_to_string(vmm.join("limits"))?)?;
    descriptors(&vmm)?;
    let interfaces = fs::read_to_string(vmm.join("net/dev"))?;
    ensure!(interfaces.lines().skip(2).all(|line| line.trim().starts_with("lo:")), "{interfaces}");
    container.remove()
}

/// What the jail sets (getrlimit(2)), as `/proc/<pid>/limits` has it: soft and hard limit.
fn resource_limits(limits: &str) -> anyhow::Result<()> {
    for (name, most) in [
        ("Max core file size", 1),
        ("Max msgqueue size", 0),
        ("Max realtime priority", 0),
        ("Max open files", 96 * 1024),
    ] {
        let line = limits.lines().find_map(|line| line.strip_prefix(name));
        let mut values = line.with_context(|| format!("no {name}: {limits}"))?.split_whitespace();
        for which in ["soft", "hard"] {
            let value: u64 = values.next().unwrap_or_default().parse().with_context(|| limits.to_owned())?;
            ensure!(value <= most, "the {which} limit {name} is {value}");
        }
    }
    Ok(())
}

/// What the VMM has open is its machine's, or lies in its share: nothing of containerd's, of the shim's or of another pod. Its descriptors of
/// the share, and the one of its own descriptors, have paths that begin at its root.
fn descriptors(vmm: &Path) -> anyhow::Result<()> {
    const MACHINE: &[&str] = &["anon_inode:", "socket:", "/dev/null", "/dev/kvm", "/dev/net/tun"];
    const SHARE: &[&str] = &["/private/jailed", "/live/"];
    let mut strange = Vec::new();
    for entry in fs::read_dir(vmm.join("fd"))? {
        // One of a file that the guest has not used for long may be closed meanwhile.
        let entry = entry?;
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        let target = target.to_string_lossy().into_owned();
        // What it writes to standard error the shim reads.
        let is_standard_error = entry.file_name() == "2" && target.starts_with("pipe:");
        // The host's root directory has the same path, and what is in it.
        let is_root = target == "/" && !entry.path().join("etc/passwd").exists();
        let known = MACHINE.iter().chain(SHARE).any(|known| target.starts_with(known))
            || ["/private", "/live"].contains(&target.as_str());
        if !known && !is_root && !is_standard_error {
            strange.push(target);
        }
    }
    ensure!(strange.is_empty(), "the VMM has open: {strange:?}");
    Ok(())
}

/// The cgroup of the VMM gives it what its guest may take and not much more, whatever the containers' limits are.
fn limited(vmm: &Path) -> anyhow::Result<()> {
    let membership = fs::read_to_string(vmm.join("cgroup"))?;
    let limit = |controller: &str, files: [&str; 2]| -> anyhow::Result<u64> {
        let places = membership.lines().filter_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            (controllers.is_empty() || controllers.split(',').any(|name| name == controller))
                .then(|| Path::new("/sys/fs/cgroup").join(controllers).join(path.trim_start_matches('/')))
        });
        let mut found =
            places.flat_map(|place| files.map(|file| place.join(file))).filter(|file| file.exists());
        let file = found.next().with_context(|| format!("no limit of {controller}: {membership}"))?;
        let value = fs::read_to_string(&file)?;
        value.trim().parse().with_context(|| format!("{}: {value:?}", file.display()))
    };
    let memory = limit("memory", ["memory.max", "memory.limit_in_bytes"])?;
    ensure!((512 << 20..=2 << 30).contains(&memory), "the VMM may take {memory} bytes");
    let threads = limit("pids", ["pids.max", "pids.max"])?;
    ensure!(threads < 2048, "the VMM's cgroup may have {threads} threads");
    Ok(())
}

/// What [`FILES`] has, and `CAP_KILL`, `NET_ADMIN`, `SYS_PTRACE`, `SYS_ADMIN`.
const SHIM: u64 = FILES | 1 << 5 | 1 << 12 | 1 << 19 | 1 << 21;
/// `CAP_SYS_RESOURCE`, which a thread has in effect that sets an OOM score.
const AT_TIMES: u64 = 1 << 24;

fn shim(context: &Context) -> anyhow::Result<()> {
    context.for_ours_alone("it is our shim that gives rights up")?;
    let container = context.start(BUSYBOX, "rights", &[], &["sleep", "3600"])?;
    let shim = PathBuf::from(format!("/proc/{}", shim_of("rights")?.as_raw_nonzero()));
    for thread in fs::read_dir(shim.join("task"))? {
        let status = fs::read_to_string(thread?.path().join("status"))?;
        for (field, expected) in [("CapEff", SHIM), ("CapPrm", SHIM | AT_TIMES)] {
            let found = u64::from_str_radix(value(&status, field)?, 16)?;
            ensure!(found == expected, "the shim's {field} is {found:x} and not {expected:x}");
        }
        // Hooks and loggers are to have what they would have under any other runtime.
        let ours = fs::read_to_string("/proc/self/status")?;
        for field in ["CapBnd", "NoNewPrivs"] {
            ensure!(
                value(&status, field)? == value(&ours, field)?,
                "{field} of the shim's children: {status}"
            );
        }
    }
    container.remove()
}

fn later_mounts(context: &Context) -> anyhow::Result<()> {
    context.for_ours_alone("it has no VMM")?;
    let volume = context.scratch.join("volume");
    let _below = HostMount::tmpfs(&volume.join("below"))?;
    let read_only = bind(&volume, "/volume", "rbind:rro");
    let container = context.start(BUSYBOX, "mounted", &["--mount", &read_only], &["sleep", "3600"])?;
    let mounts = fs::read_to_string(vmm_of("mounted")?.join("mountinfo"))?;
    let places: Vec<(&str, &str)> = mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(4);
            Some((fields.next()?, fields.next()?))
        })
        .collect();
    for (place, flags) in &places {
        let share = *place == "/" || place.starts_with("/private/mounted/") || place.starts_with("/live/");
        ensure!(share, "{place} is not of the share");
        ensure!(flags.contains("nosuid") && flags.contains("nodev"), "{place} is mounted {flags}");
        ensure!(flags.starts_with("ro,") || place.ends_with("/rootfs"), "{place} is mounted {flags}");
    }
    ensure!(places.len() == 4, "{places:?}");
    container.remove()?;
    Ok(())
}

/// The VMM's directory in `/proc`: containerd knows a pod's processes by its pid.
pub(super) fn vmm_of(container: &str) -> anyhow::Result<PathBuf> {
    let tasks = ctr(["task", "list"])?;
    let line = tasks.lines().find(|line| line.split_whitespace().next() == Some(container));
    let pid = line.and_then(|line| line.split_whitespace().nth(1)).context("the container has no task")?;
    Ok(Path::new("/proc").join(pid))
}

/// A field of `/proc/<pid>/status`.
fn value<'a>(status: &'a str, field: &str) -> anyhow::Result<&'a str> {
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    Ok(line.with_context(|| format!("no {field} in the status"))?.trim())
}
