//! The containerd that runs: whether it has read what its configuration says now.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, clock_gettime};

use super::finding::Finding;

/// The file that containerd reads where its command line names none, as `containerd config dump` does.
const CONFIGURATION: &str = "/etc/containerd/config.toml";

/// `USER_HZ`, the unit of times in /proc/PID/stat (Linux, include/asm-generic/param.h; x86 has no other).
const TICKS_PER_SECOND: u64 = 100;

/// containerd does not tell by its command what it has loaded, so the times of the process and of the file have to.
pub(super) fn containerd() -> Finding {
    judge(containerds_age(Path::new("/proc")), file_age(Path::new(CONFIGURATION)))
}

/// `process`: since when containerd runs, if it does. `file`: since when its configuration is as it is, if there is one.
fn judge(process: Option<Duration>, file: Option<Duration>) -> Finding {
    const SUBJECT: &str = "containerd runs";
    match (process, file) {
        (None, _) => Finding::doubtful(
            SUBJECT,
            format!("no process named containerd reads {CONFIGURATION}"),
            "systemctl start containerd, or look at the configuration that yours reads",
        ),
        (Some(process), Some(file)) if file < process => Finding::doubtful(
            SUBJECT,
            format!("{CONFIGURATION} has changed since it was started: it may not know the handler"),
            "systemctl restart containerd (pods go on)",
        ),
        (Some(_), _) => Finding::good(SUBJECT, "since the last change of its configuration"),
    }
}

fn file_age(path: &Path) -> Option<Duration> {
    // One from the future is as new as can be.
    Some(SystemTime::now().duration_since(fs::metadata(path).ok()?.modified().ok()?).unwrap_or_default())
}

/// How long the containerd runs that reads [`CONFIGURATION`]: Docker and others may have their own beside it, and containers
/// as well.
fn containerds_age(proc: &Path) -> Option<Duration> {
    let processes = fs::read_dir(proc).ok()?.flatten().map(|entry| entry.path());
    let is_the_hosts = |process: &PathBuf| {
        is_containerd(process).unwrap_or_default() && !is_in_a_container(process, &proc.join("self"))
    };
    processes.filter(is_the_hosts).find_map(|process| age(&process))
}

fn is_containerd(process: &Path) -> io::Result<bool> {
    if fs::read(process.join("comm"))? != b"containerd\n" {
        return Ok(false);
    }
    Ok(configuration_of(&fs::read(process.join("cmdline"))?) == Path::new(CONFIGURATION))
}

/// Whether its pid namespace is another one than ours, as far as we may see.
fn is_in_a_container(process: &Path, ours: &Path) -> bool {
    let [its, ours] = [process, ours].map(|process| fs::read_link(process.join("ns/pid")));
    matches!((its, ours), (Ok(its), Ok(ours)) if its != ours)
}

/// The configuration file that a command line names: `--config FILE`, `--config=FILE` or `-c FILE`.
fn configuration_of(command_line: &[u8]) -> PathBuf {
    let mut arguments = command_line.split(|byte| *byte == 0);
    while let Some(argument) = arguments.next() {
        let value = match argument {
            b"--config" | b"-config" | b"-c" => arguments.next(),
            _ => argument.strip_prefix(b"--config=").or_else(|| argument.strip_prefix(b"-c=")),
        };
        if let Some(value) = value {
            return OsStr::from_bytes(value).into();
        }
    }
    CONFIGURATION.into()
}

fn age(process: &Path) -> Option<Duration> {
    let start = start(&fs::read_to_string(process.join("stat")).ok()?)?;
    let now = Duration::try_from(clock_gettime(ClockId::Boottime)).ok()?;
    Some(now.saturating_sub(start))
}

/// When a process started, from the machine's boot on: field 22 of /proc/PID/stat, in ticks (`proc_pid_stat(5)`).
fn start(stat: &str) -> Option<Duration> {
    // The name, field 2, may have blanks and brackets.
    let (_, fields) = stat.rsplit_once(") ")?;
    let ticks: u64 = fields.split(' ').nth(22 - 3)?.parse().ok()?;
    Some(Duration::from_millis(ticks.saturating_mul(1000 / TICKS_PER_SECOND)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::super::finding::Verdict;
    use super::*;

    #[test]
    fn a_containerd_that_is_older_than_its_configuration_is_to_be_started_again() {
        let [young, old] = [Duration::from_secs(1), Duration::from_secs(2)];
        assert_eq!(judge(Some(young), Some(old)).verdict, Verdict::Good);
        assert_eq!(
            judge(Some(young), None).verdict,
            Verdict::Good,
            "without a file there is nothing to know"
        );
        let stale = judge(Some(old), Some(young));
        assert!(
            stale.verdict == Verdict::Doubtful && stale.to_string().contains("restart containerd"),
            "{stale}"
        );
        assert_eq!(judge(None, Some(old)).verdict, Verdict::Doubtful);
    }

    #[test]
    fn the_configuration_is_the_one_that_the_command_line_names() {
        for line in
            ["containerd\0--config\0/a\0", "/usr/bin/containerd\0-c\0/a\0", "containerd\0--config=/a\0"]
        {
            assert_eq!(configuration_of(line.as_bytes()), Path::new("/a"), "{line:?}");
        }
        for line in ["/usr/bin/containerd\0", "containerd\0--log-level\0debug\0"] {
            assert_eq!(configuration_of(line.as_bytes()), Path::new(CONFIGURATION), "{line:?}");
        }
    }

    #[test]
    fn the_hosts_containerd_is_told_from_those_of_others() {
        let proc = tempfile::tempdir().unwrap();
        let add = |number: &str, name: &str, command_line: &str, namespace: &str| {
            let process = proc.path().join(number);
            fs::create_dir_all(process.join("ns")).unwrap();
            fs::write(process.join("comm"), format!("{name}\n")).unwrap();
            fs::write(process.join("cmdline"), command_line).unwrap();
            fs::write(process.join("stat"), "7 (x) S 1 7 7 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 0 0 0").unwrap();
            symlink(namespace, process.join("ns/pid")).unwrap();
        };
        add("self", "saya", "saya\0check\0", "pid:[1]");
        add("2", "containerd-shim", "containerd-shim\0", "pid:[1]");
        add(
            "3",
            "containerd",
            "containerd\0--config\0/var/run/docker/containerd/containerd.toml\0",
            "pid:[1]",
        );
        add("4", "containerd", "containerd\0", "pid:[2]");
        assert_eq!(containerds_age(proc.path()), None);
        add("5", "containerd", "/usr/bin/containerd\0", "pid:[1]");
        assert!(containerds_age(proc.path()).is_some());
    }

    #[test]
    fn a_process_is_as_old_as_the_kernel_says() {
        let now = || Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap();
        let before = now();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = Path::new("/proc").join(child.id().to_string());
        let its = age(&process).unwrap();
        let passed = now() - before;
        let ours = age(Path::new("/proc/self")).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        // Its start is told in whole ticks.
        let tick = Duration::from_millis(1000 / TICKS_PER_SECOND);
        assert!(its <= passed + tick, "{its:?} of {passed:?}");
        assert!(its <= ours, "it is older than its parent: {its:?} and {ours:?}");
    }

    #[test]
    fn a_start_is_read_behind_a_name_of_any_kind() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194304 0 0 0 0 0 0 0 0 20 0 1 0 12345 0 0";
        assert_eq!(start(stat), Some(Duration::from_millis(123_450)));
        assert_eq!(start("7 (a) S"), None);
    }
}
