//! Descriptors that nobody handed over.

use std::io;
use std::os::fd::RawFd;

/// Standard input, output and error.
const STANDARD: RawFd = 2;

/// Closes every descriptor of the process but the standard ones and `kept`.
///
/// # Errors
/// What close_range(2) returned; it needs Linux 5.9.
///
/// # Safety
/// Nothing in the process may use any other descriptor from now on.
pub unsafe fn close_all_but(kept: RawFd) -> io::Result<()> {
    for (first, last) in [(STANDARD + 1, kept - 1), (kept.max(STANDARD) + 1, RawFd::MAX)] {
        if first > last {
            continue;
        }
        // SAFETY: the caller promises that nobody uses them.
        let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
