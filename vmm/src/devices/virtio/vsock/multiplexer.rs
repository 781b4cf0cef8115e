//! All connections of a guest, and the turns they take.
//!
//! Data flows through without rest: what the guest sends is written to the host's socket from guest memory, what
//! the host sends is read from its socket into guest memory. Only what a socket does not take is kept, within the
//! credit that the guest was given, so that a slow reader stalls its own stream and no other.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;

use super::connection::{Connection, Ports, Verdict};
use super::connector::Connector;
use super::credit::Budget;
use super::deadlines::Deadlines;
use super::handshake::{Handshake, Progress};
use super::host_stream::HostStream;
use super::packet::{HEADER_SIZE, HOST_CID, Header, Operation, TYPE_STREAM};
use super::stream::{Stream, WATCH_READABLE};
use super::table::PortTable;
use crate::control::LONGEST_PATIENCE;
use crate::devices::virtio::chain::GuestSlices;
use crate::devices::virtio::poller::Poller;

/// The most connections at a time, of either side's making.
pub(super) const MAX_CONNECTIONS: usize = 1023;
/// The most host clients at a time that have not said yet what they want. Further ones wait in the backlog.
pub(super) const MAX_HANDSHAKES: usize = 64;
/// With so many answers to stray packets waiting for room in the guest, the guest's packets wait as well.
pub(super) const MAX_REPLIES: usize = 128;
/// How long a host client may take to say what it wants.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the guest may take to answer a connection request. A client that is out of patience before leaves, which takes its
/// request back.
pub(super) const REQUEST_TIMEOUT: Duration = LONGEST_PATIENCE;
/// How long the guest may take to reset a connection that the host has closed (Linux waits 8 s as well).
pub(super) const CLOSE_TIMEOUT: Duration = Duration::from_secs(8);

/// Numbers below are for events that are not the multiplexer's.
pub(super) const FIRST_ID: u64 = 16;

/// All connections of a guest.
pub(super) struct Multiplexer {
    guest_cid: u64,
    poller: Rc<Poller>,
    handshakes: BTreeMap<u64, (Handshake, Instant)>,
    streams: BTreeMap<u64, Stream>,
    ports: PortTable,
    /// Streams that may have a packet for the guest, in the order of their turns.
    turns: VecDeque<u64>,
    /// Resets, for connections that are gone or never were.
    replies: VecDeque<Header>,
    deadlines: Deadlines,
    budget: Budget,
    next_id: u64,
}

impl Multiplexer {
    pub(super) fn new(guest_cid: u64, poller: Rc<Poller>) -> Self {
        Self {
            guest_cid,
            poller,
            handshakes: BTreeMap::new(),
            streams: BTreeMap::new(),
            ports: PortTable::new(),
            turns: VecDeque::new(),
            replies: VecDeque::new(),
            deadlines: Deadlines::default(),
            budget: Budget::default(),
            next_id: FIRST_ID,
        }
    }

    /// Whether a packet of the guest may be taken in now.
    pub(super) fn accepts_packets(&self) -> bool {
        self.replies.len() < MAX_REPLIES
    }

    /// Whether a host client may be taken in now.
    pub(super) fn accepts_clients(&self) -> bool {
        self.handshakes.len() < MAX_HANDSHAKES && self.handshakes.len() + self.streams.len() < MAX_CONNECTIONS
    }

    /// Whether there may be a packet for the guest.
    pub(super) fn has_packets(&self) -> bool {
        !self.replies.is_empty() || !self.turns.is_empty()
    }

    /// How long nothing need be done if nothing happens.
    pub(super) fn patience(&self, now: Instant) -> Option<Duration> {
        self.deadlines.wait(now)
    }

    /// Takes in a host client that has just been accepted.
    pub(super) fn add_client(&mut self, socket: UnixStream, now: Instant) {
        let id = self.new_id();
        // It is let go if it cannot be watched, for want of kernel memory.
        if self.poller.add(&socket, id, WATCH_READABLE).is_ok() {
            let deadline = self.deadlines.set(id, now, HANDSHAKE_TIMEOUT);
            self.handshakes.insert(id, (Handshake::new(socket), deadline));
        }
    }

    /// Something happened to the socket with this number.
    pub(super) fn on_event(&mut self, id: u64, events: EventFlags, now: Instant) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.on_event(events);
            if stream.is_abandoned() {
                self.reset(id);
            }
            self.settle(id, now);
        } else if let Some((handshake, deadline)) = self.handshakes.remove(&id) {
            match advance(&handshake, events) {
                Progress::Waiting => {
                    self.handshakes.insert(id, (handshake, deadline));
                }
                Progress::Refused => self.deadlines.cancel(id, deadline),
                Progress::Connect(port) => {
                    self.deadlines.cancel(id, deadline);
                    self.connect_to_guest(id, handshake.into_socket(), port, now);
                }
            }
        }
    }

    /// Gives up what has taken too long.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some(id) = self.deadlines.pop_expired(now) {
            self.handshakes.remove(&id);
            self.reset(id);
        }
    }

    /// Takes in a packet of the guest. `data` is what follows the header in the chain.
    pub(super) fn on_packet(
        &mut self,
        header: &Header,
        data: GuestSlices<'_>,
        connector: &mut dyn Connector,
        now: Instant,
    ) {
        if header.src_cid != self.guest_cid {
            // There is nobody else to answer.
            return;
        }
        if header.dst_cid != HOST_CID || header.socket_type != TYPE_STREAM {
            self.replies.extend(header.reset_reply());
            return;
        }
        match self.ports.find(Ports { host: header.dst_port, guest: header.src_port }) {
            Some(id) => self.on_stream_packet(id, header, data, now),
            None if header.op == Operation::Request as u16 => self.connect_to_host(header, connector, now),
            None => self.replies.extend(header.reset_reply()),
        }
    }

    /// Puts the next packet for the guest into `buffer`, of at least [`SMALLEST_BUFFER`](super::packet::SMALLEST_BUFFER)
    /// bytes, and says how long it is. `None`: there is none.
    pub(super) fn next_packet(&mut self, mut buffer: GuestSlices<'_>, now: Instant) -> Option<usize> {
        let head = buffer.split_to(HEADER_SIZE).ok()?;
        if let Some(reply) = self.replies.pop_front() {
            head.copy_from(&reply.to_wire()).ok()?;
            return Some(HEADER_SIZE);
        }
        while let Some(id) = self.turns.pop_front() {
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            stream.is_scheduled = false;
            let length = stream.next_packet(&head, &buffer);
            self.settle(id, now);
            if length.is_some() {
                return length;
            }
        }
        None
    }

    fn on_stream_packet(&mut self, id: u64, header: &Header, data: GuestSlices<'_>, now: Instant) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        match stream.connection.on_packet(header) {
            Verdict::Done => stream.on_credit(),
            Verdict::Connected => {
                stream.on_connected();
                if let Some(deadline) = stream.deadline.take() {
                    self.deadlines.cancel(id, deadline);
                }
            }
            Verdict::Payload => {
                stream.on_credit();
                stream.on_payload(data);
            }
            Verdict::GuestShutdown => stream.on_guest_shutdown(),
            Verdict::Reset => self.on_reset(id),
            Verdict::Violation => self.reset(id),
        }
        self.settle(id, now);
    }

    fn on_reset(&mut self, id: u64) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if !stream.becomes_orphan() {
            self.remove(id);
            return;
        }
        self.ports.remove(stream.connection.ports(), id);
        if let Some(deadline) = stream.deadline.take() {
            self.deadlines.cancel(id, deadline);
        }
    }

    fn connect_to_host(&mut self, request: &Header, connector: &mut dyn Connector, now: Instant) {
        let socket = if self.streams.len() + self.handshakes.len() < MAX_CONNECTIONS {
            connector.connect(request.dst_port).ok()
        } else {
            None
        };
        let id = self.new_id();
        let Some(socket) = socket.filter(|socket| self.poller.add(socket, id, WATCH_READABLE).is_ok()) else {
            self.replies.extend(request.reset_reply());
            return;
        };
        let ports = Ports { host: request.dst_port, guest: request.src_port };
        let buffer = self.budget.promise();
        let connection = Connection::from_guest(ports, self.guest_cid, buffer, request);
        self.add_stream(id, connection, socket, now);
    }

    fn connect_to_guest(&mut self, id: u64, socket: UnixStream, port: u32, now: Instant) {
        let ports = self.ports.allocate(port);
        let connection = Connection::to_guest(ports, self.guest_cid, self.budget.promise());
        self.add_stream(id, connection, socket, now);
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.deadline = Some(self.deadlines.set(id, now, REQUEST_TIMEOUT));
        }
    }

    fn add_stream(&mut self, id: u64, connection: Connection, socket: UnixStream, now: Instant) {
        self.ports.insert(connection.ports(), id);
        let host = HostStream::new(socket, connection.credit.buf_alloc());
        self.streams.insert(id, Stream::new(connection, host));
        self.settle(id, now);
    }

    /// Draws the conclusions from whatever happened to a stream.
    fn settle(&mut self, id: u64, now: Instant) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.pass_on_end();
        if stream.is_spent_orphan() {
            self.remove(id);
            return;
        }
        let watched = match stream.new_interest() {
            Some(events) => self.poller.modify(stream.host().as_fd(), id, events).is_ok(),
            None => true,
        };
        if stream.is_finished() || !watched {
            self.reset(id);
            return;
        }
        if stream.connection.awaits_reset() && stream.deadline.is_none() {
            stream.deadline = Some(self.deadlines.set(id, now, CLOSE_TIMEOUT));
        }
        if stream.has_work() && !stream.is_scheduled {
            stream.is_scheduled = true;
            self.turns.push_back(id);
        }
    }

    /// Ends a stream, and lets the guest know.
    fn reset(&mut self, id: u64) {
        if let Some(mut stream) = self.remove(id)
            && stream.connection.is_known_to_guest()
        {
            self.replies.push_back(stream.connection.reset());
        }
    }

    /// Forgets a stream. Its socket closes.
    fn remove(&mut self, id: u64) -> Option<Stream> {
        let stream = self.streams.remove(&id)?;
        self.ports.remove(stream.connection.ports(), id);
        self.budget.release(stream.connection.credit.buf_alloc());
        if let Some(deadline) = stream.deadline {
            self.deadlines.cancel(id, deadline);
        }
        if stream.is_scheduled {
            self.turns.retain(|turn| *turn != id);
        }
        Some(stream)
    }

    fn new_id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }
}

fn advance(handshake: &Handshake, events: EventFlags) -> Progress {
    if events.intersects(EventFlags::HUP | EventFlags::ERR) {
        // It would not even read the answer.
        return Progress::Refused;
    }
    handshake.advance(events.contains(EventFlags::RDHUP))
}

/// What the tests look at.
#[cfg(test)]
impl Multiplexer {
    /// Sockets in the multiplexer's keeping.
    pub(super) fn connections(&self) -> usize {
        self.streams.len() + self.handshakes.len()
    }

    /// Everything that waits for room in the guest.
    pub(super) fn queued(&self) -> usize {
        self.turns.len() + self.replies.len()
    }

    /// Bytes of buffer that guests were promised.
    pub(super) fn promised(&self) -> u32 {
        self.budget.promised()
    }

    /// Whether nothing at all is left of any connection.
    pub(super) fn is_empty(&self) -> bool {
        self.connections() == 0
            && self.queued() == 0
            && self.promised() == 0
            && self.ports.is_empty()
            && self.deadlines.is_empty()
    }
}
