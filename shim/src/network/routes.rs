//! The routes of a pod's network namespace.

use std::net::IpAddr;

use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
    RouteType,
};
use netlink_packet_route::rule::{RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use saya_agent_api::agent::Route;

use super::addresses::octets;
use super::error::{NetworkError, RouteProblem};
use super::links::Links;
use super::netlink::Netlink;

/// The table that packets are routed by unless rules say otherwise.
const MAIN_TABLE: u32 = RouteHeader::RT_TABLE_MAIN as u32;
/// The table of the machine's own addresses, which the kernel fills.
const LOCAL_TABLE: u32 = 255;
/// The table in which there is nothing unless somebody enters it.
const DEFAULT_TABLE: u32 = 253;
/// The rules that every namespace has: their priorities, and the tables to which they lead.
const USUAL_RULES: [(u32, u32); 3] = [(0, LOCAL_TABLE), (32_766, MAIN_TABLE), (32_767, DEFAULT_TABLE)];

/// Reads the routes of the thread's namespace, in an order in which they can be added: gateways are reached by routes
/// that come before.
pub(super) fn read(netlink: &mut Netlink, links: &Links) -> Result<Vec<Route>, NetworkError> {
    let mut routes = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        refuse_rules(netlink, family)?;
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        let listed = netlink
            .list(&RouteNetlinkMessage::GetRoute(request))
            .map_err(NetworkError::host("listing routes"))?;
        for message in listed {
            if let RouteNetlinkMessage::NewRoute(message) = message
                && !is_made_by_guest(&message, links)
            {
                routes.push(convert(&message, links)?);
            }
        }
    }
    routes.sort_by_key(|route| !route.gateway.is_empty());
    Ok(routes)
}

fn refuse_rules(netlink: &mut Netlink, family: AddressFamily) -> Result<(), NetworkError> {
    let mut request = RuleMessage::default();
    request.header.family = family;
    let listed = match netlink.list(&RouteNetlinkMessage::GetRule(request)) {
        Ok(listed) => listed,
        // A kernel without policy routing has no rules.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT)) => {
            return Ok(());
        }
        Err(error) => return Err(NetworkError::host("listing routing rules")(error)),
    };
    for message in listed {
        let RouteNetlinkMessage::NewRule(rule) = message else { continue };
        // The one for the table local has priority 0, which the kernel does not mention.
        let (mut priority, mut table) = (0, u32::from(rule.header.table));
        for attribute in &rule.attributes {
            match attribute {
                RuleAttribute::Priority(number) => priority = *number,
                RuleAttribute::Table(number) => table = *number,
                _ => {}
            }
        }
        if !USUAL_RULES.contains(&(priority, table)) {
            let family = if family == AddressFamily::Inet { "IPv4" } else { "IPv6" };
            return Err(NetworkError::Rule { family, priority });
        }
    }
    Ok(())
}

/// Whether the guest's kernel makes this route itself: from the addresses it is given, for an interface's link-local
/// addresses, for its own loopback, or from the router advertisements that it hears as well.
fn is_made_by_guest(message: &RouteMessage, links: &Links) -> bool {
    let of_kernel = message.header.protocol == RouteProtocol::Kernel;
    let for_links = message.attributes.iter().any(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => address.is_unicast_link_local(),
        RouteAttribute::Oif(index) => Some(*index) == links.loopback,
        _ => false,
    });
    table(message) == LOCAL_TABLE || of_kernel && for_links || message.header.protocol == RouteProtocol::Ra
}

fn table(message: &RouteMessage) -> u32 {
    let attribute = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    attribute.unwrap_or(u32::from(message.header.table))
}

fn convert(message: &RouteMessage, links: &Links) -> Result<Route, NetworkError> {
    let header = &message.header;
    let is_ipv6 = header.address_family == AddressFamily::Inet6;
    let mut route = Route {
        prefix_length: u32::from(header.destination_prefix_length),
        scope: u32::from(u8::from(header.scope)),
        kind: u32::from(u8::from(header.kind)),
        // The others are states and not settings.
        flags: (header.flags & RouteFlags::Onlink).bits(),
        protocol: u32::from(u8::from(header.protocol)),
        table: table(message),
        ipv6: is_ipv6,
        ..Route::default()
    };
    let mut problem = None;
    let mut output = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => route.destination = bytes(address),
            RouteAttribute::Gateway(address) => route.gateway = bytes(address),
            RouteAttribute::PrefSource(address) => route.preferred_source = bytes(address),
            RouteAttribute::Oif(index) => output = Some(*index),
            RouteAttribute::Priority(metric) => route.metric = *metric,
            RouteAttribute::Metrics(metrics) => problem = take_metrics(metrics, &mut route).or(problem),
            RouteAttribute::Via(_) => problem = Some(RouteProblem::OtherFamily),
            RouteAttribute::MultiPath(_) => problem = Some(RouteProblem::SeveralHops),
            RouteAttribute::NhId(id) => problem = Some(RouteProblem::HopObject(*id)),
            RouteAttribute::Encap(_) => problem = Some(RouteProblem::Encapsulation),
            RouteAttribute::Source(_) => problem = Some(RouteProblem::Selector),
            _ => {}
        }
    }
    if header.source_prefix_length != 0 || header.tos != 0 {
        problem = Some(RouteProblem::Selector);
    }
    if route.table != MAIN_TABLE {
        problem = Some(RouteProblem::Table(route.table));
    }
    if header.kind == RouteType::Unicast && problem.is_none() {
        match output.and_then(|index| links.name(index)) {
            Some(name) => name.clone_into(&mut route.interface),
            None => {
                let index = output.map_or_else(|| "none".to_owned(), |index| format!("number {index}"));
                problem = Some(RouteProblem::Interface(index));
            }
        }
    }
    match problem {
        None => Ok(route),
        Some(problem) => Err(NetworkError::Route { destination: describe(&route), problem }),
    }
}

fn take_metrics(metrics: &[RouteMetric], route: &mut Route) -> Option<RouteProblem> {
    let mut problem = None;
    for metric in metrics {
        match metric {
            RouteMetric::Mtu(mtu) => route.mtu = *mtu,
            other => problem = Some(RouteProblem::Metrics(format!("{other:?}"))),
        }
    }
    problem
}

fn bytes(address: &RouteAddress) -> Vec<u8> {
    match address {
        RouteAddress::Inet(address) => octets((*address).into()),
        RouteAddress::Inet6(address) => octets((*address).into()),
        // Of families that were not asked for.
        _ => Vec::new(),
    }
}

/// A route's destination as ip-route(8) prints it.
fn describe(route: &Route) -> String {
    let address = match <[u8; 4]>::try_from(route.destination.as_slice()) {
        Ok(octets) => Some(IpAddr::from(octets)),
        Err(_) => <[u8; 16]>::try_from(route.destination.as_slice()).ok().map(IpAddr::from),
    };
    match address {
        Some(address) => format!("{address}/{}", route.prefix_length),
        None => "default".into(),
    }
}
