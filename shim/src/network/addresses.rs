//! The IP addresses of a pod's interfaces.

use std::net::{IpAddr, Ipv6Addr};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use saya_agent_api::agent::IpAddress;

use super::error::{InterfaceProblem, NetworkError};
use super::links::{Link, Links};
use super::netlink::Netlink;

/// The addresses of one interface.
#[derive(Debug, PartialEq)]
pub(super) struct LinkAddresses {
    pub(super) index: u32,
    pub(super) addresses: Vec<IpAddress>,
}

/// Reads the addresses of the thread's namespace, of all interfaces that the guest gets.
pub(super) fn read(netlink: &mut Netlink, links: &Links) -> Result<Vec<LinkAddresses>, NetworkError> {
    let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    let listed = netlink.list(&request).map_err(NetworkError::host("listing addresses"))?;
    let messages: Vec<AddressMessage> = listed
        .into_iter()
        .filter_map(|message| match message {
            RouteNetlinkMessage::NewAddress(address) => Some(address),
            _ => None,
        })
        .collect();
    refuse_on_loopback(&messages, links)?;
    links.carried.iter().map(|link| of_link(link, &messages)).collect()
}

fn of_link(link: &Link, messages: &[AddressMessage]) -> Result<LinkAddresses, NetworkError> {
    let mut addresses = Vec::new();
    for message in messages.iter().filter(|message| message.header.index == link.index) {
        let described = Description::of(message);
        let Some(address) = described.local.or(described.prefix) else { continue };
        if is_made_by_guest(address, &link.mac) {
            continue;
        }
        if let (Some(local), Some(peer)) = (described.local, described.prefix)
            && local != peer
        {
            let problem = InterfaceProblem::Peer(local.to_string(), peer.to_string());
            return Err(NetworkError::interface(&link.name, problem));
        }
        addresses.push(IpAddress {
            address: octets(address),
            prefix_length: u32::from(message.header.prefix_len),
            broadcast: described.broadcast.map(octets).unwrap_or_default(),
            ..IpAddress::default()
        });
    }
    Ok(LinkAddresses { index: link.index, addresses })
}

/// The guest's loopback interface has the usual addresses, and gets no others.
fn refuse_on_loopback(messages: &[AddressMessage], links: &Links) -> Result<(), NetworkError> {
    let on_loopback = messages.iter().filter(|message| Some(message.header.index) == links.loopback);
    for message in on_loopback {
        let described = Description::of(message);
        if let Some(address) = described.local.or(described.prefix).filter(|address| !address.is_loopback()) {
            let address = format!("{address}/{}", message.header.prefix_len);
            return Err(NetworkError::interface("lo", InterfaceProblem::Loopback(address)));
        }
    }
    Ok(())
}

/// What the kernel says of an address. `IFA_ADDRESS` is the address itself, or its peer where there is an `IFA_LOCAL`
/// that differs.
struct Description {
    local: Option<IpAddr>,
    prefix: Option<IpAddr>,
    broadcast: Option<IpAddr>,
}

impl Description {
    fn of(message: &AddressMessage) -> Self {
        let mut described = Self { local: None, prefix: None, broadcast: None };
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Local(address) => described.local = Some(*address),
                AddressAttribute::Address(address) => described.prefix = Some(*address),
                AddressAttribute::Broadcast(address) => described.broadcast = Some((*address).into()),
                _ => {}
            }
        }
        described
    }
}

/// Whether the guest's kernel gives itself this address as soon as the interface is up: the link-local one that is
/// made of the Ethernet address (RFC 4291, appendix A).
fn is_made_by_guest(address: IpAddr, mac: &[u8; 6]) -> bool {
    let [a, b, c, d, e, f] = *mac;
    let made = Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    address == IpAddr::V6(made)
}

/// An address as the agent's protocol has it.
pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}
