//! Neighbours whose link addresses are known without asking.

use libc::{NDA_DST, NDA_LLADDR, NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, RTM_NEWNEIGH};
use saya_agent_api::agent::Neighbour;

use super::message::Request;
use super::socket::Socket;
use super::{Indexes, family, index_of, ip, octets};
use crate::error::{Action, Error, Result};

/// `ETH_ALEN` of linux/if_ether.h, in bytes.
const MAC_ADDRESS: usize = 6;

/// Adds a neighbour, or replaces the one with the same address.
pub(super) fn add(socket: &Socket, neighbour: &Neighbour, indexes: &Indexes) -> Result<()> {
    let what = format!("a neighbour on {}", neighbour.interface);
    let address = ip(&neighbour.address, &what)?;
    let index = index_of(indexes, &neighbour.interface)?;
    let state = u16::try_from(neighbour.state)
        .map_err(|_| Error::InvalidRequest(format!("{what}: state {} is not of NUD_*", neighbour.state)))?;
    if neighbour.mac_address.len() != MAC_ADDRESS {
        let length = neighbour.mac_address.len();
        return Err(Error::InvalidRequest(format!(
            "{what} has a MAC address of {length} bytes; it has {MAC_ADDRESS}"
        )));
    }
    // struct ndmsg: family, padding, index, state, flags, type.
    let mut structure = vec![family(&address), 0, 0, 0];
    structure.extend(index.to_ne_bytes());
    structure.extend(state.to_ne_bytes());
    structure.extend([0, 0]);
    let request =
        Request::new(RTM_NEWNEIGH, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, &structure)
            .with(NDA_DST, &octets(&address))
            .with(NDA_LLADDR, &neighbour.mac_address);
    socket.change(request).action(|| format!("add the neighbour {address} on {}", neighbour.interface))
}
