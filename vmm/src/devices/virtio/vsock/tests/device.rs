//! The device with its thread and its rings, as the transport drives it.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vm_memory::{Bytes, GuestAddress};

use crate::devices::virtio::test_driver::{
    self, Descriptor, DriverQueue, INDIRECT, InterruptLine, NEXT, SEAM, WRITE,
};
use crate::devices::virtio::vsock::packet::{HEADER_SIZE, Header, Operation};
use crate::devices::virtio::vsock::test_guest::{GUEST_CID, TestGuest};
use crate::devices::virtio::vsock::{UnixSocketConnector, Vsock, VsockConfig};
use crate::devices::virtio::{ActivationError, Interrupt, VirtioDevice};
use crate::jail::Confinement;
use crate::memory::GuestMemory;

/// Room for each packet to the guest.
const BUFFER: u32 = 1024;
const RX_BUFFERS: u64 = 0x10_0000;
const TX_BUFFERS: u64 = 0x20_0000;

/// A device in its process and a driver in its guest.
struct Machine {
    vsock: Vsock,
    memory: GuestMemory,
    rx: DriverQueue,
    tx: DriverQueue,
    events: DriverQueue,
    interrupt: Interrupt,
    line: InterruptLine,
    sent: u16,
    /// Streams that stay open.
    clients: Vec<UnixStream>,
    directory: tempfile::TempDir,
}

impl Machine {
    /// A device whose driver is not ready.
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vsock");
        let config = VsockConfig {
            guest_cid: GUEST_CID,
            listener: UnixListener::bind(&path).unwrap(),
            connector: Box::new(UnixSocketConnector::new(&path)),
        };
        let vsock = Vsock::new(config, &Confinement::none()).unwrap();
        let memory = test_driver::memory();
        let queue = |base| DriverQueue::new(&memory, base, 16);
        let (rx, tx, events) = (queue(0x1_0000), queue(0x2_0000), queue(0x3_0000));
        let (interrupt, line) = InterruptLine::new();
        Self { vsock, rx, tx, events, interrupt, line, sent: 0, clients: Vec::new(), directory, memory }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("vsock")
    }

    /// The driver sets itself up, fills the queue for packets to the guest, and is ready.
    fn start(mut self, features: u64) -> Self {
        for index in 0..self.rx.size {
            self.rx.describe_chain(index, &[(RX_BUFFERS + 0x1000 * u64::from(index), BUFFER, WRITE)]);
            self.rx.offer(index);
        }
        self.activate(features).unwrap();
        self
    }

    fn activate(&mut self, features: u64) -> Result<(), ActivationError> {
        let queues = [&self.rx, &self.tx, &self.events];
        self.vsock.activate(test_driver::activation(&self.memory, &queues, self.interrupt.clone(), features))
    }

    /// The next packet for the guest, whose buffer is offered again.
    fn receive(&mut self) -> (Header, Vec<u8>) {
        let (head, length) = loop {
            if let Some(used) = self.rx.take_used() {
                break used;
            }
            self.line.wait();
        };
        let mut packet = vec![0; length as usize];
        self.memory.read_slice(&mut packet, GuestAddress(RX_BUFFERS + 0x1000 * u64::from(head))).unwrap();
        self.rx.offer(head);
        self.rx.notify();
        let data = packet.split_off(HEADER_SIZE);
        (Header::from_wire(packet.try_into().unwrap()), data)
    }

    /// Writes a packet into guest memory, its header in two descriptors and its bytes in a third.
    fn send(&mut self, header: &Header, data: &[u8]) {
        let at = TX_BUFFERS + 0x4000 * u64::from(self.sent % 4);
        let head = 3 * (self.sent % 4);
        self.sent += 1;
        let header = Header { len: u32::try_from(data.len()).unwrap(), ..*header };
        self.memory.write_slice(&header.to_wire(), GuestAddress(at)).unwrap();
        self.memory.write_slice(data, GuestAddress(at + 44)).unwrap();
        self.tx.describe_chain(head, &[(at, 20, 0), (at + 20, 24, 0), (at + 44, header.len, 0)]);
        self.offer_to_device(head);
    }

    /// Offers a chain of the queue for packets from the guest, and waits until it comes back.
    fn offer_to_device(&mut self, head: u16) {
        self.tx.offer(head);
        self.tx.notify();
        loop {
            match self.tx.take_used() {
                Some(used) => break assert_eq!(used, (head, 0)),
                None => _ = self.line.wait(),
            }
        }
    }

    /// Waits until the device says that it needs a reset.
    fn wait_for_death(&self) {
        while !self.interrupt.is_broken() {
            self.line.wait();
        }
    }

    /// A stream that the host has opened, and its port on the host.
    fn connect(&mut self, port: u32) -> (UnixStream, u32) {
        let mut client = UnixStream::connect(self.path()).unwrap();
        writeln!(client, "CONNECT {port}").unwrap();
        let (request, _) = self.receive();
        assert_eq!((request.op, request.dst_port), (Operation::Request as u16, port));
        self.send(&TestGuest::header(request.src_port, port, Operation::Response), &[]);
        let answer = format!("OK {}\n", request.src_port);
        let mut read = vec![0; answer.len()];
        client.read_exact(&mut read).unwrap();
        assert_eq!(read, answer.into_bytes());
        (client, request.src_port)
    }

    /// The device still does what it is for.
    fn assert_alive(&mut self) {
        let (mut client, port) = self.connect(80);
        client.write_all(b"alive?").unwrap();
        assert_eq!(self.receive().1, b"alive?");
        self.send(&TestGuest::header(port, 80, Operation::ReadWrite), b"alive!");
        let mut read = [0; 6];
        client.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"alive!");
        self.clients.push(client);
    }
}

const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;

#[test]
fn the_configuration_is_the_guests_address() {
    let machine = Machine::new();
    assert_eq!((machine.vsock.device_type(), machine.vsock.name()), (19, "vsock"));
    assert_eq!(machine.vsock.queue_sizes(), [128, 128, 8]);
    assert_eq!(machine.vsock.features(), 1 << VIRTIO_F_VERSION_1 | EVENT_IDX);
    let mut whole = [0xff; 12];
    machine.vsock.read_config(0, &mut whole);
    assert_eq!(whole, [3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let mut outside = [0xff; 4];
    machine.vsock.read_config(u64::MAX - 1, &mut outside);
    assert_eq!(outside, [0; 4]);
}

#[test]
fn streams_work_with_and_without_event_indices() {
    for features in [0, EVENT_IDX] {
        let mut machine = Machine::new().start(features);
        machine.assert_alive();
        machine.assert_alive();
    }
}

#[test]
fn a_driver_that_notifies_only_when_it_is_asked_to_has_all_its_packets_taken() {
    let mut machine = Machine::new().start(EVENT_IDX);
    let stray = TestGuest::header(1, 2, Operation::Reset).to_wire();
    machine.memory.write_slice(&stray, GuestAddress(TX_BUFFERS)).unwrap();
    for head in 0..machine.tx.size {
        machine.tx.describe_chain(head, &[(TX_BUFFERS, 44, 0)]);
    }
    for _ in 0..100 {
        let before = machine.tx.available;
        for head in 0..machine.tx.size {
            machine.tx.offer(head);
        }
        machine.tx.notify_if_asked(before);
        for _ in 0..machine.tx.size {
            while machine.tx.take_used().is_none() {
                machine.line.wait();
            }
        }
    }
}

#[test]
fn a_client_that_comes_before_the_driver_waits_for_it() {
    let machine = Machine::new();
    let mut client = UnixStream::connect(machine.path()).unwrap();
    client.write_all(b"CONNECT 80\n").unwrap();
    let mut machine = machine.start(EVENT_IDX);
    let (request, _) = machine.receive();
    machine.send(&TestGuest::header(request.src_port, 80, Operation::Response), &[]);
    let mut read = [0; 2];
    client.read_exact(&mut read).unwrap();
    assert_eq!(&read, b"OK");
}

#[test]
fn a_guest_reaches_the_service_that_has_its_ports_number() {
    let mut machine = Machine::new().start(EVENT_IDX);
    let listener = UnixListener::bind(machine.directory.path().join("vsock_52")).unwrap();
    machine.send(&TestGuest::header(52, 9, Operation::Request), &[]);
    let (response, _) = machine.receive();
    assert_eq!((response.op, response.src_port, response.dst_port), (Operation::Response as u16, 52, 9));
    let (mut service, _) = listener.accept().unwrap();
    machine.send(&TestGuest::header(52, 9, Operation::ReadWrite), b"hi");
    let mut read = [0; 2];
    service.read_exact(&mut read).unwrap();
    assert_eq!(&read, b"hi");
    machine.send(&TestGuest::header(53, 9, Operation::Request), &[]);
    assert_eq!(machine.receive().0.op, Operation::Reset as u16);
}

#[test]
fn many_bytes_pass_both_ways_at_once() {
    let mut machine = Machine::new().start(EVENT_IDX);
    let (client, port) = machine.connect(80);
    let total = 2_000_000;
    let content: Vec<u8> = (0..total).map(|index| (index % 251) as u8).collect();
    let expected = content.clone();
    let reader = {
        let mut client = client.try_clone().unwrap();
        std::thread::spawn(move || {
            let mut read = vec![0; total];
            client.read_exact(&mut read).unwrap();
            assert!(read == expected);
        })
    };
    let writer = {
        let (mut client, content) = (client.try_clone().unwrap(), content.clone());
        std::thread::spawn(move || client.write_all(&content).unwrap())
    };
    let (mut received, mut sent, mut forwarded) = (Vec::new(), 0, 0);
    while received.len() < total || sent < total {
        let room = 256 * 1024 - (sent - forwarded);
        let count = room.min(total - sent).min(8000);
        let header = Header {
            fwd_cnt: u32::try_from(received.len()).unwrap(),
            ..TestGuest::header(port, 80, Operation::ReadWrite)
        };
        // Empty packets tell of the guest's own credit.
        machine.send(&header, &content[sent..sent + count]);
        sent += count;
        while let Some(length) = (received.len() < total || count == 0).then(|| machine.receive()) {
            let (header, data) = length;
            forwarded = header.fwd_cnt as usize;
            received.extend(data);
            if header.op != Operation::ReadWrite as u16 || received.len() % (64 * 1024) < 1024 {
                break;
            }
        }
    }
    assert!(received == content);
    reader.join().unwrap();
    writer.join().unwrap();
}

#[test]
fn a_reset_ends_all_connections_and_the_device_serves_the_next_driver() {
    let mut machine = Machine::new().start(EVENT_IDX);
    let (mut client, _) = machine.connect(80);
    machine.vsock.reset();
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    let queue = |base| DriverQueue::new(&machine.memory, base, 8);
    (machine.rx, machine.tx) = (queue(0x5_0000), queue(0x6_0000));
    machine.sent = 0;
    let mut machine = machine.start(EVENT_IDX);
    machine.assert_alive();
    machine.vsock.reset();
    machine.vsock.reset();
}

#[test]
fn a_driver_without_the_queues_is_told_so() {
    let mut machine = Machine::new();
    let mut activation = test_driver::activation(
        &machine.memory,
        &[&machine.rx, &machine.tx, &machine.events],
        machine.interrupt.clone(),
        0,
    );
    activation.queues[1] = None;
    assert!(matches!(machine.vsock.activate(activation), Err(ActivationError::QueueDisabled(1))));
    machine.start(0).assert_alive();
}

#[test]
fn malformed_chains_are_given_back_and_change_nothing() {
    let mut machine = Machine::new().start(EVENT_IDX);
    let packet = TestGuest::header(1, 2, Operation::Reset).to_wire();
    machine.memory.write_slice(&packet, GuestAddress(TX_BUFFERS)).unwrap();
    for index in 0..64 {
        test_driver::write_descriptor(
            &machine.memory,
            TX_BUFFERS + 0x1000 + 16 * index,
            (TX_BUFFERS, 1, NEXT, 0),
        );
    }
    let chains: [(&str, &[Descriptor]); 9] = [
        ("a loop", &[(TX_BUFFERS, 44, NEXT, 1), (TX_BUFFERS, 44, NEXT, 0)]),
        ("a chain into itself", &[(TX_BUFFERS, 44, NEXT, 0)]),
        ("a header cut short", &[(TX_BUFFERS, 43, 0, 0)]),
        ("a header to be written", &[(TX_BUFFERS, 44, WRITE, 0)]),
        ("an address outside memory", &[(2 * SEAM, 44, 0, 0)]),
        ("an address that wraps around", &[(u64::MAX - 20, 44, 0, 0)]),
        ("an indirect table of absurd length", &[(TX_BUFFERS + 0x1000, !15, INDIRECT, 0)]),
        ("an indirect table that loops", &[(TX_BUFFERS + 0x1000, 16 * 64, INDIRECT, 0)]),
        ("a next outside the table", &[(TX_BUFFERS, 44, NEXT, 999)]),
    ];
    for (what, chain) in chains {
        for (index, (address, length, flags, next)) in (0..).zip(chain) {
            machine.tx.describe(index, *address, *length, *flags, *next);
        }
        machine.offer_to_device(0);
        assert!(!machine.interrupt.is_broken(), "{what}");
    }
    machine.assert_alive();
}

#[test]
fn buffers_that_the_device_may_not_write_are_given_back_untouched() {
    let mut machine = Machine::new();
    let bad: [(u64, u32, u16); 4] =
        [(RX_BUFFERS, BUFFER, 0), (RX_BUFFERS, 44, WRITE), (2 * SEAM, BUFFER, WRITE), (RX_BUFFERS, 0, WRITE)];
    machine.memory.write_slice(&[0xee; 64], GuestAddress(RX_BUFFERS)).unwrap();
    for (index, buffer) in (0..).zip(&bad) {
        machine.rx.describe_chain(index, &[*buffer]);
        machine.rx.offer(index);
    }
    machine.activate(EVENT_IDX).unwrap();
    machine.send(&TestGuest::header(1, 2, Operation::CreditUpdate), &[]);
    for index in 0..4 {
        let used = loop {
            match machine.rx.take_used() {
                Some(used) => break used,
                None => _ = machine.line.wait(),
            }
        };
        assert_eq!(used, (index, 0));
    }
    let untouched: [u8; 32] = machine.memory.read_obj(GuestAddress(RX_BUFFERS)).unwrap();
    assert_eq!(untouched, [0xee; 32]);
    // The answer has waited for a buffer that can hold it.
    machine.rx.describe_chain(0, &[(RX_BUFFERS, BUFFER, WRITE)]);
    machine.rx.offer(0);
    machine.rx.notify();
    assert_eq!(machine.receive().0.op, Operation::Reset as u16);
}

#[test]
fn a_packet_that_promises_more_than_it_brings_resets_its_stream() {
    let mut machine = Machine::new().start(EVENT_IDX);
    let (mut client, port) = machine.connect(80);
    for length in [7, u32::MAX] {
        let header = Header { len: length, ..TestGuest::header(port, 80, Operation::ReadWrite) };
        machine.memory.write_slice(&header.to_wire(), GuestAddress(TX_BUFFERS)).unwrap();
        machine.tx.describe_chain(0, &[(TX_BUFFERS, 50, 0)]);
        machine.offer_to_device(0);
        assert_eq!(machine.receive().0.op, Operation::Reset as u16);
    }
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
}

#[test]
fn an_available_index_that_leaps_is_the_end_until_the_reset() {
    for (leaps_of_rx, leap) in [(true, 17), (true, 0x8000), (false, 17), (false, 0x8000), (false, 0xffff)] {
        let mut machine = Machine::new().start(EVENT_IDX);
        let (mut client, _) = machine.connect(80);
        let ring = if leaps_of_rx { &mut machine.rx } else { &mut machine.tx };
        ring.set_available(ring.available.wrapping_add(leap));
        ring.notify();
        if leaps_of_rx {
            // It is looked at when there is something to put in.
            client.write_all(b"x").unwrap();
        }
        machine.wait_for_death();
        // The host's end goes with it: it is closed, or reset because what it sent was not read.
        let end = client.read(&mut [0]);
        assert!(matches!(&end, Ok(0)) || end.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset));
        machine.vsock.reset();
    }
}

#[test]
fn a_head_outside_the_table_is_the_end_until_the_reset() {
    let mut machine = Machine::new().start(EVENT_IDX);
    machine.tx.offer(999);
    machine.tx.notify();
    machine.wait_for_death();
    machine.vsock.reset();
}

#[test]
fn an_idle_device_does_not_look_at_notifications_it_did_not_ask_for() {
    let mut machine = Machine::new().start(EVENT_IDX);
    machine.assert_alive();
    machine.line.count();
    // The driver may notify as it likes; there is nothing to interrupt it for.
    for _ in 0..1000 {
        machine.rx.notify();
        machine.tx.notify();
    }
    machine.assert_alive();
    let mut client = UnixStream::connect(machine.path()).unwrap();
    client.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
}
