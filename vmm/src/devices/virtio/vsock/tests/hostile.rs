//! Packets that no honest driver sends.

use std::os::unix::net::UnixStream;

use proptest::prelude::*;

use crate::devices::virtio::vsock::credit::LARGE_BUFFER;
use crate::devices::virtio::vsock::multiplexer::{MAX_CONNECTIONS, MAX_REPLIES};
use crate::devices::virtio::vsock::packet::{Header, Operation, SMALLEST_BUFFER};
use crate::devices::virtio::vsock::test_guest::{TestGuest, read_all};

const HOST: u32 = 1024;
const GUEST: u32 = 5000;

#[test]
fn packets_for_no_connection_are_answered_with_a_reset_and_resets_with_nothing() {
    let mut guest = TestGuest::new();
    for op in [2, 4, 5, 6, 7, 0, 8, 0xffff] {
        let stray = Header { op, ..TestGuest::header(HOST, GUEST, Operation::Request) };
        guest.send(&stray, &[]);
        let (reset, _) = guest.receive().unwrap();
        assert_eq!(
            (reset.op, reset.src_port, reset.dst_port),
            (Operation::Reset as u16, HOST, GUEST),
            "{op}"
        );
    }
    guest.send(&TestGuest::header(HOST, GUEST, Operation::Reset), &[]);
    assert_eq!(guest.receive(), None);
}

#[test]
fn another_address_or_another_socket_type_reaches_no_connection() {
    let mut guest = TestGuest::new();
    let host = guest.connect_to_host(HOST, GUEST);
    let data = TestGuest::header(HOST, GUEST, Operation::ReadWrite);
    guest.send(&Header { src_cid: 4, ..data }, b"spoofed");
    assert_eq!(guest.receive(), None, "there is nobody to answer");
    guest.send(&Header { dst_cid: 9, ..data }, b"astray");
    assert_eq!(guest.receive().unwrap().0.src_cid, 9);
    guest.send(&Header { socket_type: 2, ..data }, b"seqpacket");
    let (reset, _) = guest.receive().unwrap();
    assert_eq!((reset.op, reset.socket_type), (Operation::Reset as u16, 2));
    assert_eq!(read_all(&host), (Vec::new(), false), "the connection lives and has got nothing");
}

#[test]
fn a_broken_rule_resets_its_stream_and_no_other() {
    let rules: [(&str, Header, usize); 4] = [
        ("a second request", TestGuest::header(HOST, GUEST, Operation::Request), 0),
        ("a response to nothing", TestGuest::header(HOST, GUEST, Operation::Response), 0),
        ("more than the credit", TestGuest::header(HOST, GUEST, Operation::ReadWrite), 200_000),
        ("no operation", Header { op: 0, ..TestGuest::header(HOST, GUEST, Operation::Reset) }, 0),
    ];
    for (what, packet, bytes) in rules {
        let mut guest = TestGuest::new();
        let broken = guest.connect_to_host(HOST, GUEST);
        let other = guest.connect_to_host(HOST, GUEST + 1);
        for _ in 0..2 {
            guest.send(&packet, &vec![0; bytes]);
        }
        guest.poll();
        let mut operations = Vec::new();
        while let Some((header, _)) = guest.receive_into(4096) {
            operations.push(header.op);
        }
        assert_eq!(operations[0], Operation::Reset as u16, "{what}");
        assert!(read_all(&broken).1, "{what}");
        assert!(!read_all(&other).1, "{what}");
    }
}

#[test]
fn stray_packets_wait_when_the_guest_takes_no_answers() {
    let mut guest = TestGuest::new();
    let stray = TestGuest::header(HOST, GUEST, Operation::ReadWrite);
    let mut sent = 0;
    while guest.multiplexer.accepts_packets() {
        guest.send(&stray, &[]);
        sent += 1;
    }
    assert_eq!(sent, MAX_REPLIES);
    assert_eq!(guest.receive_operation(), Some(Operation::Reset));
    assert!(guest.multiplexer.accepts_packets());
}

#[test]
fn a_million_half_open_requests_leave_nothing_behind() {
    let mut guest = TestGuest::new();
    // Opened and abandoned without ever taking an answer, then opened and left.
    for port in 0..1_000_000 {
        if !guest.multiplexer.accepts_packets() {
            while guest.receive_into(SMALLEST_BUFFER).is_some() {}
        }
        guest.send(&TestGuest::header(HOST, port, Operation::Request), &[]);
        if port % 2 == 0 {
            guest.send(&TestGuest::header(HOST, port, Operation::Reset), &[]);
        }
        guest.connector.accepted.borrow_mut().clear();
        assert!(guest.multiplexer.connections() <= MAX_CONNECTIONS);
        assert!(guest.multiplexer.queued() <= 2 * MAX_CONNECTIONS + MAX_REPLIES);
    }
}

/// What a guest without manners does.
#[derive(Debug, Clone)]
enum Deed {
    Packet { op: u16, host: u32, guest: u32, flags: u32, buf_alloc: u32, fwd_cnt: u32, bytes: usize },
    Receive { size: usize },
    ClientConnects(u32),
    HostReads,
    HostWrites,
    HostLeaves,
    Poll,
    Time(u64),
}

fn deed() -> impl Strategy<Value = Deed> {
    let host = prop_oneof![4 => 0..3_u32, 1 => (1 << 30)..(1 << 30) + 3_u32];
    let number = prop_oneof![Just(0), Just(1), Just(u32::MAX), 0..1_000_000_u32, any::<u32>()];
    let op = prop_oneof![8 => 1..8_u16, 1 => any::<u16>()];
    let bytes = prop_oneof![Just(0_usize), 0..100_usize, 0..70_000_usize];
    prop_oneof![
        8 => (op, host, 0..3_u32, 0..5_u32, number.clone(), number, bytes).prop_map(
            |(op, host, guest, flags, buf_alloc, fwd_cnt, bytes)| Deed::Packet {
                op, host, guest, flags, buf_alloc, fwd_cnt, bytes
            }
        ),
        4 => (SMALLEST_BUFFER..5000).prop_map(|size| Deed::Receive { size }),
        2 => (0..3_u32).prop_map(Deed::ClientConnects),
        1 => Just(Deed::HostReads),
        1 => Just(Deed::HostWrites),
        1 => Just(Deed::HostLeaves),
        2 => Just(Deed::Poll),
        1 => (0..6_u64).prop_map(Deed::Time),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever is sent in whatever order: no panic, everything stays within its bounds, and when all are gone
    /// nothing is left.
    #[test]
    fn no_sequence_of_packets_grows_or_wedges_the_device(deeds in proptest::collection::vec(deed(), 0..150)) {
        let mut guest = TestGuest::new();
        let mut hosts: Vec<UnixStream> = Vec::new();
        for deed in deeds {
            match deed {
                Deed::Packet { op, host, guest: port, flags, buf_alloc, fwd_cnt, bytes } => {
                    if guest.multiplexer.accepts_packets() {
                        let header = TestGuest::header(host, port, Operation::Request);
                        guest.send(&Header { op, flags, buf_alloc, fwd_cnt, ..header }, &vec![1; bytes]);
                        hosts.extend(guest.connector.accepted.borrow_mut().drain(..));
                    }
                }
                Deed::Receive { size } => drop(guest.receive_into(size)),
                Deed::ClientConnects(port) => hosts.push(guest.client(&format!("CONNECT {port}\n"))),
                Deed::HostReads => hosts.iter().for_each(|host| drop(read_all(host))),
                Deed::HostWrites => hosts.iter().for_each(|mut host| drop(std::io::Write::write(&mut host, &[2; 999]))),
                Deed::HostLeaves => drop(hosts.pop()),
                Deed::Poll => guest.poll(),
                Deed::Time(seconds) => guest.wait(std::time::Duration::from_secs(seconds)),
            }
            prop_assert!(guest.multiplexer.queued() <= MAX_REPLIES + 150);
            let connections = u32::try_from(guest.multiplexer.connections()).unwrap();
            prop_assert!(guest.multiplexer.promised() <= connections * LARGE_BUFFER);
        }
        hosts.clear();
        guest.poll();
        while guest.receive_into(4096).is_some() {}
        // The host's clients may have left bytes for which the guest has never granted credit.
        for host in (0..3).chain((1 << 30)..(1 << 30) + 150) {
            for port in 0..3 {
                guest.send(&TestGuest::header(host, port, Operation::Reset), &[]);
            }
        }
        guest.poll();
        guest.assert_empty();
    }
}
