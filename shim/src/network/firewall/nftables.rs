//! The tables of nftables, among them those that `iptables-nft` makes (include/uapi/linux/netfilter/nf_tables.h).

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fs;
use std::io;
use std::path::Path;

use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader, NetlinkSerializable, NlasIterator};
use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::network::netlink::Netlink;

/// `NFNL_SUBSYS_NFTABLES`, the upper byte of its messages' types.
const NFTABLES: u16 = 10 << 8;
/// Requests for all of the namespace's chains and rules: `NFT_MSG_GETCHAIN` and `NFT_MSG_GETRULE`.
const GET_CHAINS: u16 = NFTABLES | 4;
const GET_RULES: u16 = NFTABLES | 7;
/// The table's name: `NFTA_CHAIN_TABLE`, and of rules `NFTA_RULE_TABLE`.
const TABLE: u16 = 1;
/// `NFTA_CHAIN_POLICY`, which chains of hooks alone have: a number in network byte order.
const POLICY: u16 = 5;
/// `NF_ACCEPT`.
const ACCEPT: [u8; 4] = 1_u32.to_be_bytes();
/// `struct nfgenmsg`: family, version and a number that is not used here.
const HEADER: usize = 4;

/// The names of those that have a rule, or a chain with another policy than to accept.
pub(super) fn tables() -> io::Result<Vec<String>> {
    if !is_there()? {
        return Ok(Vec::new());
    }
    let (chains, rules) = match list() {
        // Neither a netlink of packet filters, nor nftables in it.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EPROTONOSUPPORT | libc::EINVAL)) => {
            return Ok(Vec::new());
        }
        listed => listed?,
    };
    let of_chains =
        chains.iter().filter(|chain| chain.attribute(POLICY).is_some_and(|policy| policy != ACCEPT));
    let tables: BTreeSet<String> = of_chains.chain(&rules).map(Message::table).collect();
    Ok(tables.into_iter().collect())
}

/// Whether the kernel has nftables already. To ask it would have it load the module.
fn is_there() -> io::Result<bool> {
    if Path::new("/sys/module/nf_tables").exists() || !Path::new("/proc/modules").exists() {
        return Ok(true);
    }
    // A part of the kernel itself, which /sys/module names only where it has parameters.
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let built_in = fs::read_to_string(format!("/lib/modules/{}/modules.builtin", release.trim()));
    Ok(built_in.is_ok_and(|names| names.contains("/nf_tables.ko")))
}

/// The chains and the rules of the thread's namespace.
fn list() -> io::Result<(Vec<Message>, Vec<Message>)> {
    let mut netlink = Netlink::open(NETLINK_NETFILTER)?;
    Ok((netlink.list(&Message::all(GET_CHAINS))?, netlink.list(&Message::all(GET_RULES))?))
}

/// A request, or a chain or rule that is its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Message {
    kind: u16,
    family: u8,
    attributes: Vec<u8>,
}

impl Message {
    /// A request for those of all families (`NFPROTO_UNSPEC`).
    fn all(kind: u16) -> Self {
        Self { kind, family: 0, attributes: Vec::new() }
    }

    fn attribute(&self, kind: u16) -> Option<Vec<u8>> {
        let mut attributes = NlasIterator::new(self.attributes.as_slice()).filter_map(Result::ok);
        let attribute = attributes.find(|attribute| attribute.kind() == kind)?;
        Some(attribute.value().to_vec())
    }

    /// Its table, as nft(8) names it.
    fn table(&self) -> String {
        let name = self.attribute(TABLE).unwrap_or_default();
        let name = String::from_utf8_lossy(name.strip_suffix(&[0]).unwrap_or(&name));
        // NFPROTO_* (include/uapi/linux/netfilter.h).
        let family = match self.family {
            1 => "inet".into(),
            2 => "ip".into(),
            3 => "arp".into(),
            5 => "netdev".into(),
            7 => "bridge".into(),
            10 => "ip6".into(),
            other => format!("family {other}"),
        };
        format!("{family} {name} of nftables")
    }
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        HEADER + self.attributes.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        let bytes = [self.family, 0, 0, 0].into_iter().chain(self.attributes.iter().copied());
        buffer.iter_mut().zip(bytes).for_each(|(place, byte)| *place = byte);
    }
}

impl NetlinkDeserializable for Message {
    type Error = Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Infallible> {
        let (family, attributes) = (payload.first(), payload.get(HEADER..));
        Ok(Self {
            kind: header.message_type,
            family: family.copied().unwrap_or_default(),
            attributes: attributes.unwrap_or_default().to_vec(),
        })
    }
}
