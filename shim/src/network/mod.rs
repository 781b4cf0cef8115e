//! The pod's network: what CNI has put into the network namespace, given to the guest.
//!
//! Beside each interface stands a tap, whose frames are the guest's; all that arrives at the interface leaves by the
//! tap and the other way round, so that to everybody else the guest is what the interface was. The guest gets the same
//! names, Ethernet addresses, IP addresses, routes, neighbours and sysctls. What cannot be carried over is an error that names
//! it.
//!
//! [`PodNetwork::disconnect`] takes all of it back. If nobody is left to call that, the taps go when the last descriptor
//! of their queues is closed, and [`clean_up`] removes what is left on the interfaces.

mod addresses;
mod configuration;
mod error;
mod firewall;
mod links;
mod loopback;
mod namespace;
mod neighbours;
mod netlink;
mod redirect;
mod routes;
mod sysctls;
mod tap;

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use saya_agent_api::agent::{ConfigureNetworkRequest, Interface};

pub(crate) use configuration::Configuration;
pub(crate) use error::NetworkError;
pub(crate) use firewall::PacketFilters;
pub(crate) use loopback::LoopbackListener;
pub(crate) use namespace::NetworkNamespace as PodNamespace;

use self::addresses::LinkAddresses;
use self::links::{Link, Links};
use self::namespace::NetworkNamespace;
use self::netlink::Netlink;

/// The number that lo has in every network namespace (Linux, include/net/net_namespace.h, `LOOPBACK_IFINDEX`).
const LOOPBACK: u32 = 1;

/// A pod's network, tied to taps.
#[derive(Debug)]
pub(crate) struct PodNetwork {
    namespace: NetworkNamespace,
    /// The interfaces, in the order of their numbers.
    pub(crate) interfaces: Vec<PodInterface>,
    /// What the agent is to be told, but for the sysctls.
    configuration: ConfigureNetworkRequest,
}

/// What the VMM needs to know of an interface.
#[derive(Debug)]
pub(crate) struct PodInterface {
    index: u32,
    tap: u32,
    /// Its name in the namespace, for messages.
    pub(crate) name: String,
    /// Its Ethernet address, which the guest's has as well.
    pub(crate) mac: [u8; 6],
    /// Its largest IP packet.
    pub(crate) mtu: u16,
    /// The queues of its tap: `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`. Empty once the VMM has them.
    pub(crate) queues: Vec<OwnedFd>,
}

/// Writes the numbers of the interfaces down that are about to be tied, for [`clean_up`] after a shim that was killed at it.
pub(crate) type Note<'a> = &'a (dyn Fn(&[u32]) -> io::Result<()> + Sync);

/// How a network is to be taken.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Settings {
    /// How many queues each tap has: one for each queue pair of the guest's.
    pub(crate) queues: u16,
    /// What is done about packet filters in the namespace.
    pub(crate) packet_filters: PacketFilters,
}

/// An interface that the guest has already.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KnownInterface {
    index: u32,
    tap: u32,
}

/// Gives the interfaces of the network namespace at `path` taps. It blocks for as long as the kernel takes, some
/// milliseconds.
///
/// # Errors
/// There is something that cannot be carried over, or the kernel refuses. Then nothing is left behind.
pub(crate) fn connect(path: &Path, settings: Settings, note: Note<'_>) -> Result<PodNetwork, NetworkError> {
    let namespace = NetworkNamespace::open(path)?;
    if namespace.is_ours()? {
        return Err(NetworkError::HostsOwn { path: path.to_owned() });
    }
    let (interfaces, configuration) = namespace.run(|| {
        let mut netlink = open_netlink()?;
        let links = Links::read(&mut netlink, &[])?;
        let configuration = read_configuration(&mut netlink, &links)?;
        let interfaces = tie_all(&mut netlink, links.carried, settings, note)?;
        Ok((interfaces, configuration))
    })?;
    Ok(PodNetwork { namespace, interfaces, configuration })
}

/// As [`connect`], for interfaces that have come since: those beside the `known` ones. The configuration is the whole
/// namespace's. `None` where there are none.
///
/// # Errors
/// As for [`connect`].
pub(crate) fn connect_later(
    path: &Path,
    known: &[KnownInterface],
    settings: Settings,
    note: Note<'_>,
) -> Result<Option<PodNetwork>, NetworkError> {
    let namespace = NetworkNamespace::open(path)?;
    let taps: Vec<u32> = known.iter().map(|known| known.tap).collect();
    let connected = namespace.run(|| {
        let mut netlink = open_netlink()?;
        let mut links = Links::read(&mut netlink, &taps)?;
        let is_new = |link: &Link| known.iter().all(|known| known.index != link.index);
        if !links.carried.iter().any(is_new) {
            return Ok(None);
        }
        let configuration = read_configuration(&mut netlink, &links)?;
        links.carried.retain(is_new);
        Ok(Some((tie_all(&mut netlink, links.carried, settings, note)?, configuration)))
    })?;
    Ok(connected.map(|(interfaces, configuration)| PodNetwork { namespace, interfaces, configuration }))
}

/// Removes what a sandbox has left on the interfaces of the network namespace at `path`, if it is still there. Only
/// for when its shim and its VMM are gone. `noted` are the interfaces that it was about to tie.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn clean_up(path: &Path, noted: &[u32]) -> Result<(), NetworkError> {
    let namespace = match NetworkNamespace::open(path) {
        Err(NetworkError::Namespace { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(());
        }
        namespace => namespace?,
    };
    namespace.run(|| {
        let indices = nix::net::if_::if_nameindex()
            .map_err(|error| NetworkError::host("listing interfaces")(error.into()))?;
        let mut netlink = open_netlink()?;
        untie_all(&mut netlink, indices.iter().map(nix::net::if_::Interface::index))?;
        noted.iter().try_for_each(|&index| {
            redirect::untie_begun(&mut netlink, index)
                .map_err(NetworkError::host(format!("removing what was begun on interface {index}")))
        })
    })
}

/// Ties a tap to an interface in a network namespace of its own, to see whether this host can.
///
/// # Errors
/// It cannot.
pub(crate) fn probe() -> Result<(), NetworkError> {
    NetworkNamespace::make()?.run(|| {
        let mut netlink = open_netlink()?;
        let loopback = Link { index: LOOPBACK, name: "lo".into(), mac: [0; 6], mtu: 1500 };
        tie(&mut netlink, loopback, 1).map(drop)
    })
}

/// Listens on the loopback of a network namespace of its own, to see whether this host can.
///
/// # Errors
/// It cannot.
pub(crate) fn probe_loopback() -> Result<(), NetworkError> {
    NetworkNamespace::make()?.listen_on_loopback().map(drop)
}

/// The interfaces in the network namespace of the process `pid`, which has none of its own accord. Empty where it is in
/// the caller's.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn interfaces_of(pid: u32) -> Result<Vec<String>, NetworkError> {
    let namespace = NetworkNamespace::open(format!("/proc/{pid}/ns/net").as_ref())?;
    if namespace.is_ours()? {
        return Ok(Vec::new());
    }
    links::names_of(pid)
}

impl PodNetwork {
    /// Another handle to its namespace.
    ///
    /// # Errors
    /// There are too many open files.
    pub(crate) fn namespace(&self) -> Result<PodNamespace, NetworkError> {
        self.namespace.try_clone()
    }

    /// Its interfaces, to be told from later ones.
    pub(crate) fn known(&self) -> Vec<KnownInterface> {
        self.interfaces.iter().map(|&PodInterface { index, tap, .. }| KnownInterface { index, tap }).collect()
    }

    /// Takes in the interfaces that have come later to the same namespace.
    pub(crate) fn take_in(&mut self, later: Self) {
        self.interfaces.extend(later.interfaces);
    }

    /// Closes the queues of the taps, which the VMM has by now: they are to end with it.
    pub(crate) fn close_queues(&mut self) {
        self.interfaces.iter_mut().for_each(|interface| interface.queues.clear());
    }

    /// Gives the interfaces back: their frames go nowhere else any more. The taps are deleted, whoever still holds
    /// descriptors of them: the guest no longer hears anything.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn disconnect(self) -> Result<(), NetworkError> {
        self.namespace.run(|| give_back(&mut open_netlink()?, &self.interfaces))
    }
}

fn read_configuration(netlink: &mut Netlink, links: &Links) -> Result<ConfigureNetworkRequest, NetworkError> {
    let addresses = addresses::read(netlink, links)?;
    let interfaces = links.carried.iter().zip(addresses).map(|(link, addresses)| interface(link, addresses));
    Ok(ConfigureNetworkRequest {
        interfaces: interfaces.collect(),
        routes: routes::read(netlink, links)?,
        neighbours: neighbours::read(netlink, links)?,
        ..ConfigureNetworkRequest::default()
    })
}

fn interface(link: &Link, addresses: LinkAddresses) -> Interface {
    Interface {
        mac_address: link.mac.to_vec(),
        name: link.name.clone(),
        mtu: link.mtu.into(),
        addresses: addresses.addresses,
        ..Interface::default()
    }
}

/// Makes the taps and ties them. If one fails, those before are taken back, and nothing is noted any more.
fn tie_all(
    netlink: &mut Netlink,
    links: Vec<Link>,
    settings: Settings,
    note: Note<'_>,
) -> Result<Vec<PodInterface>, NetworkError> {
    if links.is_empty() {
        return Ok(Vec::new());
    }
    firewall::check(settings.packet_filters)?;
    let indices: Vec<u32> = links.iter().map(|link| link.index).collect();
    note(&indices).map_err(NetworkError::host("noting which interfaces are to be tied"))?;
    let mut tied: Vec<PodInterface> = Vec::new();
    for link in links {
        match tie(netlink, link, settings.queues) {
            Ok(interface) => tied.push(interface),
            Err(error) => {
                // The error that led here is the one to tell of.
                let _ = give_back(netlink, &tied);
                let _ = note(&[]);
                return Err(error);
            }
        }
    }
    Ok(tied)
}

fn tie(netlink: &mut Netlink, link: Link, queues: u16) -> Result<PodInterface, NetworkError> {
    let tap = tap::create(netlink, &link, queues)?;
    let tied = redirect::tie(netlink, &link, tap.index);
    let Link { index, name, mac, mtu } = link;
    let interface = PodInterface { index, tap: tap.index, name, mac, mtu, queues: tap.queues };
    if tied.is_err() {
        let _ = give_back(netlink, std::slice::from_ref(&interface));
    }
    tied.map(|()| interface)
}

/// Undoes [`tie`].
fn give_back(netlink: &mut Netlink, interfaces: &[PodInterface]) -> Result<(), NetworkError> {
    untie_all(netlink, interfaces.iter().map(|interface| interface.index))?;
    for interface in interfaces {
        tap::delete(netlink, interface.tap)
            .map_err(NetworkError::host(format!("deleting the tap of {}", interface.name)))?;
    }
    Ok(())
}

fn untie_all(netlink: &mut Netlink, indices: impl IntoIterator<Item = u32>) -> Result<(), NetworkError> {
    for index in indices {
        redirect::untie(netlink, index)
            .map_err(NetworkError::host(format!("removing the redirection of interface {index}")))?;
    }
    Ok(())
}

fn open_netlink() -> Result<Netlink, NetworkError> {
    Netlink::new().map_err(NetworkError::host("a netlink socket"))
}

#[cfg(test)]
mod tests;
