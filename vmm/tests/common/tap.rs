//! A tap of the kernel's, in the network namespace of the thread that makes it.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Its name.
pub(crate) const NAME: &[u8] = b"tap0\0";
const FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;

fn request(flags: libc::c_int) -> libc::ifreq {
    // SAFETY: ifreq is a plain C structure for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(NAME) {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    request
}

/// Opens one more of its queues, the first of which makes it.
pub(crate) fn open_queue() -> io::Result<OwnedFd> {
    let file = std::fs::File::options().read(true).write(true).open("/dev/net/tun")?;
    let request = request(FLAGS);
    // SAFETY: TUNSETIFF reads an ifreq from the pointer, and `request` is one.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw const request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(file.into()) }
}

/// A socket of the namespace.
pub(crate) fn socket(domain: libc::c_int, kind: libc::c_int, protocol: libc::c_int) -> OwnedFd {
    // SAFETY: socket(2) touches no memory.
    let socket = unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) };
    assert!(socket >= 0, "{}", io::Error::last_os_error());
    // SAFETY: the descriptor was just opened and belongs to nobody else.
    unsafe { OwnedFd::from_raw_fd(socket) }
}

/// Lets frames pass.
pub(crate) fn bring_up() {
    let socket = socket(libc::AF_INET, libc::SOCK_DGRAM, 0);
    let request = request(libc::IFF_UP);
    // SAFETY: SIOCSIFFLAGS reads an ifreq from the pointer, and `request` is one.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}
