//! `clone3(2)`: a child process in namespaces and a cgroup of its own.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::process::Pid;

/// On which side of the clone the caller finds itself.
#[derive(Debug)]
pub(crate) enum Side {
    /// In the caller, with the child's process id as the caller's pid namespace sees it.
    Parent(Pid),
    /// In the child.
    Child,
}

/// `struct clone_args` of linux/sched.h, up to `cgroup` (`CLONE_ARGS_SIZE_VER2`).
#[repr(C)]
#[derive(Default)]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// `CLONE_INTO_CGROUP` of linux/sched.h, which does not fit into the 32 bits that libc gives such flags.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Makes a child process: a copy of the caller, in new namespaces where `flags` has `CLONE_NEW*`, and in the cgroup
/// whose directory is `cgroup`. The caller gets SIGCHLD when the child ends; with `CLONE_PARENT`, the caller's parent.
///
/// # Safety
///
/// The calling process has one thread. The child must end by exec or `_exit`, and must not return into code that
/// the parent also runs to its end (an event loop, a destructor that talks to the outside).
pub(crate) unsafe fn clone_process(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Side> {
    let into_cgroup = if cgroup.is_some() { CLONE_INTO_CGROUP } else { 0 };
    // A sibling has the exit signal of this process, and must not name one.
    let sibling = flags & libc::CLONE_PARENT as u64 != 0;
    let arguments = CloneArguments {
        flags: flags | into_cgroup,
        exit_signal: if sibling { 0 } else { libc::SIGCHLD as u64 },
        cgroup: cgroup.map_or(0, |fd| fd.as_raw_fd() as u64),
        ..CloneArguments::default()
    };
    let size = size_of::<CloneArguments>();
    // SAFETY: `arguments` is a `struct clone_args` of the size given. No stack is named and CLONE_VM is not set, so
    // the child goes on with a copy of this one; there is no other thread that could hold a lock (the caller's word).
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size) };
    match super::checked(result)? {
        0 => Ok(Side::Child),
        pid => i32::try_from(pid)
            .ok()
            .and_then(Pid::from_raw)
            .map(Side::Parent)
            .ok_or_else(|| io::Error::other(format!("clone3 returned the process id {pid}"))),
    }
}
