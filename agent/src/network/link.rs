//! Interfaces: found by their MAC addresses, named, sized and set up.

use std::collections::HashMap;

use libc::{
    IFF_UP, IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, RTM_GETLINK,
    RTM_NEWLINK,
};
use saya_agent_api::agent::Interface;

use super::Indexes;
use super::message::{Reply, Request, attributes, number, terminated};
use super::socket::Socket;
use crate::error::{Action, Error, Result};

/// `IFNAMSIZ` without the NUL.
const LONGEST_NAME: usize = 15;

/// An interface of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Link {
    index: u32,
    name: String,
    mac_address: Vec<u8>,
}

/// Gives each interface the name it shall have, and tells the indexes of all interfaces by their names.
pub(super) fn name_all(socket: &Socket, interfaces: &[Interface]) -> Result<Indexes> {
    let mut links = list(socket)?;
    for interface in interfaces {
        check_name(&interface.name)?;
        let wanted = find(&links, interface)?;
        if wanted.name == interface.name {
            continue;
        }
        let (index, old_name) = (wanted.index, wanted.name.clone());
        if let Some(other) = links.iter_mut().find(|link| link.name == interface.name) {
            // That one gets its own name when its turn comes; until then, it only must not be in the way.
            rename(socket, other, format!("saya{}", other.index))?;
        }
        let link = links.iter_mut().find(|link| link.index == index);
        if let Some(link) = link {
            log::info!("interface {old_name} is {}", interface.name);
            rename(socket, link, interface.name.clone())?;
        }
    }
    Ok(links.into_iter().map(|link| (link.name, link.index)).collect::<HashMap<_, _>>())
}

fn check_name(name: &str) -> Result<()> {
    if !name.is_empty() && name.len() <= LONGEST_NAME && !name.contains(['/', ' ', ':', '\0']) && name != ".."
    {
        return Ok(());
    }
    Err(Error::InvalidRequest(format!("{name:?} is not a name for an interface")))
}

fn find<'a>(links: &'a [Link], interface: &Interface) -> Result<&'a Link> {
    let mut matching = links.iter().filter(|link| link.mac_address == interface.mac_address);
    let mac = mac(&interface.mac_address);
    match (matching.next(), matching.next()) {
        (Some(link), None) => Ok(link),
        (Some(one), Some(two)) => Err(Error::InvalidRequest(format!(
            "interface {:?}: the guest's {} and {} both have the MAC address {mac}",
            interface.name, one.name, two.name
        ))),
        (None, _) => Err(Error::InvalidRequest(format!(
            "interface {:?}: no device of the guest has the MAC address {mac}",
            interface.name
        ))),
    }
}

fn mac(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

fn list(socket: &Socket) -> Result<Vec<Link>> {
    let mut links = Vec::new();
    let request = Request::new(RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, &information(0, 0, 0));
    socket
        .ask(request, |reply| links.extend(read(reply)))
        .action(|| "list the guest's interfaces".to_owned())?;
    Ok(links)
}

/// `struct ifinfomsg`.
fn information(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut structure = [0; 16];
    for (to, from) in structure.iter_mut().skip(4).zip([index, flags, change].map(u32::to_ne_bytes).concat())
    {
        *to = from;
    }
    structure
}

fn read(reply: &Reply<'_>) -> Option<Link> {
    if reply.kind != RTM_NEWLINK {
        return None;
    }
    let index = number(reply.body, 4)?;
    let mut link = Link { index, name: String::new(), mac_address: Vec::new() };
    for (kind, value) in attributes(reply.body.get(16..)?) {
        match kind {
            IFLA_IFNAME => link.name = String::from_utf8_lossy(value).trim_end_matches('\0').to_owned(),
            IFLA_ADDRESS => link.mac_address = value.to_vec(),
            _ => {}
        }
    }
    Some(link)
}

fn rename(socket: &Socket, link: &mut Link, name: String) -> Result<()> {
    let request = Request::new(RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK, &information(link.index, 0, 0))
        .with(IFLA_IFNAME, &terminated(&name));
    socket.change(request).action(|| format!("rename the interface {} to {name}", link.name))?;
    link.name = name;
    Ok(())
}

/// Sets how large packets may be; 0 leaves what the device says.
pub(super) fn set_mtu(socket: &Socket, interface: &Interface, index: u32) -> Result<()> {
    if interface.mtu == 0 {
        return Ok(());
    }
    let request = Request::new(RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK, &information(index, 0, 0))
        .with(IFLA_MTU, &interface.mtu.to_ne_bytes());
    socket.change(request).action(|| format!("set the MTU of {} to {}", interface.name, interface.mtu))
}

/// Sets it up.
pub(super) fn set_up(socket: &Socket, name: &str, index: u32) -> Result<()> {
    let up = IFF_UP as u32;
    let request = Request::new(RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK, &information(index, up, up));
    socket.change(request).action(|| format!("set {name} up"))
}
