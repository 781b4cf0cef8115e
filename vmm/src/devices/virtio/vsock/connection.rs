//! One stream between a host socket and the guest, as a state machine without any input or output of its own.

use bitflags::bitflags;

use super::credit::Credit;
use super::packet::{
    HOST_CID, Header, Operation, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM,
};

/// What tells a connection from every other of the same guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ports {
    pub(super) host: u32,
    pub(super) guest: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The host wants to connect and the guest has not heard of it.
    Wanted,
    /// The guest was asked and has not answered.
    Requested,
    Established,
}

bitflags! {
    /// Packets to send that carry no bytes of the stream. Each kind is pending at most once.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Pending: u8 {
        const REQUEST = 1 << 0;
        const RESPONSE = 1 << 1;
        const CREDIT_UPDATE = 1 << 2;
        const CREDIT_REQUEST = 1 << 3;
        const SHUTDOWN = 1 << 4;
    }
}

/// What a packet from the guest means for the connection that it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is dealt with.
    Done,
    /// The guest has accepted the connection.
    Connected,
    /// Its bytes are the stream's next ones.
    Payload,
    /// The guest will send or receive no more: see [`Connection::guest_sends`] and [`Connection::guest_receives`].
    GuestShutdown,
    /// The guest knows of no such connection (any more).
    Reset,
    /// The guest broke the rules: the connection is to be reset.
    Violation,
}

/// One stream.
#[derive(Debug)]
pub(super) struct Connection {
    ports: Ports,
    guest_cid: u64,
    phase: Phase,
    pub(super) credit: Credit,
    /// `SHUTDOWN_*` that the guest has announced.
    guest_shutdown: u32,
    /// `SHUTDOWN_*` that is announced to the guest, or about to be.
    host_shutdown: u32,
    pending: Pending,
    /// The guest was asked for credit and has not granted any since.
    credit_requested: bool,
}

impl Connection {
    /// A connection that the host wants.
    pub(super) fn to_guest(ports: Ports, guest_cid: u64, buf_alloc: u32) -> Self {
        Self::new(ports, guest_cid, buf_alloc, Phase::Wanted, Pending::REQUEST)
    }

    /// A connection that the guest has asked for by `request`, accepted.
    pub(super) fn from_guest(ports: Ports, guest_cid: u64, buf_alloc: u32, request: &Header) -> Self {
        let mut connection = Self::new(ports, guest_cid, buf_alloc, Phase::Established, Pending::RESPONSE);
        connection.credit.peer_tells(request.buf_alloc, request.fwd_cnt);
        connection
    }

    fn new(ports: Ports, guest_cid: u64, buf_alloc: u32, phase: Phase, pending: Pending) -> Self {
        Self {
            ports,
            guest_cid,
            phase,
            credit: Credit::new(buf_alloc),
            guest_shutdown: 0,
            host_shutdown: 0,
            pending,
            credit_requested: false,
        }
    }

    pub(super) fn ports(&self) -> Ports {
        self.ports
    }

    /// Whether both ends know of the connection.
    pub(super) fn is_established(&self) -> bool {
        self.phase == Phase::Established
    }

    /// Whether the guest has heard of the connection, so that it is to hear of its end.
    pub(super) fn is_known_to_guest(&self) -> bool {
        self.phase != Phase::Wanted
    }

    /// Whether the guest may still send bytes.
    pub(super) fn guest_sends(&self) -> bool {
        self.guest_shutdown & SHUTDOWN_SEND == 0
    }

    /// Whether the guest may still receive bytes.
    pub(super) fn guest_receives(&self) -> bool {
        self.guest_shutdown & SHUTDOWN_RECEIVE == 0
    }

    /// Whether bytes of the host are to be sent, credit permitting.
    pub(super) fn carries_host_data(&self) -> bool {
        self.is_established() && self.guest_receives() && self.host_shutdown & SHUTDOWN_SEND == 0
    }

    /// Whether the guest wants nothing any more and only a reset is left to be said, once the bytes that it
    /// has sent are delivered.
    pub(super) fn guest_is_done(&self) -> bool {
        self.guest_shutdown == SHUTDOWN_BOTH
    }

    /// Whether the guest has been told that the host is gone, and owes a reset.
    pub(super) fn awaits_reset(&self) -> bool {
        self.host_shutdown == SHUTDOWN_BOTH && !self.pending.contains(Pending::SHUTDOWN)
    }

    /// Takes in a packet of this connection. Its type is [`TYPE_STREAM`] and its bytes are as many as it says.
    pub(super) fn on_packet(&mut self, header: &Header) -> Verdict {
        let Some(operation) = Operation::from_wire(header.op) else { return Verdict::Violation };
        self.credit.peer_tells(header.buf_alloc, header.fwd_cnt);
        if self.credit.sendable() > 0 {
            self.credit_requested = false;
        }
        match (operation, self.phase) {
            (Operation::Reset, _) => Verdict::Reset,
            (Operation::Response, Phase::Requested) => {
                self.phase = Phase::Established;
                Verdict::Connected
            }
            (Operation::ReadWrite, Phase::Established) => self.on_payload(header.len),
            (Operation::Shutdown, Phase::Established) => {
                self.guest_shutdown |= header.flags & SHUTDOWN_BOTH;
                Verdict::GuestShutdown
            }
            (Operation::CreditUpdate, Phase::Established) => Verdict::Done,
            (Operation::CreditRequest, Phase::Established) => {
                self.pending |= Pending::CREDIT_UPDATE;
                Verdict::Done
            }
            _ => Verdict::Violation,
        }
    }

    fn on_payload(&mut self, length: u32) -> Verdict {
        if !self.guest_sends() || self.credit.receive(length).is_err() {
            return Verdict::Violation;
        }
        Verdict::Payload
    }

    /// `count` bytes of the guest are no longer in the device's keeping.
    pub(super) fn forwarded(&mut self, count: u32) {
        self.credit.forward(count);
        if self.credit.update_due() && self.guest_sends() {
            self.pending |= Pending::CREDIT_UPDATE;
        }
    }

    /// There are bytes for the guest and no credit to send them.
    pub(super) fn want_credit(&mut self) {
        if !self.credit_requested {
            self.credit_requested = true;
            self.pending |= Pending::CREDIT_REQUEST;
        }
    }

    /// The host will send no more bytes: all that it sent have been read.
    pub(super) fn host_stops_sending(&mut self) {
        self.announce(SHUTDOWN_SEND);
    }

    /// The host will receive no more bytes.
    pub(super) fn host_stops_receiving(&mut self) {
        self.announce(SHUTDOWN_RECEIVE);
    }

    fn announce(&mut self, direction: u32) {
        if self.host_shutdown & direction == 0 {
            self.host_shutdown |= direction;
            self.pending |= Pending::SHUTDOWN;
        }
    }

    /// Whether [`next_control`](Self::next_control) has something.
    pub(super) fn has_control(&self) -> bool {
        !self.pending.is_empty()
    }

    /// The next packet without bytes that the guest is to get; the caller sends it. What must come first does.
    pub(super) fn next_control(&mut self) -> Option<Header> {
        let next = self.pending.iter().next()?;
        self.pending.remove(next);
        let operation = match next {
            Pending::REQUEST => {
                self.phase = Phase::Requested;
                Operation::Request
            }
            Pending::RESPONSE => Operation::Response,
            Pending::CREDIT_UPDATE => Operation::CreditUpdate,
            Pending::CREDIT_REQUEST => Operation::CreditRequest,
            _ => Operation::Shutdown,
        };
        let flags = if operation == Operation::Shutdown { self.host_shutdown } else { 0 };
        Some(Header { flags, ..self.header(operation) })
    }

    /// The header of a packet with `length` bytes of the host; the caller sends it with them. No more than
    /// the credit allows.
    pub(super) fn data(&mut self, length: u32) -> Header {
        self.credit.note_sent(length);
        Header { len: length, ..self.header(Operation::ReadWrite) }
    }

    /// The packet that ends the connection at once.
    pub(super) fn reset(&mut self) -> Header {
        self.header(Operation::Reset)
    }

    /// Every packet tells the guest of the room in the device's buffer, which makes a pending update unnecessary.
    fn header(&mut self, operation: Operation) -> Header {
        self.pending.remove(Pending::CREDIT_UPDATE);
        Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: self.ports.host,
            dst_port: self.ports.guest,
            len: 0,
            socket_type: TYPE_STREAM,
            op: operation as u16,
            flags: 0,
            buf_alloc: self.credit.buf_alloc(),
            fwd_cnt: self.credit.advertise(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORTS: Ports = Ports { host: 1 << 30, guest: 1024 };

    fn packet(operation: Operation) -> Header {
        Header { op: operation as u16, buf_alloc: 1000, ..Header::default() }
    }

    fn established() -> Connection {
        let mut connection = Connection::from_guest(PORTS, 3, 4096, &packet(Operation::Request));
        assert_eq!(operation(connection.next_control()), Some(Operation::Response));
        connection
    }

    fn operation(header: Option<Header>) -> Option<Operation> {
        header.and_then(|header| Operation::from_wire(header.op))
    }

    #[test]
    fn a_host_connection_is_established_by_the_response_and_by_nothing_else() {
        for wrong in [Operation::ReadWrite, Operation::Shutdown, Operation::CreditUpdate, Operation::Request]
        {
            let mut connection = Connection::to_guest(PORTS, 3, 4096);
            assert_eq!(operation(connection.next_control()), Some(Operation::Request));
            assert_eq!(connection.on_packet(&packet(wrong)), Verdict::Violation);
        }
        let mut connection = Connection::to_guest(PORTS, 3, 4096);
        assert_eq!(connection.on_packet(&packet(Operation::Response)), Verdict::Violation, "not asked yet");
        let request = connection.next_control().unwrap();
        assert_eq!((request.src_port, request.dst_port, request.dst_cid), (1 << 30, 1024, 3));
        assert_eq!(connection.on_packet(&packet(Operation::Response)), Verdict::Connected);
        assert!(connection.carries_host_data());
        assert_eq!(connection.on_packet(&packet(Operation::Response)), Verdict::Violation);
    }

    #[test]
    fn a_half_closed_guest_still_receives() {
        let mut connection = established();
        let shutdown = Header { flags: SHUTDOWN_SEND, ..packet(Operation::Shutdown) };
        assert_eq!(connection.on_packet(&shutdown), Verdict::GuestShutdown);
        assert!(!connection.guest_sends());
        assert!(connection.carries_host_data());
        assert!(!connection.guest_is_done());
        let data = Header { len: 1, ..packet(Operation::ReadWrite) };
        assert_eq!(connection.on_packet(&data), Verdict::Violation, "it said that it would send no more");
    }

    #[test]
    fn shutdown_flags_add_up_in_either_order() {
        for (first, second) in [(SHUTDOWN_SEND, SHUTDOWN_RECEIVE), (SHUTDOWN_RECEIVE, SHUTDOWN_SEND)] {
            let mut connection = established();
            for flags in [first, second] {
                assert!(!connection.guest_is_done());
                connection.on_packet(&Header { flags, ..packet(Operation::Shutdown) });
            }
            assert!(connection.guest_is_done());
        }
    }

    #[test]
    fn the_second_shutdown_of_the_host_repeats_the_first() {
        let mut connection = established();
        connection.host_stops_sending();
        assert_eq!(connection.next_control().unwrap().flags, SHUTDOWN_SEND);
        assert!(!connection.awaits_reset());
        connection.host_stops_sending();
        assert!(!connection.has_control(), "nothing new to tell");
        connection.host_stops_receiving();
        assert!(!connection.awaits_reset(), "the guest has not been told");
        assert_eq!(connection.next_control().unwrap().flags, SHUTDOWN_BOTH);
        assert!(connection.awaits_reset());
    }

    #[test]
    fn credit_is_asked_for_once_until_some_is_granted() {
        let mut connection = established();
        connection.data(1000);
        connection.want_credit();
        assert_eq!(operation(connection.next_control()), Some(Operation::CreditRequest));
        connection.on_packet(&packet(Operation::CreditUpdate));
        connection.want_credit();
        assert!(!connection.has_control(), "the update granted nothing");
        connection.on_packet(&Header { fwd_cnt: 1000, ..packet(Operation::CreditUpdate) });
        connection.data(1000);
        connection.want_credit();
        assert_eq!(operation(connection.next_control()), Some(Operation::CreditRequest));
    }

    #[test]
    fn data_tells_of_freed_room_so_that_no_update_follows() {
        let mut connection = established();
        let data = Header { len: 4096, ..packet(Operation::ReadWrite) };
        assert_eq!(connection.on_packet(&data), Verdict::Payload);
        connection.forwarded(4096);
        assert!(connection.has_control());
        assert_eq!(connection.data(10).fwd_cnt, 4096);
        assert!(!connection.has_control());
    }

    #[test]
    fn operations_that_do_not_exist_are_violations() {
        for op in [0, 8, u16::MAX] {
            assert_eq!(established().on_packet(&Header { op, ..Header::default() }), Verdict::Violation);
        }
    }
}
