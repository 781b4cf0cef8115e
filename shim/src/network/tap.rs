//! The tap device beside each interface, whose frames the VMM reads and writes.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage,
};

use super::error::{InterfaceProblem, NetworkError};
use super::links::Link;
use super::netlink::Netlink;

/// What a tap's name begins with; the number of the interface that it stands beside follows.
const PREFIX: &str = "sayatap";
/// `IFF_TUN_EXCL`, <linux/if_tun.h>: the device must not exist.
const EXCLUSIVE: libc::c_int = 0x8000;

/// A tap that goes when the last of its queues is closed.
#[derive(Debug)]
pub(super) struct TapDevice {
    pub(super) index: u32,
    pub(super) queues: Vec<OwnedFd>,
}

/// Whether an interface of this name is a tap of some sandbox's.
pub(super) fn is_name(name: &str) -> bool {
    name.strip_prefix(PREFIX)
        .is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

/// Makes a tap with so many queues beside `link`, in the thread's namespace, and brings it up.
pub(super) fn create(netlink: &mut Netlink, link: &Link, queues: u16) -> Result<TapDevice, NetworkError> {
    let name = format!("{PREFIX}{}", link.index);
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if queues > 1 {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    let mut opened = vec![open_queue(&name, flags | EXCLUSIVE).map_err(|error| refused(link, &name, error))?];
    for _ in 1..queues {
        opened.push(open_queue(&name, flags).map_err(|error| refused(link, &name, error))?);
    }
    let index = index_of(&name).map_err(NetworkError::host(format!("finding the tap {name}")))?;
    bring_up(netlink, index, link.mtu).map_err(NetworkError::host(format!("bringing up the tap {name}")))?;
    Ok(TapDevice { index, queues: opened })
}

/// Deletes a tap. It need not be there any more.
pub(super) fn delete(netlink: &mut Netlink, index: u32) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    match netlink.request(RouteNetlinkMessage::DelLink(message), 0) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        result => result,
    }
}

fn refused(link: &Link, name: &str, error: io::Error) -> NetworkError {
    if error.raw_os_error() == Some(libc::EBUSY) {
        return NetworkError::interface(&link.name, InterfaceProblem::InUse(name.to_owned()));
    }
    NetworkError::host(format!("/dev/net/tun: making the tap {name} beside {}", link.name))(error)
}

fn open_queue(name: &str, flags: libc::c_int) -> io::Result<OwnedFd> {
    let file = File::options().read(true).write(true).open("/dev/net/tun")?;
    let mut request = request(name);
    // The flags fill 16 bits, of which the structure makes a signed number.
    request.ifr_ifru.ifru_flags = u16::try_from(flags).unwrap_or_default().cast_signed();
    // SAFETY: TUNSETIFF reads and writes an ifreq at the pointer, and `request` is one.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(file.into()) }
}

fn index_of(name: &str) -> io::Result<u32> {
    Ok(nix::net::if_::if_nametoindex(name)?)
}

fn request(name: &str) -> libc::ifreq {
    // SAFETY: ifreq is a plain C structure for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request
}

/// Brings the tap up without an address of its own: the kernel would send router solicitations and the like through
/// it to the guest.
fn bring_up(netlink: &mut Netlink, index: u32, mtu: u16) -> io::Result<()> {
    let silent = LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(
        In6AddrGenMode::None,
    )])]);
    match netlink.request(change(index, vec![silent]), 0) {
        // A kernel without IPv6.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP)) => {}
        result => result?,
    }
    let mut up = LinkMessage::default();
    up.header.index = index;
    up.header.flags = LinkFlags::Up;
    up.header.change_mask = LinkFlags::Up;
    up.attributes.push(LinkAttribute::Mtu(mtu.into()));
    netlink.request(RouteNetlinkMessage::SetLink(up), 0)
}

fn change(index: u32, attributes: Vec<LinkAttribute>) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = attributes;
    RouteNetlinkMessage::SetLink(message)
}
