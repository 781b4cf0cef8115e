//! Why a pod's network cannot be given to its guest.

use std::io;
use std::path::PathBuf;

/// Why a pod's network cannot be given to its guest, or taken back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    /// The namespace cannot be entered.
    #[error("network namespace {}: {source}: it must be a namespace's file, such as /run/netns/NAME", path.display())]
    Namespace {
        /// The path.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
    /// It is the one that the shim is in: to take its interfaces away would cut the host off.
    #[error("network namespace {}: it is the host's own, which is not supported: make one for the pod", path.display())]
    HostsOwn {
        /// The path.
        path: PathBuf,
    },
    /// The kernel refused a request, or could not be asked.
    #[error("network: {what}: {source}")]
    Host {
        /// What was asked for.
        what: String,
        /// The answer.
        source: io::Error,
    },
    /// An interface that cannot be carried over.
    #[error("network interface {interface}: {problem}")]
    Interface {
        /// Its name in the pod's namespace.
        interface: String,
        /// What is in the way.
        problem: InterfaceProblem,
    },
    /// A route that cannot be carried over.
    #[error("network: the route to {destination} {problem}, which cannot be carried into the guest")]
    Route {
        /// Its destination, as ip-route(8) prints it.
        destination: String,
        /// What it has or is that cannot be.
        problem: RouteProblem,
    },
    /// A policy routing rule.
    #[error(
        "network: the {family} routing rule of priority {priority} cannot be carried into the guest: remove it"
    )]
    Rule {
        /// "IPv4" or "IPv6".
        family: &'static str,
        /// Its priority, as ip-rule(8) prints it.
        priority: u32,
    },
    /// Rules that would have no effect.
    #[error(
        "network: there are packet filters in the pod's network namespace ({tables}), which would see none of the guest's \
         packets: have an init container make them, in the guest, or let them be without effect by ignore_packet_filters = \
         true in the configuration"
    )]
    Filters {
        /// The tables, in words.
        tables: String,
    },
}

impl NetworkError {
    /// The kernel's answer to a request that `what` describes.
    pub(crate) fn host(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Host { what, source }
    }

    /// A problem with an interface.
    pub(super) fn interface(name: &str, problem: InterfaceProblem) -> Self {
        Self::Interface { interface: name.to_owned(), problem }
    }
}

/// What keeps an interface from being carried over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InterfaceProblem {
    /// Its kind is none of those that carry Ethernet frames to another namespace.
    #[error(
        "an interface of kind \"{0}\" cannot be carried into the guest: use veth, macvlan, ipvlan (l2), vlan, dummy, or a \
         physical Ethernet device"
    )]
    Kind(String),
    /// It does not carry Ethernet frames.
    #[error("it does not carry Ethernet frames (link type {0}), and cannot be carried into the guest")]
    NotEthernet(u16),
    /// An ipvlan that carries IP packets.
    #[error("an ipvlan in mode l3 or l3s carries no Ethernet frames: use mode l2")]
    IpvlanMode,
    /// It has no Ethernet address of its own.
    #[error("its Ethernet address is {0}, which is none of a single interface")]
    Address(String),
    /// The guest tells its interfaces apart by their Ethernet addresses.
    #[error("it has the same Ethernet address as {0}, {1}: the guest tells interfaces apart by it")]
    SameAddress(String, String),
    /// It is not up.
    #[error("it is down: bring it up, or remove it")]
    Down,
    /// Frames of the interface below are taken away before they reach it.
    #[error("it rests on an interface of the same namespace: put one of them elsewhere")]
    Rests,
    /// It is a port of a bridge or a bond.
    #[error("it is a port of a bridge, bond or the like in the same namespace: take it out")]
    Port,
    /// An MTU that virtio-net cannot have.
    #[error("its MTU is {0}: it must be between 68 and 65535")]
    Mtu(u32),
    /// Another virtual machine has it.
    #[error("it belongs to another sandbox already, whose tap is {0}")]
    InUse(String),
    /// Somebody else redirects or polices its frames.
    #[error(
        "it has an ingress queueing discipline of somebody else's: remove it with tc qdisc del dev {0} ingress"
    )]
    Ingress(String),
    /// A point-to-point address.
    #[error("its address {0} has a peer, {1}: only addresses with a prefix can be carried into the guest")]
    Peer(String, String),
    /// An address on the loopback interface.
    #[error("its address {0} cannot be carried into the guest, which has its own loopback")]
    Loopback(String),
}

/// What keeps a route from being carried over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RouteProblem {
    /// It spreads over several gateways.
    #[error("has several next hops")]
    SeveralHops,
    /// Its next hop is an object of its own.
    #[error("uses the next hop object {0}")]
    HopObject(u32),
    /// Its packets are encapsulated.
    #[error("encapsulates its packets")]
    Encapsulation,
    /// Its gateway is of the other family.
    #[error("has a gateway of another family")]
    OtherFamily,
    /// It depends on more than the destination.
    #[error("depends on the source address or the type of service")]
    Selector,
    /// It has properties that the guest's agent does not set.
    #[error("has properties other than an MTU ({0})")]
    Metrics(String),
    /// It leads to an interface that is not carried over.
    #[error("leads to an interface that the guest does not have ({0})")]
    Interface(String),
    /// It is in another table, where only rules lead.
    #[error("is in table {0} and not in the main one")]
    Table(u32),
}
