//! Who runs a pod, written down for whoever has to clean up after a killed shim.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::{fs, io};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// A process, told from a later one with the same pid by when it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    /// Its pid.
    pub(crate) pid: u32,
    /// When it started, in clock ticks since boot (proc_pid_stat(5), starttime).
    pub(crate) start_time: u64,
}

/// The processes of a pod and what they hold on the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The shim.
    pub(crate) shim: Option<Process>,
    /// The VMM.
    pub(crate) vmm: Option<Process>,
    /// cgroup directories that the shim made.
    #[serde(default)]
    pub(crate) cgroups: Vec<PathBuf>,
    /// The network namespace whose interfaces the guest has.
    #[serde(default)]
    pub(crate) network_namespace: Option<PathBuf>,
    /// The numbers of its interfaces that are tied to taps, or were about to be.
    #[serde(default)]
    pub(crate) interfaces: Vec<u32>,
    /// Whether the shim is taking all of this away by itself.
    #[serde(default)]
    pub(crate) ending: bool,
}

impl Record {
    /// Writes the record, whole or not at all.
    ///
    /// # Errors
    /// What the system returned.
    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        let new = path.with_extension("json.new");
        fs::write(&new, serde_json::to_vec(self)?)?;
        fs::rename(&new, path)
    }

    /// Changes the record at `path`.
    ///
    /// # Errors
    /// What the system returned; `NotFound` also where the record is damaged.
    pub(crate) fn change(path: &Path, change: impl FnOnce(&mut Self)) -> io::Result<()> {
        let mut record = Self::read(path).ok_or(io::ErrorKind::NotFound)?;
        change(&mut record);
        record.write(path)
    }

    /// Reads the record; `None` where there is none or it is damaged.
    pub(crate) fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }
}

impl Process {
    /// The running process with this pid.
    ///
    /// # Errors
    /// No such process.
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        Ok(Self { pid, start_time: start_time(pid)? })
    }

    /// Waits up to `patience` for the process to end by itself, and answers whether it has.
    pub(crate) fn ends_within(&self, patience: std::time::Duration) -> bool {
        self.open().is_none_or(|handle| wait_ended(&handle, patience))
    }

    /// Waits up to `patience` for the process to end by itself, then kills it and waits for that. `false` when it is
    /// still there, for instance because it is stuck in the kernel.
    pub(crate) fn end(&self, patience: std::time::Duration) -> bool {
        let Some(handle) = self.open() else { return true };
        if wait_ended(&handle, patience) {
            return true;
        }
        // A process that is gone by now is what was wanted.
        let _ = pidfd_send_signal(&handle, Signal::KILL);
        wait_ended(&handle, std::time::Duration::from_secs(3))
    }

    /// Whether the process runs.
    pub(crate) fn is_alive(&self) -> bool {
        !self.ends_within(std::time::Duration::ZERO)
    }

    /// A handle to the process; `None` when it is gone, even if its pid is another's by now.
    fn open(&self) -> Option<OwnedFd> {
        let pid = Pid::from_raw(i32::try_from(self.pid).ok()?)?;
        let handle = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // Read after the handle was made: it cannot change under the handle any more.
        (start_time(self.pid).ok()? == self.start_time).then_some(handle)
    }
}

fn wait_ended(handle: &OwnedFd, patience: std::time::Duration) -> bool {
    let timeout = Timespec {
        tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(patience.subsec_nanos()),
    };
    let mut waited = [PollFd::new(handle, PollFlags::IN)];
    matches!(rustix::io::retry_on_intr(|| poll(&mut waited, Some(&timeout))), Ok(1))
}

/// Field 22 of `/proc/<pid>/stat`; the second field, the name in parentheses, may hold anything.
fn start_time(pid: u32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    stat.rsplit_once(')')
        .and_then(|(_, fields)| fields.split_whitespace().nth(19))
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat is not of the known form")))
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_process_that_does_not_end_by_itself_is_killed() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let process = Process::of(child.id()).unwrap();
        assert!(process.is_alive());
        let reaper = std::thread::spawn(move || child.wait().unwrap());
        assert!(process.end(Duration::ZERO));
        reaper.join().unwrap();
        assert!(!process.is_alive());
    }

    #[test]
    fn another_process_with_the_same_pid_is_left_alone() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let other = Process { pid: child.id(), start_time: 1 };
        assert!(other.end(Duration::ZERO), "it counts as ended");
        assert!(child.try_wait().unwrap().is_none(), "and the process lives");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_record_is_read_as_it_was_written_and_a_damaged_one_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pod.json");
        assert_eq!(Record::read(&path), None);
        let record = Record { shim: Some(Process { pid: 1, start_time: 2 }), ..Record::default() };
        record.write(&path).unwrap();
        assert_eq!(Record::read(&path), Some(record));
        fs::write(&path, "{").unwrap();
        assert_eq!(Record::read(&path), None);
    }
}
