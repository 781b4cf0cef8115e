//! File descriptors and signals of the child: it is a copy of the agent and must not keep what the agent holds open,
//! or a stream would not end when the agent closes it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use super::error::{Context, Result};
use crate::sys;

/// Puts `stdio` in the places 0, 1 and 2, and closes everything else but `keep`.
pub(super) fn take_over(stdio: [BorrowedFd<'_>; 3], keep: &[BorrowedFd<'_>]) -> Result<()> {
    for (place, descriptor) in (0..).zip(stdio) {
        // SAFETY: takes no pointer; both numbers are descriptors of this process.
        let result = unsafe { libc::dup2(descriptor.as_raw_fd(), place) };
        sys::checked(result.into()).context(|| "set up the standard streams")?;
    }
    let mut kept: Vec<RawFd> = keep.iter().map(AsRawFd::as_raw_fd).collect();
    kept.sort_unstable();
    close_all_but(&kept).context(|| "close the agent's files")
}

/// Closes every descriptor from 3 on that is not among `kept`, which are sorted.
fn close_all_but(kept: &[RawFd]) -> io::Result<()> {
    let mut first = 3;
    for &descriptor in kept {
        if first < descriptor {
            close_range(first, descriptor - 1)?;
        }
        first = descriptor + 1;
    }
    close_range(first, RawFd::MAX)
}

fn close_range(first: RawFd, last: RawFd) -> io::Result<()> {
    // SAFETY: takes no pointer. What it closes belonged to values of the agent, none of which is used or dropped in
    // this process: it goes on to exec or `_exit`.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    sys::checked(result).map(drop)
}

/// Gives every signal its default action, and blocks none: a program starts with those two.
pub(super) fn reset_signals() -> Result<()> {
    // The last number of a real-time signal on Linux is 64.
    for signal in 1..=64 {
        // SAFETY: SIG_DFL runs no code of ours. Signals that allow no change refuse, which is as well.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: a `sigset_t` is integers, for which zero is a value: the empty set.
    let none: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `none` lives through the call, and nothing is asked for in return.
    let result = unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()) };
    sys::checked(result.into()).map(drop).context(|| "unblock signals")
}
