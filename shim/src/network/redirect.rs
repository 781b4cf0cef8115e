//! Tying an interface to its tap: what arrives at one leaves by the other (tc-u32(8), tc-mirred(8)).

use std::io;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionMirrorOption, TcActionOption, TcActionType, TcAttribute,
    TcFilterU32Option, TcHandle, TcMessage, TcMirror, TcMirrorActionType, TcOption, TcU32Key, TcU32Selector,
    TcU32SelectorFlags,
};

use super::error::{InterfaceProblem, NetworkError};
use super::links::Link;
use super::netlink::Netlink;

/// The handle of an ingress queueing discipline, which cannot have another (tc(8)).
const INGRESS: TcHandle = TcHandle { major: 0xffff, minor: 0 };
/// The priority of the filter, by which it is known as a sandbox's.
const PRIORITY: u16 = 0x5a59;

/// Has every frame that arrives at `link` leave by the tap, and the other way round.
pub(super) fn tie(netlink: &mut Netlink, link: &Link, tap: u32) -> Result<(), NetworkError> {
    add_qdisc(netlink, link)?;
    let filter = |from: u32| {
        format!(
            "redirecting the frames of {} (interface {from}): are cls_u32 and act_mirred there?",
            link.name
        )
    };
    add_filter(netlink, link.index, tap).map_err(NetworkError::host(filter(link.index)))?;
    netlink
        .request(qdisc(tap, RouteNetlinkMessage::NewQueueDiscipline), NLM_F_CREATE | NLM_F_EXCL)
        .and_then(|()| add_filter(netlink, tap, link.index))
        .map_err(NetworkError::host(filter(tap)))
}

/// Takes the redirection from an interface, if a sandbox has put one there. The tap's goes with the tap.
pub(super) fn untie(netlink: &mut Netlink, index: u32) -> io::Result<()> {
    if is_tied(netlink, index)? { remove_qdisc(netlink, index) } else { Ok(()) }
}

/// Takes the queueing discipline from an interface on which a sandbox's tying has come no further than that: it is there
/// without any filter.
pub(super) fn untie_begun(netlink: &mut Netlink, index: u32) -> io::Result<()> {
    if filters(netlink, index)?.is_empty() { remove_qdisc(netlink, index) } else { Ok(()) }
}

fn remove_qdisc(netlink: &mut Netlink, index: u32) -> io::Result<()> {
    match netlink.request(qdisc(index, RouteNetlinkMessage::DelQueueDiscipline), 0) {
        // The interface has gone meanwhile, or somebody was quicker.
        Err(error) if is_gone(&error) => Ok(()),
        result => result,
    }
}

/// Whether there is a filter of a sandbox's on the interface.
fn is_tied(netlink: &mut Netlink, index: u32) -> io::Result<bool> {
    let filters = filters(netlink, index)?;
    Ok(filters.iter().any(|filter| filter.header.info >> 16 == u32::from(PRIORITY)))
}

/// The filters on what arrives at the interface. None where there is no interface or no queueing discipline.
fn filters(netlink: &mut Netlink, index: u32) -> io::Result<Vec<TcMessage>> {
    let mut request = message(index);
    request.header.parent = INGRESS;
    let listed = match netlink.list(&RouteNetlinkMessage::GetTrafficFilter(request)) {
        Err(error) if is_gone(&error) => return Ok(Vec::new()),
        listed => listed?,
    };
    let filter = |message| match message {
        RouteNetlinkMessage::NewTrafficFilter(filter) => Some(filter),
        _ => None,
    };
    Ok(listed.into_iter().filter_map(filter).collect())
}

fn add_qdisc(netlink: &mut Netlink, link: &Link) -> Result<(), NetworkError> {
    let add = |netlink: &mut Netlink| {
        netlink.request(qdisc(link.index, RouteNetlinkMessage::NewQueueDiscipline), NLM_F_CREATE | NLM_F_EXCL)
    };
    let what = || format!("an ingress queueing discipline on {}: is sch_ingress there?", link.name);
    match add(netlink) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
        result => return result.map_err(NetworkError::host(what())),
    }
    // One that a sandbox has left behind, whose tap is gone, or else this one's could not have been made.
    if !is_tied(netlink, link.index).map_err(NetworkError::host(what()))? {
        return Err(NetworkError::interface(&link.name, InterfaceProblem::Ingress(link.name.clone())));
    }
    untie(netlink, link.index).map_err(NetworkError::host(what()))?;
    add(netlink).map_err(NetworkError::host(what()))
}

fn add_filter(netlink: &mut Netlink, from: u32, to: u32) -> io::Result<()> {
    let mut filter = message(from);
    filter.header.parent = INGRESS;
    let every_protocol = u32::from(u16::try_from(libc::ETH_P_ALL).unwrap_or_default().to_be());
    filter.header.info = u32::from(PRIORITY) << 16 | every_protocol;
    filter.attributes = vec![
        TcAttribute::Kind("u32".into()),
        TcAttribute::Options(vec![
            TcOption::U32(TcFilterU32Option::Selector(everything())),
            TcOption::U32(TcFilterU32Option::Action(vec![redirect(to)])),
        ]),
    ];
    netlink.request(RouteNetlinkMessage::NewTrafficFilter(filter), NLM_F_CREATE | NLM_F_EXCL)
}

/// `match u8 0 0`: every frame, and no filter is asked after it.
fn everything() -> TcU32Selector {
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    selector.nkeys = 1;
    selector.keys = vec![TcU32Key::default()];
    selector
}

/// `action mirred egress redirect dev TO`.
fn redirect(to: u32) -> TcAction {
    let mut parameters = TcMirror::default();
    parameters.generic.action = TcActionType::Stolen;
    parameters.eaction = TcMirrorActionType::EgressRedir;
    parameters.ifindex = to;
    let mut action = TcAction::default();
    // Actions are numbered from 1 in the order in which they are done.
    action.tab = 1;
    action.attributes = vec![
        TcActionAttribute::Kind("mirred".into()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(parameters))]),
    ];
    action
}

fn qdisc(index: u32, request: fn(TcMessage) -> RouteNetlinkMessage) -> RouteNetlinkMessage {
    let mut message = message(index);
    message.header.handle = INGRESS;
    message.header.parent = TcHandle::INGRESS;
    message.attributes = vec![TcAttribute::Kind("ingress".into())];
    request(message)
}

fn message(index: u32) -> TcMessage {
    // The kernel's own interface numbers are signed and positive.
    TcMessage::with_index(i32::try_from(index).unwrap_or(i32::MAX))
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOENT | libc::EINVAL))
}
