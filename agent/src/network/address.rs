//! Addresses of interfaces.

use libc::{
    IFA_ADDRESS, IFA_BROADCAST, IFA_F_NODAD, IFA_F_NOPREFIXROUTE, IFA_FLAGS, IFA_LOCAL, NLM_F_ACK,
    NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, RTM_NEWADDR,
};
use saya_agent_api::agent::IpAddress;

use super::message::Request;
use super::socket::Socket;
use super::{family, ip, octets, octets_of_family, prefix};
use crate::error::{Action, Result};

/// Gives an interface an address, or leaves it the one that it has.
pub(super) fn add(socket: &Socket, name: &str, index: u32, address: &IpAddress) -> Result<()> {
    let what = format!("an address of {name}");
    let ip_address = ip(&address.address, &what)?;
    let family = family(&ip_address);
    let length = prefix(address.prefix_length, family, &what)?;
    let broadcast = octets_of_family(&address.broadcast, family, &what)?;
    // Nobody else has it, so nobody is asked (only IPv6 asks); and the route to its network is there if it is asked for.
    let flags = IFA_F_NOPREFIXROUTE | if ip_address.is_ipv6() { IFA_F_NODAD } else { 0 };
    // struct ifaddrmsg: family, prefix length, flags of 8 bits, scope, index.
    let mut structure = vec![family, length, 0, 0];
    structure.extend(index.to_ne_bytes());
    let request =
        Request::new(RTM_NEWADDR, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, &structure)
            .with(IFA_LOCAL, &octets(&ip_address))
            .with(IFA_ADDRESS, &octets(&ip_address))
            .with(IFA_FLAGS, &flags.to_ne_bytes())
            .with_some(IFA_BROADCAST, broadcast.as_deref());
    socket.change(request).action(|| format!("give {name} the address {ip_address}/{length}"))
}
