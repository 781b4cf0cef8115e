//! What each request does to the host's files. The arguments are decoded already, the names are single components
//! (see `names` in the server), and the results are what the protocol encodes.

mod attributes;
mod directory;
mod file_io;
mod links;
mod lookup;
mod session;
mod space;
mod xattr;

use rustix::io::Errno;

pub(super) use directory::Listing;
pub(super) use xattr::Xattr;

/// Who asks, and with which umask.
#[derive(Debug, Clone, Copy)]
pub(super) struct Caller {
    /// File system user id.
    pub(super) uid: u32,
    /// File system group id.
    pub(super) gid: u32,
}

/// Turns the result of a system call into a count or its errno.
pub(super) fn io_result(result: libc::c_long) -> Result<usize, Errno> {
    usize::try_from(result).map_err(|_| last_error())
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
