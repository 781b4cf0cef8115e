//! The interfaces of a pod's network namespace: which of them the guest gets, and which cannot be carried over.

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoIpVlan, IpVlanMode, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};

use super::error::{InterfaceProblem, NetworkError};
use super::netlink::Netlink;
use super::tap;

/// Kinds whose frames can be taken from one interface and given to another. The empty one is a physical device's.
const KINDS: [&str; 6] = ["", "veth", "macvlan", "ipvlan", "vlan", "dummy"];

/// The interfaces that the kernel adds to every namespace when a tunnel's module is loaded, beside which nobody has
/// put them there. They are down, and nothing is lost without them.
const FALLBACK_TUNNELS: [&str; 11] = [
    "tunl0",
    "gre0",
    "gretap0",
    "erspan0",
    "sit0",
    "ip6tnl0",
    "ip6gre0",
    "ip_vti0",
    "ip6_vti0",
    "ip6erspan0",
    "teql0",
];

/// An interface that the guest gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) mac: [u8; 6],
    pub(super) mtu: u16,
}

/// All interfaces of a namespace.
#[derive(Debug)]
pub(super) struct Links {
    /// Those that the guest gets.
    pub(super) carried: Vec<Link>,
    /// The loopback interface.
    pub(super) loopback: Option<u32>,
}

impl Links {
    /// Reads the interfaces of the thread's namespace but for the taps of ours with these numbers.
    pub(super) fn read(netlink: &mut Netlink, taps: &[u32]) -> Result<Self, NetworkError> {
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let listed = netlink.list(&request).map_err(NetworkError::host("listing interfaces"))?;
        let links: Vec<LinkMessage> = listed
            .into_iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewLink(link) if !taps.contains(&link.header.index) => Some(link),
                _ => None,
            })
            .collect();
        Self::sort(&links)
    }

    fn sort(links: &[LinkMessage]) -> Result<Self, NetworkError> {
        let mut sorted = Self { carried: Vec::new(), loopback: None };
        for message in links {
            let described = Description::of(message);
            if message.header.flags.contains(LinkFlags::Loopback) {
                sorted.loopback = Some(message.header.index);
            } else if !described.is_fallback_tunnel() {
                let link = described
                    .check(links)
                    .map_err(|problem| NetworkError::interface(described.name, problem))?;
                sorted.carried.push(link);
            }
        }
        sorted.carried.sort_by_key(|link| link.index);
        sorted.refuse_twins()?;
        Ok(sorted)
    }

    fn refuse_twins(&self) -> Result<(), NetworkError> {
        for (position, link) in self.carried.iter().enumerate() {
            if let Some(twin) = self.carried.iter().take(position).find(|other| other.mac == link.mac) {
                let problem = InterfaceProblem::SameAddress(twin.name.clone(), format_mac(&link.mac));
                return Err(NetworkError::interface(&link.name, problem));
            }
        }
        Ok(())
    }

    /// The name of a carried interface.
    pub(super) fn name(&self, index: u32) -> Option<&str> {
        self.carried.iter().find(|link| link.index == index).map(|link| link.name.as_str())
    }
}

/// The interfaces that somebody has put into the namespace of the process `pid`.
pub(super) fn names_of(pid: u32) -> Result<Vec<String>, NetworkError> {
    let path = format!("/proc/{pid}/net/dev");
    let listed = std::fs::read_to_string(&path).map_err(NetworkError::host(path))?;
    // Two head lines, then one line for each interface, which begins with its name and a colon (proc(5)).
    let names = listed.lines().skip(2).filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim());
    let added = names.filter(|name| *name != "lo" && !FALLBACK_TUNNELS.contains(name));
    Ok(added.map(str::to_owned).collect())
}

/// What the kernel says of an interface, as far as it matters.
struct Description<'a> {
    message: &'a LinkMessage,
    name: &'a str,
    kind: String,
    address: &'a [u8],
    mtu: u32,
    /// The interface below.
    rests_on: Option<u32>,
    /// The interface below is in another namespace.
    rests_elsewhere: bool,
    is_port: bool,
    is_routed_ipvlan: bool,
}

impl<'a> Description<'a> {
    fn of(message: &'a LinkMessage) -> Self {
        let mut described = Self {
            message,
            name: "",
            kind: String::new(),
            address: &[],
            mtu: 0,
            rests_on: None,
            rests_elsewhere: false,
            is_port: false,
            is_routed_ipvlan: false,
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => described.name = name,
                LinkAttribute::Address(address) => described.address = address,
                LinkAttribute::Mtu(mtu) => described.mtu = *mtu,
                LinkAttribute::Link(index) => described.rests_on = Some(*index),
                LinkAttribute::LinkNetNsId(_) => described.rests_elsewhere = true,
                LinkAttribute::Controller(_) => described.is_port = true,
                LinkAttribute::LinkInfo(infos) => infos.iter().for_each(|info| described.take_info(info)),
                _ => {}
            }
        }
        described
    }

    fn take_info(&mut self, info: &LinkInfo) {
        match info {
            LinkInfo::Kind(kind) => self.kind = kind.to_string(),
            LinkInfo::Data(InfoData::IpVlan(data)) => {
                self.is_routed_ipvlan =
                    data.iter().any(|item| matches!(item, InfoIpVlan::Mode(mode) if *mode != IpVlanMode::L2));
            }
            _ => {}
        }
    }

    fn is_up(&self) -> bool {
        self.message.header.flags.contains(LinkFlags::Up)
    }

    fn is_fallback_tunnel(&self) -> bool {
        !self.is_up() && FALLBACK_TUNNELS.contains(&self.name)
    }

    fn check(&self, links: &[LinkMessage]) -> Result<Link, InterfaceProblem> {
        if tap::is_name(self.name) {
            return Err(InterfaceProblem::InUse(self.name.to_owned()));
        }
        if !KINDS.contains(&self.kind.as_str()) {
            return Err(InterfaceProblem::Kind(self.kind.clone()));
        }
        if self.message.header.link_layer_type != LinkLayerType::Ether {
            return Err(InterfaceProblem::NotEthernet(self.message.header.link_layer_type.into()));
        }
        if self.is_routed_ipvlan {
            return Err(InterfaceProblem::IpvlanMode);
        }
        if self.is_port {
            return Err(InterfaceProblem::Port);
        }
        if self.rests_here(links) {
            return Err(InterfaceProblem::Rests);
        }
        if !self.is_up() {
            return Err(InterfaceProblem::Down);
        }
        let mtu = u16::try_from(self.mtu).ok().filter(|mtu| *mtu >= 68);
        Ok(Link {
            index: self.message.header.index,
            name: self.name.to_owned(),
            mac: self.mac()?,
            mtu: mtu.ok_or(InterfaceProblem::Mtu(self.mtu))?,
        })
    }

    /// Whether the interface below is in the same namespace. The two ends of a veth "rest" on each other, which is
    /// harmless unless both are here: then each is carried, and the guest has both ends.
    fn rests_here(&self, links: &[LinkMessage]) -> bool {
        let below = self.rests_on.filter(|_| !self.rests_elsewhere && self.kind != "veth");
        below.is_some_and(|index| {
            index != self.message.header.index && links.iter().any(|link| link.header.index == index)
        })
    }

    fn mac(&self) -> Result<[u8; 6], InterfaceProblem> {
        <[u8; 6]>::try_from(self.address)
            .ok()
            .filter(|mac| *mac != [0; 6] && mac.first().is_some_and(|first| first & 1 == 0))
            .ok_or_else(|| InterfaceProblem::Address(format_mac(self.address)))
    }
}

/// An Ethernet address as ip-link(8) prints it.
pub(super) fn format_mac(mac: &[u8]) -> String {
    mac.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::InfoKind;

    use super::*;

    /// An interface that can be carried over.
    fn link(index: u32, name: &str, kind: InfoKind) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.link_layer_type = LinkLayerType::Ether;
        message.header.flags = LinkFlags::Up;
        message.attributes = vec![
            LinkAttribute::IfName(name.into()),
            LinkAttribute::Address(vec![2, 0, 0, 0, 0, u8::try_from(index).unwrap()]),
            LinkAttribute::Mtu(1500),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]),
        ];
        message
    }

    fn problem(links: &[LinkMessage]) -> InterfaceProblem {
        match Links::sort(links) {
            Err(NetworkError::Interface { problem, .. }) => problem,
            other => panic!("{other:?}"),
        }
    }

    fn with(mut message: LinkMessage, attribute: LinkAttribute) -> LinkMessage {
        message.attributes.push(attribute);
        message
    }

    #[test]
    fn interfaces_of_every_kind_that_cni_makes_are_carried_in_order() {
        let vlan = with(link(7, "net2", InfoKind::Vlan), LinkAttribute::Link(3));
        let vlan = with(vlan, LinkAttribute::LinkNetNsId(0));
        let ipvlan = InfoData::IpVlan(vec![InfoIpVlan::Mode(IpVlanMode::L2)]);
        let infos = vec![LinkInfo::Kind(InfoKind::IpVlan), LinkInfo::Data(ipvlan)];
        let ipvlan = with(link(5, "net1", InfoKind::IpVlan), LinkAttribute::LinkInfo(infos));
        let links = [vlan, ipvlan, link(3, "eth0", InfoKind::Veth), link(9, "net3", InfoKind::MacVlan)];
        let names: Vec<String> =
            Links::sort(&links).unwrap().carried.into_iter().map(|link| link.name).collect();
        assert_eq!(names, ["eth0", "net1", "net2", "net3"], "number 3 below net2 is another namespace's");
    }

    #[test]
    fn an_ipvlan_without_ethernet_frames_is_refused() {
        for mode in [IpVlanMode::L3, IpVlanMode::L3S] {
            let data = InfoData::IpVlan(vec![InfoIpVlan::Mode(mode)]);
            let infos = vec![LinkInfo::Kind(InfoKind::IpVlan), LinkInfo::Data(data)];
            let ipvlan = with(link(5, "net1", InfoKind::IpVlan), LinkAttribute::LinkInfo(infos));
            assert_eq!(problem(&[ipvlan]), InterfaceProblem::IpvlanMode);
        }
    }

    #[test]
    fn an_interface_on_another_of_the_same_namespace_is_refused() {
        let vlan = with(link(7, "eth0.5", InfoKind::Vlan), LinkAttribute::Link(3));
        assert_eq!(problem(&[link(3, "eth0", InfoKind::Veth), vlan]), InterfaceProblem::Rests);
    }

    #[test]
    fn tunnels_that_the_kernel_adds_by_itself_are_passed_over_until_somebody_uses_them() {
        let mut tunnel = link(4, "sit0", InfoKind::SitTun);
        tunnel.header.link_layer_type = LinkLayerType::Sit;
        tunnel.header.flags = LinkFlags::empty();
        assert_eq!(Links::sort(std::slice::from_ref(&tunnel)).unwrap().carried, []);
        tunnel.header.flags = LinkFlags::Up;
        assert_eq!(problem(&[tunnel]), InterfaceProblem::Kind("sit".into()));
    }

    #[test]
    fn what_is_no_ethernet_interface_of_its_own_is_refused() {
        let mut raw = link(4, "raw0", InfoKind::Dummy);
        raw.header.link_layer_type = LinkLayerType::None;
        assert_eq!(problem(&[raw]), InterfaceProblem::NotEthernet(0xfffe));
        let group = with(link(4, "eth0", InfoKind::Veth), LinkAttribute::Address(vec![1, 0, 0, 0, 0, 9]));
        assert_eq!(problem(&[group]), InterfaceProblem::Address("01:00:00:00:00:09".into()));
        let huge = with(link(4, "eth0", InfoKind::Veth), LinkAttribute::Mtu(65_536));
        assert_eq!(problem(&[huge]), InterfaceProblem::Mtu(65_536));
        let tap = link(4, "sayatap3", InfoKind::Veth);
        assert_eq!(problem(&[tap]), InterfaceProblem::InUse("sayatap3".into()));
    }
}
