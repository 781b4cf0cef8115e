//! A conversation with the kernel.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

use super::message::{HEADER, Reply, Request, attributes, number, replies};
use crate::sys;

/// `NLMSGERR_ATTR_MSG` of linux/netlink.h.
const ERROR_TEXT: u16 = 1;
/// As large as the kernel's datagrams get.
const BUFFER: usize = 32 << 10;

/// A netlink socket for links, addresses, routes and neighbours.
#[derive(Debug)]
pub(super) struct Socket {
    socket: OwnedFd,
}

impl Socket {
    /// Opens one (of the protocol `NETLINK_ROUTE`, which is 0) in the network namespace of this process.
    pub(super) fn open() -> io::Result<Self> {
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        let on: libc::c_int = 1;
        // SAFETY: the option is an int, which `on` is.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_NETLINK,
                libc::NETLINK_EXT_ACK,
                (&raw const on).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        sys::checked(result.into())?;
        Ok(Self { socket })
    }

    /// Asks for a change and waits until it is made.
    pub(super) fn change(&self, request: Request) -> io::Result<()> {
        self.ask(request, |_| {})
    }

    /// Asks, and hands each part of the answer to `take`.
    pub(super) fn ask(&self, request: Request, mut take: impl FnMut(&Reply<'_>)) -> io::Result<()> {
        send(&self.socket, &request.finish(), SendFlags::empty())?;
        let mut buffer = vec![0; BUFFER];
        loop {
            let (count, _) = recv(&self.socket, &mut buffer, RecvFlags::empty())?;
            for reply in replies(buffer.get(..count).unwrap_or_default()) {
                match i32::from(reply.kind) {
                    libc::NLMSG_DONE => return Ok(()),
                    libc::NLMSG_ERROR => return verdict(&reply),
                    _ => take(&reply),
                }
            }
        }
    }
}

/// Reads a `struct nlmsgerr`: an error of 0 is success. The kernel may add a text.
fn verdict(reply: &Reply<'_>) -> io::Result<()> {
    let error = number(reply.body, 0).map_or(-libc::EIO, u32::cast_signed);
    if error == 0 {
        return Ok(());
    }
    let error = io::Error::from_raw_os_error(error.wrapping_neg());
    match text(reply) {
        Some(text) => Err(io::Error::new(error.kind(), format!("{error}: {text}"))),
        None => Err(error),
    }
}

fn text(reply: &Reply<'_>) -> Option<String> {
    /// `NLM_F_CAPPED`: only the header of the request is repeated.
    const CAPPED: u16 = 0x100;
    /// `NLM_F_ACK_TLVS`: attributes follow.
    const WITH_ATTRIBUTES: u16 = 0x200;
    if reply.flags & WITH_ATTRIBUTES == 0 {
        return None;
    }
    let repeated = if reply.flags & CAPPED == 0 { number(reply.body, 4)? as usize } else { HEADER };
    let rest = reply.body.get(4 + repeated.next_multiple_of(4)..)?;
    let (_, text) = attributes(rest).find(|(kind, _)| *kind == ERROR_TEXT)?;
    Some(String::from_utf8_lossy(text).trim_end_matches('\0').to_owned())
}
