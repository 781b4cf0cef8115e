//! A connection together with its host socket, and what it has to do next.

use std::time::Instant;

use rustix::event::epoll::EventFlags;

use super::connection::Connection;
use super::handshake;
use super::host_stream::{HostStream, Received, Sent};
use super::packet::HEADER_SIZE;
use crate::devices::virtio::chain::GuestSlices;

/// What a host socket is watched for. Edge-triggered: a socket is read until it is empty, or until the guest has
/// no room, and no event repeats what is known.
pub(super) const WATCH_READABLE: EventFlags = EventFlags::IN.union(EventFlags::RDHUP).union(EventFlags::ET);
/// The same while bytes wait to be written. Otherwise every read of the host would be an event.
const WATCH_BOTH: EventFlags = WATCH_READABLE.union(EventFlags::OUT);

/// One end-to-end stream.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) connection: Connection,
    host: HostStream,
    /// The socket may have bytes, or an end, to be read.
    readable: bool,
    /// The host has closed its end in both directions.
    host_is_gone: bool,
    /// There are bytes to be read, and the guest has no room for them.
    starved: bool,
    /// It waits in the multiplexer's queue for its turn.
    pub(super) is_scheduled: bool,
    /// The guest knows of no such connection any more; its last bytes are being delivered.
    is_orphan: bool,
    has_shut_down_sending: bool,
    is_watched_for_writing: bool,
    /// When to give it up.
    pub(super) deadline: Option<Instant>,
}

impl Stream {
    pub(super) fn new(connection: Connection, host: HostStream) -> Self {
        Self {
            connection,
            host,
            readable: false,
            host_is_gone: false,
            starved: false,
            is_scheduled: false,
            is_orphan: false,
            has_shut_down_sending: false,
            is_watched_for_writing: false,
            deadline: None,
        }
    }

    /// Its socket.
    pub(super) fn host(&self) -> &HostStream {
        &self.host
    }

    /// Takes note of what epoll says of the socket.
    pub(super) fn on_event(&mut self, events: EventFlags) {
        if events.intersects(EventFlags::HUP | EventFlags::ERR) {
            self.host_is_gone = true;
        }
        self.readable = true;
        self.starved = false;
        if self.host.is_blocked() {
            let sent = self.host.flush();
            self.account(sent);
        }
    }

    /// The guest has accepted the host's connection: tells the host.
    pub(super) fn on_connected(&mut self) {
        let sent = self.host.send_line(&handshake::accepted(self.connection.ports().host));
        self.account(sent);
        self.readable = true;
    }

    /// The guest's next bytes, for which the connection has found credit.
    pub(super) fn on_payload(&mut self, mut data: GuestSlices<'_>) {
        let sent = self.host.send(&mut data);
        self.account(sent);
    }

    /// The guest has announced that it will send or receive no more.
    pub(super) fn on_guest_shutdown(&self) {
        if !self.connection.guest_receives() {
            self.host.shut_down_receiving();
        }
    }

    /// The guest has granted credit, perhaps.
    pub(super) fn on_credit(&mut self) {
        self.starved = false;
    }

    fn account(&mut self, sent: Sent) {
        // A buffer holds less than 4 GiB, so that the conversion is exact.
        self.connection.forwarded(u32::try_from(sent.forwarded).unwrap_or(u32::MAX));
        if sent.refused {
            self.connection.host_stops_receiving();
        }
    }

    /// Whether the host left before the guest had answered.
    pub(super) fn is_abandoned(&self) -> bool {
        self.host_is_gone && !self.connection.is_established()
    }

    /// Whether the guest has reset a connection whose bytes it had announced to be the last: they are still to be
    /// delivered. Linux resets a connection that it closed itself when the other end is slow to read.
    pub(super) fn becomes_orphan(&mut self) -> bool {
        self.is_orphan = self.host.is_blocked() && !self.connection.guest_sends();
        self.is_orphan
    }

    /// Whether it is an orphan that has delivered its last bytes.
    pub(super) fn is_spent_orphan(&self) -> bool {
        self.is_orphan && !self.host.is_blocked()
    }

    /// Whether a reset is all that the guest is still to get.
    pub(super) fn is_finished(&self) -> bool {
        !self.is_orphan && self.connection.guest_is_done() && !self.host.is_blocked()
    }

    /// Passes the end of the guest's bytes on to the host, once they are delivered.
    pub(super) fn pass_on_end(&mut self) {
        if !self.connection.guest_sends() && !self.host.is_blocked() && !self.has_shut_down_sending {
            self.has_shut_down_sending = true;
            self.host.shut_down_sending();
        }
    }

    /// What the socket should be watched for, if that is new.
    pub(super) fn new_interest(&mut self) -> Option<EventFlags> {
        let blocked = self.host.is_blocked();
        if blocked == self.is_watched_for_writing {
            return None;
        }
        self.is_watched_for_writing = blocked;
        Some(if blocked { WATCH_BOTH } else { WATCH_READABLE })
    }

    /// Whether there may be a packet for the guest.
    pub(super) fn has_work(&self) -> bool {
        !self.is_orphan && (self.connection.has_control() || self.may_read())
    }

    fn may_read(&self) -> bool {
        self.readable && !self.starved && self.connection.carries_host_data()
    }

    /// Puts the next packet's header into `head` and its bytes into `body`, which is not empty, and says how long it is. `None`: there
    /// is none.
    pub(super) fn next_packet(&mut self, head: &GuestSlices<'_>, body: &GuestSlices<'_>) -> Option<usize> {
        let length = if !self.connection.has_control() && self.may_read() { self.read(body) } else { 0 };
        // What the read found out may be for the guest to know: the end, or that credit is wanted.
        let header = match length {
            0 => self.connection.next_control()?,
            // No more than the credit, which has 32 bits.
            length => self.connection.data(u32::try_from(length).unwrap_or(u32::MAX)),
        };
        head.copy_from(&header.to_wire()).ok()?;
        Some(HEADER_SIZE + length)
    }

    /// Reads what credit and room allow. 0: nothing, for a reason that is noted.
    fn read(&mut self, body: &GuestSlices<'_>) -> usize {
        let sendable = usize::try_from(self.connection.credit.sendable()).unwrap_or(usize::MAX);
        let received = if sendable == 0 {
            // An end of the stream needs no credit, so it is looked for without.
            self.host.peek()
        } else if sendable < body.len() {
            let mut room = body.clone();
            room.truncate(sendable);
            self.host.receive(&room)
        } else {
            self.host.receive(body)
        };
        match received {
            Received::Bytes(_) if sendable == 0 => {
                self.starved = true;
                self.connection.want_credit();
                0
            }
            Received::Bytes(count) => count,
            Received::WouldBlock => {
                self.readable = false;
                0
            }
            Received::End => {
                self.connection.host_stops_sending();
                if self.host_is_gone {
                    self.connection.host_stops_receiving();
                }
                0
            }
        }
    }
}
