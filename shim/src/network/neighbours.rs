//! The neighbours that somebody has entered by hand in a pod's network namespace. Those that the kernel has found by
//! asking, the guest's finds as well.

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use saya_agent_api::agent::Neighbour;

use super::addresses::octets;
use super::error::NetworkError;
use super::links::Links;
use super::netlink::Netlink;

/// Reads the permanent neighbours of the thread's namespace.
pub(super) fn read(netlink: &mut Netlink, links: &Links) -> Result<Vec<Neighbour>, NetworkError> {
    let request = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
    let listed = netlink.list(&request).map_err(NetworkError::host("listing neighbours"))?;
    let neighbours = listed.iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewNeighbour(message) => convert(message, links),
        _ => None,
    });
    Ok(neighbours.collect())
}

fn convert(message: &NeighbourMessage, links: &Links) -> Option<Neighbour> {
    if message.header.state != NeighbourState::Permanent {
        return None;
    }
    let mut neighbour = Neighbour {
        interface: links.name(message.header.ifindex)?.to_owned(),
        state: u32::from(u16::from(message.header.state)),
        ..Neighbour::default()
    };
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => {
                neighbour.address = octets((*address).into());
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => {
                neighbour.address = octets((*address).into());
            }
            NeighbourAttribute::LinkLayerAddress(mac) => neighbour.mac_address.clone_from(mac),
            _ => {}
        }
    }
    // Entries of a bridge's forwarding table come by the same request and have no IP address.
    (!neighbour.address.is_empty() && neighbour.mac_address.len() == 6).then_some(neighbour)
}
