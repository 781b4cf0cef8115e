//! Taking a cgroup away whose last members are about to leave it.
//!
//! That a VMM has been waited for does not mean that its cgroup is empty: KVM's own threads are in it (the recovery of
//! large pages, until the machine is destroyed), and newer kernels take a process out after it was reaped. So whoever
//! finds somebody there waits for the kernel to say that they are gone.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// How long the last members may take to leave. containerd gives `delete` five seconds for all it does.
const PATIENCE: Duration = Duration::from_secs(2);

/// Removes a cgroup once nobody is in it. It is fine if it is not there.
///
/// # Errors
/// Somebody stays in it, or whatever else rmdir(2) says.
pub(crate) fn remove(directory: &Path) -> io::Result<()> {
    let removed = fs::remove_dir(directory).or_else(|error| match error.kind() {
        ErrorKind::ResourceBusy if wait_empty(directory, Instant::now() + PATIENCE)? => {
            fs::remove_dir(directory)
        }
        _ => Err(error),
    });
    match removed {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Whether the cgroup was seen empty before the deadline.
fn wait_empty(directory: &Path, deadline: Instant) -> io::Result<bool> {
    match File::open(directory.join("cgroup.events")) {
        Ok(events) => unpopulated(events, deadline),
        Err(error) if error.kind() == ErrorKind::NotFound => members_ended(directory, deadline),
        Err(error) => Err(error),
    }
}

/// v2 says when its `populated` changes: POLLPRI (Documentation/admin-guide/cgroup-v2.rst, "[Un]populated Notification").
fn unpopulated(mut events: File, deadline: Instant) -> io::Result<bool> {
    loop {
        let mut text = String::new();
        events.rewind()?;
        events.read_to_string(&mut text)?;
        if text.lines().any(|line| line == "populated 0") {
            return Ok(true);
        }
        if !wait(PollFd::new(&events, PollFlags::PRI), deadline)? {
            return Ok(false);
        }
    }
}

/// v1 has no such file, but its members are processes, whose end can be waited for.
fn members_ended(directory: &Path, deadline: Instant) -> io::Result<bool> {
    let members = fs::read_to_string(directory.join("cgroup.procs"))?;
    for member in members.lines().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)) {
        // Who is gone by now need not be waited for.
        let Ok(process) = pidfd_open(member, PidfdFlags::empty()) else { continue };
        if !wait(PollFd::new(&process, PollFlags::IN), deadline)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether what is waited for came before the deadline.
fn wait(awaited: PollFd<'_>, deadline: Instant) -> io::Result<bool> {
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(left.subsec_nanos()),
    };
    let mut awaited = [awaited];
    Ok(rustix::io::retry_on_intr(|| poll(&mut awaited, Some(&timeout)))? > 0)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::process::{Child, Command};

    use super::*;

    /// Where cgroups are mounted: v2 alone, v2 beside v1, and one of v1's hierarchies.
    const MOUNTS: [&str; 3] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/pids"];

    /// A cgroup in each of this machine's versions, with a process in it.
    fn inhabited(name: &str) -> Vec<(PathBuf, Child)> {
        let made = MOUNTS.iter().filter_map(|mount| {
            let directory = Path::new(mount).join(format!("saya-test-{}-{name}", std::process::id()));
            fs::create_dir(&directory).ok()?;
            if !directory.join("cgroup.procs").exists() {
                fs::remove_dir(&directory).unwrap();
                return None;
            }
            let child = Command::new("sleep").arg("1000").spawn().unwrap();
            fs::write(directory.join("cgroup.procs"), child.id().to_string()).unwrap();
            Some((directory, child))
        });
        let made: Vec<_> = made.collect();
        if made.is_empty() {
            eprintln!("skipped: cgroups cannot be made here");
        }
        made
    }

    #[test]
    fn a_cgroup_is_removed_once_its_last_member_has_left() {
        for (directory, mut child) in inhabited("last") {
            assert!(
                !wait_empty(&directory, Instant::now()).unwrap(),
                "somebody is in {}",
                directory.display()
            );
            let ending = std::thread::spawn(move || {
                child.kill().unwrap();
                child.wait().unwrap();
            });
            assert!(wait_empty(&directory, Instant::now() + Duration::from_secs(600)).unwrap());
            remove(&directory).unwrap();
            assert!(!directory.exists());
            ending.join().unwrap();
            remove(&directory).expect("it is gone already");
        }
    }

    #[test]
    fn a_cgroup_with_others_below_it_stays() {
        for (directory, mut child) in inhabited("below") {
            let below = directory.join("below");
            fs::create_dir(&below).unwrap();
            child.kill().unwrap();
            child.wait().unwrap();
            let error = remove(&directory).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ResourceBusy);
            fs::remove_dir(&below).unwrap();
            remove(&directory).unwrap();
        }
    }
}
