//! A guest for the tests of the multiplexer: it has packets and memory, but no rings and no thread.

use std::cell::RefCell;
use std::io;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::{Duration, Instant};

use virtio_queue::QueueOwnedT;

use super::connector::Connector;
use super::multiplexer::{FIRST_ID, Multiplexer};
use super::packet::{HEADER_SIZE, HOST_CID, Header, Operation, TYPE_STREAM};
use crate::devices::virtio::chain::{Chain, GuestSlices};
use crate::devices::virtio::poller::Poller;
use crate::devices::virtio::test_driver::{self, DriverQueue, SEAM, WRITE};
use crate::memory::GuestMemory;

pub(super) const GUEST_CID: u64 = 3;

/// Connects every port but 0, and keeps the host's ends.
#[derive(Default)]
pub(super) struct TestConnector {
    pub(super) accepted: RefCell<Vec<UnixStream>>,
}

impl Connector for &TestConnector {
    fn connect(&mut self, port: u32) -> io::Result<UnixStream> {
        if port == 0 {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (ours, theirs) = UnixStream::pair()?;
        // Small, so that a stream is blocked often.
        rustix::net::sockopt::set_socket_send_buffer_size(&theirs, 4096)?;
        ours.set_nonblocking(true)?;
        self.accepted.borrow_mut().push(ours);
        Ok(theirs)
    }
}

/// A guest, its memory, and the multiplexer that serves it.
pub(super) struct TestGuest {
    pub(super) multiplexer: Multiplexer,
    pub(super) connector: TestConnector,
    pub(super) now: Instant,
    poller: Rc<Poller>,
    memory: GuestMemory,
}

impl TestGuest {
    pub(super) fn new() -> Self {
        let poller = Rc::new(Poller::new().unwrap());
        Self {
            multiplexer: Multiplexer::new(GUEST_CID, Rc::clone(&poller)),
            connector: TestConnector::default(),
            now: Instant::now(),
            poller,
            memory: test_driver::memory(),
        }
    }

    /// A header from the guest, with plenty of credit.
    pub(super) fn header(host_port: u32, guest_port: u32, operation: Operation) -> Header {
        Header {
            src_cid: GUEST_CID,
            dst_cid: HOST_CID,
            src_port: guest_port,
            dst_port: host_port,
            socket_type: TYPE_STREAM,
            op: operation as u16,
            buf_alloc: 1 << 20,
            ..Header::default()
        }
    }

    /// The guest sends a packet with these bytes.
    pub(super) fn send(&mut self, header: &Header, data: &[u8]) {
        assert!(self.multiplexer.accepts_packets());
        let slices = slices(&self.memory, data.len());
        slices.copy_from(data).unwrap();
        let header = Header { len: u32::try_from(data.len()).unwrap(), ..*header };
        self.multiplexer.on_packet(&header, slices, &mut &self.connector, self.now);
    }

    /// The guest offers a buffer of `size` bytes, and gets a packet in it if there is one.
    pub(super) fn receive_into(&mut self, size: usize) -> Option<(Header, Vec<u8>)> {
        if !self.multiplexer.has_packets() {
            return None;
        }
        let buffer = slices(&self.memory, size);
        let length = self.multiplexer.next_packet(buffer.clone(), self.now)?;
        assert!(length <= size, "a packet of {length} bytes in a buffer of {size}");
        let mut packet = vec![0; length];
        buffer.copy_to(&mut packet).unwrap();
        let data = packet.split_off(HEADER_SIZE);
        let header = Header::from_wire(packet.try_into().unwrap());
        assert_eq!(usize::try_from(header.len).unwrap(), data.len());
        assert_eq!(header.dst_cid, GUEST_CID);
        Some((header, data))
    }

    /// The next packet, after all that has happened on the host has been seen.
    pub(super) fn receive(&mut self) -> Option<(Header, Vec<u8>)> {
        self.poll();
        self.receive_into(4096)
    }

    /// The operation of the next packet, which brings no bytes.
    pub(super) fn receive_operation(&mut self) -> Option<Operation> {
        let (header, data) = self.receive()?;
        assert!(data.is_empty(), "{header:?}");
        Operation::from_wire(header.op)
    }

    /// Sees everything that has happened on the host.
    pub(super) fn poll(&mut self) {
        let mut events = Vec::with_capacity(64);
        self.poller.wait(&mut events, Some(Duration::ZERO)).unwrap();
        for event in events {
            assert!(event.data.u64() >= FIRST_ID);
            self.multiplexer.on_event(event.data.u64(), event.flags, self.now);
        }
    }

    /// Time passes.
    pub(super) fn wait(&mut self, time: Duration) {
        self.now += time;
        self.multiplexer.expire(self.now);
    }

    /// Nothing is left of any connection.
    pub(super) fn assert_empty(&self) {
        assert!(self.multiplexer.is_empty());
    }

    /// A host client that has said `words`.
    pub(super) fn client(&mut self, words: &str) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        io::Write::write_all(&mut &ours, words.as_bytes()).unwrap();
        self.multiplexer.add_client(theirs, self.now);
        ours
    }

    /// A connection that the guest has opened, and the host's end.
    pub(super) fn connect_to_host(&mut self, host_port: u32, guest_port: u32) -> UnixStream {
        self.send(&Self::header(host_port, guest_port, Operation::Request), &[]);
        assert_eq!(self.receive_operation(), Some(Operation::Response));
        self.connector.accepted.borrow_mut().pop().unwrap()
    }

    /// A connection that the host has opened, and its port on the host.
    pub(super) fn connect_to_guest(&mut self, guest_port: u32) -> (UnixStream, u32) {
        let client = self.client(&format!("CONNECT {guest_port}\n"));
        let (request, _) = self.receive().unwrap();
        assert_eq!((request.op, request.dst_port), (Operation::Request as u16, guest_port));
        self.send(&Self::header(request.src_port, guest_port, Operation::Response), &[]);
        let answer = read_all(&client).0;
        assert_eq!(String::from_utf8(answer).unwrap(), format!("OK {}\n", request.src_port));
        (client, request.src_port)
    }
}

/// Guest memory as a chain would name it: pieces of 1,000 bytes, the first across two regions.
fn slices(memory: &GuestMemory, length: usize) -> GuestSlices<'_> {
    if length == 0 {
        return GuestSlices::default();
    }
    let mut driver = DriverQueue::new(memory, 0, 256);
    let mut parts = Vec::new();
    let mut left = u32::try_from(length).unwrap();
    let mut address = SEAM - 500;
    while left > 0 {
        let piece = left.min(1000);
        parts.push((address, piece, WRITE));
        address += 1024;
        left -= piece;
    }
    driver.describe_chain(0, &parts);
    driver.offer(0);
    let mut queue = driver.device_queue().queue;
    let chain = queue.iter(memory).unwrap().next().unwrap();
    Chain::parse(memory, chain, driver.size).unwrap().writable
}

/// What there is to read without waiting, and whether the end has come.
pub(super) fn read_all(socket: &UnixStream) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    match io::Read::read_to_end(&mut &*socket, &mut bytes) {
        Ok(_) => (bytes, true),
        // The other end was closed with bytes in it.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => (bytes, true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => (bytes, false),
        Err(error) => panic!("{error}"),
    }
}
