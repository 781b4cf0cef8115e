//! User namespaces that nobody lives in: how mount_setattr(2) is told the ids of an idmapped mount.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitOptions, waitpid};

/// What a mount's users and groups are mapped to, as the lines of `uid_map` and `gid_map` (user_namespaces(7)): the first
/// id in the file system, the first id that is seen through the mount, and how many follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IdMapping {
    /// Users.
    pub(crate) users: String,
    /// Groups.
    pub(crate) groups: String,
    /// Whether the mounts below have it too.
    pub(crate) recursive: bool,
}

/// Makes a user namespace with these mappings.
///
/// # Errors
/// What the system returned: EINVAL for mappings that overlap or are too many.
pub(super) fn make(mapping: &IdMapping) -> io::Result<OwnedFd> {
    let inhabitant = Inhabitant::start()?;
    let directory = format!("/proc/{}", inhabitant.pid.as_raw_nonzero());
    fs::write(format!("{directory}/uid_map"), &mapping.users)?;
    fs::write(format!("{directory}/gid_map"), &mapping.groups)?;
    Ok(File::open(format!("{directory}/ns/user"))?.into())
}

/// A process in a new user namespace, there for as long as this is, so that the namespace has a place in /proc.
struct Inhabitant {
    pid: Pid,
    /// The process reads the other end, and finds the end of it when this one is closed.
    lifeline: Option<OwnedFd>,
}

impl Inhabitant {
    fn start() -> io::Result<Self> {
        let (reader, lifeline) = pipe_with(PipeFlags::CLOEXEC)?;
        let flags = libc::CLONE_NEWUSER | libc::SIGCHLD;
        // SAFETY: without CLONE_VM and without a stack this is fork(2): the child has a copy of this thread's memory, and
        // makes nothing but system calls in it, so that locks which other threads hold do not matter to it.
        let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
        if pid == 0 {
            wait_for_end(reader.as_raw_fd(), lifeline.as_raw_fd());
        }
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(io::Error::last_os_error)?;
        Ok(Self { pid, lifeline: Some(lifeline) })
    }
}

impl Drop for Inhabitant {
    fn drop(&mut self) {
        drop(self.lifeline.take());
        // It ends now, whatever is said of it.
        let _ = rustix::io::retry_on_intr(|| waitpid(Some(self.pid), WaitOptions::empty()));
    }
}

/// The life of an inhabitant.
fn wait_for_end(reader: i32, lifeline: i32) -> ! {
    let mut byte = 0_u8;
    // SAFETY: the number is of a copy that this process alone has and uses no more.
    unsafe { libc::close(lifeline) };
    // SAFETY: the buffer is one byte, as is said, and lives.
    unsafe { libc::read(reader, (&raw mut byte).cast(), 1) };
    // SAFETY: _exit(2) takes any number, and runs nothing of the process of which this one is a copy.
    unsafe { libc::_exit(0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_outlives_its_inhabitant_and_a_mapping_that_overlaps_is_refused() {
        let of = |users: &str| IdMapping { users: users.into(), groups: "0 0 1".into(), recursive: false };
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let namespace = make(&of("0 100000 65536")).unwrap();
        let kind = rustix::fs::fstatfs(&namespace).unwrap().f_type;
        assert_eq!(kind, libc::NSFS_MAGIC);
        assert_eq!(make(&of("0 100000 10\n5 200000 10")).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }
}
