//! Routes.

use std::io::ErrorKind;
use std::net::IpAddr;

use libc::{
    NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST, RTA_DST, RTA_GATEWAY, RTA_METRICS, RTA_OIF,
    RTA_PREFSRC, RTA_PRIORITY, RTA_TABLE, RTM_NEWROUTE,
};
use saya_agent_api::agent::Route;

use super::message::{Request, nested};
use super::socket::Socket;
use super::{Indexes, index_of, ip, octets_of_family, prefix};
use crate::error::{Action, Error, Result};

/// `RTAX_MTU` of linux/rtnetlink.h, inside of `RTA_METRICS`.
const MTU: u16 = 2;
/// `RTNH_F_ONLINK`: the gateway is there, whatever the routes say.
const ON_LINK: u32 = 4;
/// `RT_TABLE_MAIN`.
const MAIN_TABLE: u32 = 254;

/// Adds a route beside those to the same place, unless it is there already.
pub(super) fn add(socket: &Socket, route: &Route, indexes: &Indexes) -> Result<()> {
    let request = request(route, indexes)?;
    match socket.change(request) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        added => added.action(|| format!("add the route {}", name(route))),
    }
}

fn request(route: &Route, indexes: &Indexes) -> Result<Request> {
    let family = (if route.ipv6 { libc::AF_INET6 } else { libc::AF_INET }) as u8;
    let what = name(route);
    let destination = octets_of_family(&route.destination, family, &what)?;
    let source = octets_of_family(&route.preferred_source, family, &what)?;
    let gateway = octets_of_family(&route.gateway, family, &what)?;
    let length = prefix(route.prefix_length, family, &what)?;
    let table = if route.table == 0 { MAIN_TABLE } else { route.table };
    let byte = |value: u32, field: &str| {
        u8::try_from(value)
            .map_err(|_| Error::InvalidRequest(format!("{what}: {field} {value} does not fit into 8 bits")))
    };
    // struct rtmsg: family, the lengths of destination and source, type of service, table, protocol, scope, type, flags.
    let mut structure = vec![
        family,
        length,
        0,
        0,
        u8::try_from(table).unwrap_or(0),
        byte(route.protocol, "protocol")?,
        byte(route.scope, "scope")?,
        byte(route.kind, "kind")?,
    ];
    // The other flags are reports of the host's kernel, not wishes.
    structure.extend((route.flags & ON_LINK).to_ne_bytes());
    let mut request =
        Request::new(RTM_NEWROUTE, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_APPEND, &structure)
            .with(RTA_TABLE, &table.to_ne_bytes())
            .with_some(RTA_DST, destination.as_deref())
            .with_some(RTA_PREFSRC, source.as_deref())
            .with_some(RTA_GATEWAY, gateway.as_deref());
    if !route.interface.is_empty() {
        request = request.with(RTA_OIF, &index_of(indexes, &route.interface)?.to_ne_bytes());
    }
    if route.metric != 0 {
        request = request.with(RTA_PRIORITY, &route.metric.to_ne_bytes());
    }
    if route.mtu != 0 {
        request = request.with(RTA_METRICS, &nested(MTU, &route.mtu.to_ne_bytes()));
    }
    Ok(request)
}

fn name(route: &Route) -> String {
    let address = |bytes: &[u8]| ip(bytes, "").map(|address: IpAddr| address.to_string());
    let destination = match address(&route.destination) {
        Ok(address) => format!("{address}/{}", route.prefix_length),
        Err(_) => "default".to_owned(),
    };
    let gateway = address(&route.gateway).map_or_else(|_| String::new(), |gateway| format!(" via {gateway}"));
    let interface =
        if route.interface.is_empty() { String::new() } else { format!(" dev {}", route.interface) };
    format!("{destination}{gateway}{interface}")
}
