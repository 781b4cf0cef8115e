//! `AF_VSOCK` sockets (vsock(7)).

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// The context id of the host.
pub(crate) const HOST: u32 = libc::VMADDR_CID_HOST;

/// A socket that listens on `port` of every context id that this machine has.
pub(crate) fn listen(port: u32) -> io::Result<OwnedFd> {
    let socket = socket(libc::SOCK_NONBLOCK)?;
    let address = address(libc::VMADDR_CID_ANY, port);
    // SAFETY: `address` is a `sockaddr_vm` and the length is its size.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), LENGTH) };
    super::checked(result.into())?;
    // SAFETY: takes no pointer.
    let result = unsafe { libc::listen(socket.as_raw_fd(), libc::SOMAXCONN) };
    super::checked(result.into())?;
    Ok(socket)
}

/// A connection to `port` of `context_id`; returns once it stands.
pub(crate) fn connect(context_id: u32, port: u32) -> io::Result<OwnedFd> {
    let socket = socket(0)?;
    let address = address(context_id, port);
    // SAFETY: `address` is a `sockaddr_vm` and the length is its size.
    let result = unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), LENGTH) };
    super::checked(result.into())?;
    Ok(socket)
}

const LENGTH: libc::socklen_t = size_of::<libc::sockaddr_vm>() as libc::socklen_t;

fn socket(flags: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: takes no pointer.
    let fd = unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC | flags, 0) };
    super::checked(fd.into())?;
    // SAFETY: `fd` was just made and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn address(context_id: u32, port: u32) -> libc::sockaddr_vm {
    // SAFETY: a `sockaddr_vm` is integers only, for which zero is a value.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = context_id;
    address.svm_port = port;
    address
}
