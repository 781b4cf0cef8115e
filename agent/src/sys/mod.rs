//! The system calls that no crate in use wraps, each in a safe function.

pub(crate) mod bpf;
pub(crate) mod clone;
pub(crate) mod mount;
pub(crate) mod vsock;
pub(crate) mod watch;

use std::io;

use rustix::process::Pid;

/// Turns the result of a raw system call into an [`io::Result`].
pub(crate) fn checked(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Sends the signal of that number to a process: kill(2), for the real-time signals too.
pub(crate) fn send_signal(pid: Pid, signal: i32) -> io::Result<()> {
    // SAFETY: takes no pointer.
    let result = unsafe { libc::kill(pid.as_raw_nonzero().get(), signal) };
    checked(result.into()).map(drop)
}
