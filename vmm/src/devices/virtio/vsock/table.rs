//! Who is connected to whom: numbers for everything that has a descriptor, ports for the host's ends.

use std::collections::BTreeMap;

use super::connection::Ports;

/// The first port that the host connects from. Below are the ports that services listen on.
const FIRST_HOST_PORT: u32 = 1 << 30;
/// One past the last port that the host connects from.
const END_OF_HOST_PORTS: u32 = 1 << 31;

/// Hands out the ports that host connections come from, each as late again as can be, so that a stray packet of
/// the guest for an old connection does not meet a new one.
#[derive(Debug)]
pub(super) struct HostPorts {
    next: u32,
}

impl HostPorts {
    pub(super) fn new() -> Self {
        Self { next: FIRST_HOST_PORT }
    }

    /// A port that `is_taken` does not say is taken. It ends because connections are far fewer than ports.
    pub(super) fn allocate(&mut self, is_taken: impl Fn(u32) -> bool) -> u32 {
        loop {
            let port = self.next;
            self.next = if port + 1 == END_OF_HOST_PORTS { FIRST_HOST_PORT } else { port + 1 };
            if !is_taken(port) {
                return port;
            }
        }
    }
}

/// Connections by the ports that packets name. A connection that the guest knows nothing of any more has none.
#[derive(Debug)]
pub(super) struct PortTable {
    ids: BTreeMap<Ports, u64>,
    host_ports: HostPorts,
}

impl PortTable {
    pub(super) fn new() -> Self {
        Self { ids: BTreeMap::new(), host_ports: HostPorts::new() }
    }

    /// The connection between these ports.
    pub(super) fn find(&self, ports: Ports) -> Option<u64> {
        self.ids.get(&ports).copied()
    }

    /// Enters a connection.
    pub(super) fn insert(&mut self, ports: Ports, id: u64) {
        self.ids.insert(ports, id);
    }

    /// Strikes a connection out, unless its ports belong to another one by now.
    pub(super) fn remove(&mut self, ports: Ports, id: u64) {
        if self.find(ports) == Some(id) {
            self.ids.remove(&ports);
        }
    }

    /// Whether no connection is entered.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Ports for a connection of the host to `guest`.
    pub(super) fn allocate(&mut self, guest: u32) -> Ports {
        let host = self.host_ports.allocate(|host| self.ids.contains_key(&Ports { host, guest }));
        Ports { host, guest }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        /// Against a plain set: no two live connections have the same ports, and a port comes again only after
        /// all others have been tried.
        #[test]
        fn no_two_live_connections_share_their_ports(
            start in prop_oneof![Just(FIRST_HOST_PORT), END_OF_HOST_PORTS - 5..END_OF_HOST_PORTS],
            steps in proptest::collection::vec((0..3_u32, any::<bool>(), any::<prop::sample::Index>()), 1..crate::steps(200)),
        ) {
            let mut table = PortTable::new();
            table.host_ports.next = start;
            let mut live: Vec<Ports> = Vec::new();
            let mut seen = BTreeSet::new();
            for (id, (guest, close, which)) in (0..).zip(steps) {
                if close && !live.is_empty() {
                    let ports = live.swap_remove(which.index(live.len()));
                    let id = table.find(ports).expect("a live connection is in the table");
                    table.remove(ports, id);
                    prop_assert_eq!(table.find(ports), None);
                } else {
                    let ports = table.allocate(guest);
                    prop_assert!((FIRST_HOST_PORT..END_OF_HOST_PORTS).contains(&ports.host));
                    prop_assert!(!live.contains(&ports));
                    prop_assert!(seen.insert(ports.host), "reused before all others");
                    table.insert(ports, id);
                    live.push(ports);
                }
                prop_assert_eq!(table.ids.len(), live.len());
            }
        }
    }

    #[test]
    fn ports_go_round_past_those_in_use() {
        let mut ports = HostPorts { next: END_OF_HOST_PORTS - 1 };
        assert_eq!(ports.allocate(|_| false), END_OF_HOST_PORTS - 1);
        assert_eq!(ports.allocate(|port| port < FIRST_HOST_PORT + 2), FIRST_HOST_PORT + 2);
    }

    #[test]
    fn striking_out_an_old_connection_leaves_the_new_one_with_its_ports() {
        let ports = Ports { host: 5, guest: 6 };
        let mut table = PortTable::new();
        table.insert(ports, 1);
        table.insert(ports, 2);
        table.remove(ports, 1);
        assert_eq!(table.find(ports), Some(2));
    }
}
