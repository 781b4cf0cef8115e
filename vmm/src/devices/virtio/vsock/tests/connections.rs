//! How connections come and go.

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::devices::virtio::vsock::multiplexer::{
    CLOSE_TIMEOUT, HANDSHAKE_TIMEOUT, MAX_CONNECTIONS, MAX_HANDSHAKES, REQUEST_TIMEOUT,
};
use crate::devices::virtio::vsock::packet::{
    Header, Operation, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND,
};
use crate::devices::virtio::vsock::test_guest::{TestGuest, read_all};

const HOST: u32 = 1024;
const GUEST: u32 = 5000;

fn shutdown(flags: u32) -> Header {
    Header { flags, ..TestGuest::header(HOST, GUEST, Operation::Shutdown) }
}

/// Whether the other end of a socket has closed it, or shut down its sending.
fn has_ended(socket: &UnixStream) -> bool {
    read_all(socket) == (Vec::new(), true)
}

#[test]
fn a_connection_of_the_host_is_answered_with_its_port_and_carries_bytes_both_ways() {
    let mut guest = TestGuest::new();
    let (mut client, port) = guest.connect_to_guest(1024);
    client.write_all(b"hello").unwrap();
    let (header, data) = guest.receive().unwrap();
    assert_eq!((header.src_port, header.dst_port, &data[..]), (port, 1024, &b"hello"[..]));
    guest.send(&TestGuest::header(port, 1024, Operation::ReadWrite), b"world");
    assert_eq!(read_all(&client), (b"world".to_vec(), false));
}

#[test]
fn what_a_client_sends_before_the_answer_reaches_the_guest_after_it() {
    let mut guest = TestGuest::new();
    let client = guest.client("CONNECT 7\nearly");
    client.shutdown(Shutdown::Write).unwrap();
    let (request, _) = guest.receive().unwrap();
    assert_eq!(guest.receive(), None, "the guest has not accepted");
    guest.send(&TestGuest::header(request.src_port, 7, Operation::Response), &[]);
    assert_eq!(guest.receive().unwrap().1, b"early");
    let (end, _) = guest.receive().unwrap();
    assert_eq!((end.op, end.flags), (Operation::Shutdown as u16, SHUTDOWN_SEND));
}

#[test]
fn a_connection_that_the_guest_refuses_is_closed_without_a_word() {
    let mut guest = TestGuest::new();
    let client = guest.client("CONNECT 7\n");
    let (request, _) = guest.receive().unwrap();
    guest.send(&TestGuest::header(request.src_port, 7, Operation::Reset), &[]);
    assert!(has_ended(&client));
    assert_eq!(guest.receive(), None);
    guest.assert_empty();
}

#[test]
fn a_client_that_leaves_before_the_guest_has_answered_takes_its_request_back() {
    let mut guest = TestGuest::new();
    drop(guest.client("CONNECT 7\n"));
    assert_eq!(guest.receive(), None, "the guest never heard of it");
    let client = guest.client("CONNECT 7\n");
    guest.poll();
    drop(client);
    assert_eq!(guest.receive(), None, "nor of one whose request was waiting for room");
    guest.assert_empty();
    let client = guest.client("CONNECT 7\n");
    assert_eq!(guest.receive_operation(), Some(Operation::Request));
    drop(client);
    assert_eq!(guest.receive_operation(), Some(Operation::Reset));
    guest.assert_empty();
}

#[test]
fn patience_with_a_silent_client_and_with_a_silent_guest_ends() {
    let mut guest = TestGuest::new();
    let silent = guest.client("CONN");
    guest.poll();
    guest.wait(HANDSHAKE_TIMEOUT - Duration::from_nanos(1));
    assert!(!has_ended(&silent));
    guest.wait(Duration::from_nanos(1));
    assert!(has_ended(&silent));

    let client = guest.client("CONNECT 7\n");
    assert_eq!(guest.receive_operation(), Some(Operation::Request));
    guest.wait(REQUEST_TIMEOUT);
    assert!(has_ended(&client));
    assert_eq!(guest.receive_operation(), Some(Operation::Reset));
    guest.assert_empty();
}

#[test]
fn a_connection_outlives_the_patience_for_its_beginning() {
    let mut guest = TestGuest::new();
    let (client, _) = guest.connect_to_guest(7);
    guest.wait(10 * REQUEST_TIMEOUT);
    assert!(!has_ended(&client));
    assert_eq!(guest.receive(), None);
}

#[test]
fn a_port_that_nobody_serves_refuses_the_guest() {
    let mut guest = TestGuest::new();
    guest.send(&TestGuest::header(0, GUEST, Operation::Request), &[]);
    let (header, _) = guest.receive().unwrap();
    assert_eq!((header.op, header.src_port, header.dst_port), (Operation::Reset as u16, 0, GUEST));
    guest.assert_empty();
}

#[test]
fn a_guest_that_closes_is_answered_with_a_reset_after_its_bytes_are_delivered() {
    let mut guest = TestGuest::new();
    let host = guest.connect_to_host(HOST, GUEST);
    let bytes = vec![7; 60_000];
    guest.send(&TestGuest::header(HOST, GUEST, Operation::ReadWrite), &bytes);
    guest.send(&shutdown(SHUTDOWN_BOTH), &[]);
    assert_eq!(guest.receive(), None, "the host has not read everything");
    let mut read = Vec::new();
    while guest.receive_operation() != Some(Operation::Reset) {
        read.extend(read_all(&host).0);
    }
    read.extend(read_all(&host).0);
    assert_eq!(read, bytes);
    assert!(has_ended(&host));
    guest.assert_empty();
}

#[test]
fn bytes_that_the_guest_announced_as_its_last_survive_its_reset() {
    let mut guest = TestGuest::new();
    let host = guest.connect_to_host(HOST, GUEST);
    let bytes = vec![7; 60_000];
    guest.send(&TestGuest::header(HOST, GUEST, Operation::ReadWrite), &bytes);
    guest.send(&shutdown(SHUTDOWN_BOTH), &[]);
    guest.send(&TestGuest::header(HOST, GUEST, Operation::Reset), &[]);
    // The ports are free for another connection.
    let other = guest.connect_to_host(HOST, GUEST);
    let mut read = Vec::new();
    let ended = loop {
        let (more, ended) = read_all(&host);
        read.extend(more);
        guest.poll();
        if ended || read.len() > bytes.len() {
            break ended;
        }
    };
    assert!(ended);
    assert_eq!(read, bytes);
    assert!(!has_ended(&other));
    guest.send(&TestGuest::header(HOST, GUEST, Operation::Reset), &[]);
    guest.assert_empty();
}

#[test]
fn a_reset_out_of_the_blue_drops_what_was_not_delivered() {
    let mut guest = TestGuest::new();
    let host = guest.connect_to_host(HOST, GUEST);
    guest.send(&TestGuest::header(HOST, GUEST, Operation::ReadWrite), &[7; 60_000]);
    guest.send(&TestGuest::header(HOST, GUEST, Operation::Reset), &[]);
    guest.assert_empty();
    let (read, ended) = read_all(&host);
    assert!(ended && read.len() < 60_000);
}

#[test]
fn a_half_close_of_the_guest_ends_one_direction_only() {
    let mut guest = TestGuest::new();
    let mut host = guest.connect_to_host(HOST, GUEST);
    guest.send(&TestGuest::header(HOST, GUEST, Operation::ReadWrite), b"last");
    guest.send(&shutdown(SHUTDOWN_SEND), &[]);
    assert_eq!(read_all(&host), (b"last".to_vec(), true));
    host.write_all(b"more").unwrap();
    assert_eq!(guest.receive().unwrap().1, b"more");
    drop(host);
    let (end, _) = guest.receive().unwrap();
    assert_eq!((end.op, end.flags), (Operation::Shutdown as u16, SHUTDOWN_BOTH));
}

#[test]
fn a_guest_that_receives_no_more_makes_the_hosts_writes_fail() {
    let mut guest = TestGuest::new();
    let mut host = guest.connect_to_host(HOST, GUEST);
    guest.send(&shutdown(SHUTDOWN_RECEIVE), &[]);
    assert_eq!(host.write(b"x").unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
    guest.send(&TestGuest::header(HOST, GUEST, Operation::ReadWrite), b"still");
    assert_eq!(read_all(&host), (b"still".to_vec(), false));
    assert_eq!(guest.receive(), None);
}

#[test]
fn a_half_close_of_the_host_ends_one_direction_only() {
    let mut guest = TestGuest::new();
    let mut host = guest.connect_to_host(HOST, GUEST);
    host.write_all(b"last").unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.receive().unwrap().1, b"last");
    let (end, _) = guest.receive().unwrap();
    assert_eq!((end.op, end.flags), (Operation::Shutdown as u16, SHUTDOWN_SEND));
    guest.send(&TestGuest::header(HOST, GUEST, Operation::ReadWrite), b"answer");
    assert_eq!(read_all(&host), (b"answer".to_vec(), false));
    guest.send(&shutdown(SHUTDOWN_BOTH), &[]);
    assert_eq!(guest.receive_operation(), Some(Operation::Reset));
    assert!(has_ended(&host));
}

#[test]
fn a_host_that_closes_is_announced_after_its_bytes_and_given_up_when_the_guest_says_nothing() {
    let mut guest = TestGuest::new();
    let mut host = guest.connect_to_host(HOST, GUEST);
    host.write_all(b"last").unwrap();
    drop(host);
    assert_eq!(guest.receive().unwrap().1, b"last");
    let (end, _) = guest.receive().unwrap();
    assert_eq!((end.op, end.flags), (Operation::Shutdown as u16, SHUTDOWN_BOTH));
    // What was on its way is dropped, and its room is given back.
    guest.send(&TestGuest::header(HOST, GUEST, Operation::ReadWrite), &[1; 50_000]);
    guest.wait(CLOSE_TIMEOUT - Duration::from_nanos(1));
    assert_eq!(guest.receive(), None);
    guest.wait(Duration::from_nanos(1));
    assert_eq!(guest.receive_operation(), Some(Operation::Reset));
    guest.assert_empty();
}

#[test]
fn an_end_of_the_host_is_told_to_a_guest_without_credit() {
    let mut guest = TestGuest::new();
    let request = Header { buf_alloc: 0, ..TestGuest::header(HOST, GUEST, Operation::Request) };
    guest.send(&request, &[]);
    assert_eq!(guest.receive_operation(), Some(Operation::Response));
    let host = guest.connector.accepted.borrow_mut().pop().unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.receive_operation(), Some(Operation::Shutdown));
}

#[test]
fn a_stalled_reader_stalls_no_other_stream() {
    let mut guest = TestGuest::new();
    let stalled = guest.connect_to_host(HOST, GUEST);
    let lively = guest.connect_to_host(HOST, GUEST + 1);
    guest.send(&TestGuest::header(HOST, GUEST, Operation::ReadWrite), &[1; 200_000]);
    for _ in 0..100 {
        guest.send(&TestGuest::header(HOST, GUEST + 1, Operation::ReadWrite), &[2; 3000]);
        assert_eq!(read_all(&lively), (vec![2; 3000], false));
    }
    assert!(!read_all(&stalled).0.is_empty());
}

#[test]
fn a_stream_that_goes_takes_its_own_turn_along_and_no_others() {
    let mut guest = TestGuest::new();
    let mut hosts: Vec<UnixStream> = (0..3).map(|index| guest.connect_to_host(HOST, GUEST + index)).collect();
    for host in &mut hosts {
        host.write_all(b"waiting").unwrap();
    }
    guest.poll();
    guest.send(&TestGuest::header(HOST, GUEST + 1, Operation::Reset), &[]);
    let mut served: Vec<u32> = Vec::new();
    while let Some((header, data)) = guest.receive_into(1000) {
        assert_eq!(data, b"waiting");
        served.push(header.dst_port);
    }
    served.sort_unstable();
    assert_eq!(served, [GUEST, GUEST + 2]);
}

#[test]
fn an_answer_comes_before_the_hosts_first_bytes() {
    let mut guest = TestGuest::new();
    guest.send(&TestGuest::header(HOST, GUEST, Operation::Request), &[]);
    let mut host = guest.connector.accepted.borrow_mut().pop().unwrap();
    host.write_all(b"hello").unwrap();
    assert_eq!(guest.receive_operation(), Some(Operation::Response));
    assert_eq!(guest.receive().unwrap().1, b"hello");
}

#[test]
fn what_a_host_leaves_unread_is_no_credit_lost_and_the_guest_hears_of_the_end() {
    let mut guest = TestGuest::new();
    let host = guest.connect_to_host(HOST, GUEST);
    guest.send(&TestGuest::header(HOST, GUEST, Operation::ReadWrite), &[7; 60_000]);
    drop(host);
    // First that it receives no more, then that it sends no more either.
    for flags in [SHUTDOWN_RECEIVE, SHUTDOWN_BOTH] {
        let (end, _) = guest.receive().unwrap();
        assert_eq!((end.op, end.flags, end.fwd_cnt), (Operation::Shutdown as u16, flags, 60_000));
    }
}

#[test]
fn streams_with_much_to_send_take_turns() {
    let mut guest = TestGuest::new();
    let mut hosts: Vec<UnixStream> = (0..3).map(|index| guest.connect_to_host(HOST, GUEST + index)).collect();
    for host in &mut hosts {
        host.write_all(&[9; 100_000]).unwrap();
    }
    guest.poll();
    let order: Vec<u32> = (0..9).map(|_| guest.receive_into(1000).unwrap().0.dst_port).collect();
    assert_eq!(order[..3], order[3..6]);
    assert_eq!(order[..3], order[6..]);
}

/// Opens connections to the host until one is refused, from the guest's ports from `first` on, and says how many there
/// are then.
fn connect_until_refused(guest: &mut TestGuest, first: u32) -> usize {
    for port in first.. {
        guest.send(&TestGuest::header(HOST, port, Operation::Request), &[]);
        match guest.receive_operation() {
            Some(Operation::Response) => {}
            other => {
                assert_eq!(other, Some(Operation::Reset));
                break;
            }
        }
    }
    guest.connector.accepted.borrow().len()
}

#[test]
fn there_is_a_most_of_clients_and_of_connections() {
    let mut guest = TestGuest::new();
    let clients: Vec<UnixStream> = (0..MAX_HANDSHAKES).map(|_| guest.client("")).collect();
    assert!(!guest.multiplexer.accepts_clients());
    // Those who have not said yet what they want are counted.
    assert_eq!(connect_until_refused(&mut guest, 0), MAX_CONNECTIONS - MAX_HANDSHAKES);
    drop(clients);
    while !guest.multiplexer.accepts_clients() {
        guest.poll();
    }
    assert_eq!(connect_until_refused(&mut guest, 10_000), MAX_CONNECTIONS);
    assert!(!guest.multiplexer.accepts_clients());
}
