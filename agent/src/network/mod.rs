//! The pod's network: gives the guest's devices the names, addresses, routes and neighbours that the pod's network
//! namespace on the host has, by rtnetlink(7), and the kernel its sysctls.

mod address;
mod link;
mod message;
mod neighbour;
mod route;
mod socket;
mod sysctl;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use saya_agent_api::agent::{ConfigureNetworkRequest, Interface};

use self::socket::Socket;
use crate::error::{Action, Error, Result};

/// Does all that `request` says. Asked twice, the second time changes nothing.
pub(crate) fn configure(request: &ConfigureNetworkRequest) -> Result<()> {
    let socket = Socket::open().action(|| "open a netlink socket".to_owned())?;
    let indexes = link::name_all(&socket, &request.interfaces)?;
    for interface in &request.interfaces {
        skip_duplicate_detection(&interface.name)?;
    }
    sysctl::set_all(&request.sysctls)?;
    for interface in &request.interfaces {
        bring_up(&socket, interface, index_of(&indexes, &interface.name)?)?;
    }
    // A gateway must be reachable by a route that is there already.
    let (direct, by_gateway): (Vec<_>, Vec<_>) =
        request.routes.iter().partition(|route| route.gateway.is_empty());
    for route in direct.into_iter().chain(by_gateway) {
        route::add(&socket, route, &indexes)?;
    }
    for neighbour in &request.neighbours {
        neighbour::add(&socket, neighbour, &indexes)?;
    }
    Ok(())
}

fn bring_up(socket: &Socket, interface: &Interface, index: u32) -> Result<()> {
    link::set_mtu(socket, interface, index)?;
    for address in &interface.addresses {
        address::add(socket, &interface.name, index, address)?;
    }
    link::set_up(socket, &interface.name, index)
}

/// The host's namespace has had the addresses before the guest, so nobody else has them; and a pod shall not wait the
/// second that the kernel takes to ask.
fn skip_duplicate_detection(name: &str) -> Result<()> {
    let file = format!("/proc/sys/net/ipv6/conf/{name}/accept_dad");
    match fs::write(&file, "0") {
        // A kernel or a pod without IPv6.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.action(|| format!("write 0 to {file}")),
    }
}

/// Interfaces by their names.
type Indexes = HashMap<String, u32>;

fn index_of(indexes: &Indexes, name: &str) -> Result<u32> {
    indexes
        .get(name)
        .copied()
        .ok_or_else(|| Error::InvalidRequest(format!("there is no interface {name:?} in the guest")))
}

/// Reads 4 or 16 bytes.
fn ip(bytes: &[u8], what: &str) -> Result<IpAddr> {
    if let Ok(bytes) = <[u8; 4]>::try_from(bytes) {
        return Ok(Ipv4Addr::from(bytes).into());
    }
    match <[u8; 16]>::try_from(bytes) {
        Ok(bytes) => Ok(Ipv6Addr::from(bytes).into()),
        Err(_) => {
            Err(Error::InvalidRequest(format!("{what} has {} bytes; an address has 4 or 16", bytes.len())))
        }
    }
}

/// `AF_INET` or `AF_INET6`.
fn family(address: &IpAddr) -> u8 {
    (if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u8
}

/// The bytes of an address as they go over the wire.
fn octets(address: &IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Reads an address of this family as it goes over the wire; `None` where there is none, as in a default route.
fn octets_of_family(bytes: &[u8], family: u8, what: &str) -> Result<Option<Vec<u8>>> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let address = ip(bytes, what)?;
    if self::family(&address) == family {
        return Ok(Some(octets(&address)));
    }
    let version = if i32::from(family) == libc::AF_INET { 4 } else { 6 };
    Err(Error::InvalidRequest(format!("{what}: {address} is not an address of IPv{version}")))
}

/// Checks a prefix length against its address's family.
fn prefix(length: u32, family: u8, what: &str) -> Result<u8> {
    let limit = if i32::from(family) == libc::AF_INET { 32 } else { 128 };
    match u8::try_from(length) {
        Ok(length) if length <= limit => Ok(length),
        _ => Err(Error::InvalidRequest(format!(
            "{what} has the prefix length {length}; {limit} is the largest"
        ))),
    }
}

#[cfg(test)]
mod tests;
