//! What the host lets the processes of a pod take, whatever its guest does.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::{fs, io};

use super::{CgroupError, at};

/// A mebibyte in bytes.
const MIB: u64 = 1 << 20;
/// What the shim and the VMM may take beside the guest's memory, in MiB: their own memory, what the kernel keeps for open files and
/// connections, and the host's pages of files that the guest reads and writes.
const BESIDE_THE_GUEST: u64 = 256;
/// What comes to that at most for a guest that has much memory and knows as many files as that can hold, in MiB.
const MOST_FOR_FILES: u64 = 1024;
/// How many threads there may be: those of the shim and the VMM, and of hooks and loggers for a while. The VMM's filters let it make none.
const THREADS: u64 = 1024;

/// The limits of a pod's cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Bytes.
    memory: u64,
    /// Processes and their threads.
    threads: u64,
}

/// A limit's name in messages, its value, and its file in cgroups of v2 and v1.
type Limit = (&'static str, u64, [&'static str; 2]);

impl Limits {
    /// The limits of a pod whose VM has so much memory, in MiB, and so many CPUs.
    pub(crate) fn of_vm(memory_mib: u64, vcpus: u32) -> Self {
        let beside = BESIDE_THE_GUEST.saturating_add(memory_mib.min(MOST_FOR_FILES));
        Self {
            memory: memory_mib.saturating_add(beside).saturating_mul(MIB),
            threads: THREADS.saturating_add(vcpus.into()),
        }
    }

    /// Sets them in a pod's directories, one with v2, one for each hierarchy with v1, and answers those that are set. What no directory has
    /// a file for is logged: nobody above has passed that controller on.
    ///
    /// # Errors
    /// The kernel's refusal, with the file.
    pub(super) fn set(self, directories: &[&Path]) -> Result<Vec<SetLimit>, CgroupError> {
        let limits: [Limit; 2] = [
            ("memory", self.memory, ["memory.max", "memory.limit_in_bytes"]),
            ("pids", self.threads, ["pids.max", "pids.max"]),
        ];
        let mut done = Vec::new();
        for (controller, value, files) in limits {
            let mut candidates =
                directories.iter().flat_map(|directory| files.map(|file| directory.join(file)));
            match candidates.find(|file| file.exists()) {
                Some(file) => {
                    let limit = SetLimit { file, value };
                    limit.write()?;
                    done.push(limit);
                }
                None => tracing::warn!(
                    controller,
                    value,
                    "the pod's cgroup has no such controller: no limit is set"
                ),
            }
        }
        Ok(done)
    }
}

/// A limit that a pod's cgroup has been given.
#[derive(Debug)]
pub(super) struct SetLimit {
    pub(super) file: PathBuf,
    value: u64,
}

impl SetLimit {
    /// Writes it into the kernel's file, which has to be there.
    pub(super) fn write(&self) -> Result<(), CgroupError> {
        let file = fs::OpenOptions::new().write(true).open(&self.file);
        file.and_then(|mut file| file.write_all(self.value.to_string().as_bytes())).map_err(at(&self.file))
    }

    /// Whether its controller has been taken away from the cgroup, and maybe been given back since: then the file is a new one.
    pub(super) fn is_lost(&self) -> bool {
        fs::read(&self.file).map_or(true, |value| value.trim_ascii() == b"max")
    }
}

/// Passes the controllers that a pod's cgroup may need on to the children of a cgroup of v2 (`cgroup.subtree_control`). It is fine if
/// that cannot be: [`Limits::set`] says so, and so does who would confine the pod to some CPUs.
pub(super) fn pass_controllers_on(parent: &Path) {
    let file = parent.join("cgroup.subtree_control");
    let Ok(there) = fs::read_to_string(&file) else { return };
    for controller in ["memory", "pids", "cpuset"] {
        if !there.split_whitespace().any(|name| name == controller)
            && let Err(error) = pass_on(&file, controller)
        {
            tracing::debug!(file = %file.display(), controller, %error, "the controller is not passed on");
        }
    }
}

fn pass_on(file: &Path, controller: &str) -> io::Result<()> {
    fs::write(file, format!("+{controller}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_may_take_its_guests_memory_and_a_bounded_part_beside_it() {
        let mebibytes = |memory| Limits::of_vm(memory, 1).memory / MIB;
        assert_eq!([128, 512, 8192].map(mebibytes), [512, 1280, 9472]);
        assert_eq!(Limits::of_vm(u64::MAX, u32::MAX).memory, u64::MAX);
    }

    #[test]
    fn limits_are_set_in_the_files_of_either_version_and_where_there_is_none_that_is_no_error() {
        let limits = Limits::of_vm(128, 2);
        for names in [["memory.max", "pids.max"], ["memory.limit_in_bytes", "pids.max"]] {
            let directory = tempfile::tempdir().unwrap();
            let [memory, pids] = names.map(|name| directory.path().join(name));
            // The kernel's files have no length, so that what is written takes the place of what was there.
            fs::write(&memory, "").unwrap();
            fs::write(&pids, "").unwrap();
            assert_eq!(limits.set(&[directory.path()]).unwrap().len(), 2);
            assert_eq!(fs::read_to_string(memory).unwrap(), (512 * MIB).to_string());
            assert_eq!(fs::read_to_string(pids).unwrap(), "1026");
        }
        let directory = tempfile::tempdir().unwrap();
        assert!(limits.set(&[directory.path()]).unwrap().is_empty());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
