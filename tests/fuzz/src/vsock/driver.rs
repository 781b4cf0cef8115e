//! A guest's driver of the vsock device, as far as a test needs one: packets on rings (virtio 1.2, 2.7 and 5.10).

use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::LazyLock;
use std::sync::atomic::Ordering;

use saya_vmm::bus::BusDevice;
use saya_vmm::devices::virtio::mmio::{MmioTransport, RegisterMemory};
use saya_vmm::devices::virtio::vsock::{HOST_CID, UnixSocketConnector, Vsock, VsockConfig};
use saya_vmm::jail::Confinement;
use saya_vmm::memory::{self, GuestMemory};
use vm_memory::{Bytes, GuestAddress};

/// Bytes of a packet's header.
pub(super) const HEADER_SIZE: usize = 44;
/// The largest packet, and the room for each in guest memory.
pub(super) const PACKET_MAX: usize = 8192;
const GUEST_CID: u64 = 3;
const TYPE_STREAM: u16 = 1;
const MEMORY_MIB: u64 = 32;
/// Entries of each queue.
const SIZE: u16 = 64;
/// A descriptor that the device writes (`VIRTQ_DESC_F_WRITE`).
const WRITE: u16 = 2;

thread_local! {
    /// Guest memory is never unmapped, so that there is one for all runs of a thread.
    static MEMORY: LazyLock<GuestMemory> = LazyLock::new(|| memory::allocate(MEMORY_MIB).expect("memory"));
}

/// What of a packet's header differs from packet to packet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    pub(super) source: u32,
    pub(super) destination: u32,
    pub(super) operation: u16,
    pub(super) flags: u32,
    pub(super) buf_alloc: u32,
    pub(super) fwd_cnt: u32,
}

/// A queue in guest memory whose buffers the device gives back in their order.
struct Ring {
    number: usize,
    descriptors: u64,
    buffers: u64,
    /// How many buffers were made available, and how many of them have come back.
    offered: u16,
    returned: u16,
}

impl Ring {
    fn new(number: u8) -> Self {
        let number_64 = u64::from(number);
        Self {
            number: number.into(),
            descriptors: 0x10_0000 + number_64 * 0x1_0000,
            buffers: 0x40_0000 + number_64 * 0x10_0000,
            offered: 0,
            returned: 0,
        }
    }

    fn available(&self) -> u64 {
        self.descriptors + 0x4000
    }

    fn used(&self) -> u64 {
        self.descriptors + 0x8000
    }

    fn buffer(&self, slot: u16) -> GuestAddress {
        GuestAddress(self.buffers + u64::from(slot) * PACKET_MAX as u64)
    }

    fn is_full(&self) -> bool {
        self.offered.wrapping_sub(self.returned) == SIZE
    }
}

pub(super) struct Driver {
    memory: GuestMemory,
    transport: MmioTransport,
    receive: Ring,
    transmit: Ring,
}

impl Driver {
    /// A device with its socket at `socket`, set up.
    pub(super) fn start(socket: &Path) -> Self {
        let listener = UnixListener::bind(socket).expect("a socket");
        let connector = Box::new(UnixSocketConnector::new(socket));
        let config = VsockConfig { guest_cid: GUEST_CID, listener, connector };
        let device = Vsock::new(config, &Confinement::none()).expect("the vsock device");
        let memory = MEMORY.with(|memory| (*memory).clone());
        memory::discard(&memory, GuestAddress(0), MEMORY_MIB << 20).expect("empty memory");
        let registers = RegisterMemory::new(1).expect("registers").file(0).expect("registers");
        let transport = MmioTransport::new(Box::new(device), memory.clone(), registers).expect("eventfds");
        let mut driver = Self { memory, transport, receive: Ring::new(0), transmit: Ring::new(1) };
        driver.set_up();
        driver
    }

    /// As a driver has to (virtio 1.2, 3.1.1), with `VIRTIO_F_VERSION_1` alone.
    fn set_up(&mut self) {
        for (register, value) in
            [(0x70, 0), (0x70, 1), (0x70, 3), (0x24, 0), (0x20, 0), (0x24, 1), (0x20, 1), (0x70, 11)]
        {
            self.write(register, value);
        }
        for ring in [Ring::new(0), Ring::new(1), Ring::new(2)] {
            for (register, value) in [
                (0x30, ring.number as u64),
                (0x38, SIZE.into()),
                (0x80, ring.descriptors),
                (0x84, 0),
                (0x90, ring.available()),
                (0x94, 0),
                (0xA0, ring.used()),
                (0xA4, 0),
                (0x44, 1),
            ] {
                self.write(register, value);
            }
        }
        self.write(0x70, 15);
    }

    fn write(&mut self, register: u64, value: u64) {
        self.transport.write(register, value.to_le_bytes().get(..4).unwrap_or_default());
    }

    /// Sends a packet. Waits for room where there is none: the device takes packets as long as there is room for its answers.
    pub(super) fn send(&mut self, header: &Header, data: &[u8]) {
        while self.returned_by(1).is_some() {}
        while self.transmit.is_full() {
            std::thread::yield_now();
            self.returned_by(1);
        }
        let mut packet = wire(header, data.len());
        packet.extend(data);
        let buffer = self.transmit.buffer(self.transmit.offered % SIZE);
        self.memory.write_slice(&packet, buffer).expect("a buffer in memory");
        offer(&self.memory, &mut self.transmit, packet.len(), 0);
        self.notify(1);
    }

    /// Offers buffers for packets of this size, as many as there is room for.
    pub(super) fn offer(&mut self, count: usize, size: usize) {
        let size = size.clamp(HEADER_SIZE + 1, PACKET_MAX);
        for _ in 0..count {
            if self.receive.is_full() {
                break;
            }
            offer(&self.memory, &mut self.receive, size, WRITE);
        }
        self.notify(0);
    }

    /// The next packet that has come.
    pub(super) fn receive(&mut self) -> Option<(Header, Vec<u8>)> {
        let (slot, length) = self.returned_by(0)?;
        let mut packet = vec![0; length];
        self.memory.read_slice(&mut packet, self.receive.buffer(slot)).expect("a buffer in memory");
        let data = packet.split_off(HEADER_SIZE);
        let header = Header {
            source: field(&packet, 16),
            destination: field(&packet, 20),
            operation: (field(&packet, 28) >> 16) as u16,
            flags: field(&packet, 32),
            buf_alloc: field(&packet, 36),
            fwd_cnt: field(&packet, 40),
        };
        assert_eq!(field(&packet, 24) as usize, data.len(), "{header:?}");
        assert_eq!((u64::from(field(&packet, 0)), u64::from(field(&packet, 8))), (HOST_CID, GUEST_CID));
        Some((header, data))
    }

    /// The next buffer that the device gives back: its slot, and how many bytes it has written.
    fn returned_by(&mut self, queue: usize) -> Option<(u16, usize)> {
        let ring = if queue == 0 { &mut self.receive } else { &mut self.transmit };
        let used = ring.used();
        let index: u16 =
            self.memory.load(GuestAddress(used + 2), Ordering::Acquire).expect("a ring in memory");
        if index == ring.returned {
            return None;
        }
        assert!(
            index.wrapping_sub(ring.returned) <= ring.offered.wrapping_sub(ring.returned),
            "more than there was"
        );
        let slot = ring.returned % SIZE;
        let element = GuestAddress(used + 4 + u64::from(slot) * 8);
        let [id, length]: [u32; 2] = self.memory.read_obj(element).expect("a ring in memory");
        assert_eq!(id, u32::from(slot), "buffers in another order");
        ring.returned = ring.returned.wrapping_add(1);
        Some((slot, length as usize))
    }

    fn notify(&self, queue: usize) {
        let notification = self.transport.notifications().get(queue).expect("a queue");
        notification.write(1).expect("an eventfd");
    }

    /// Readable when the device has given something back.
    pub(super) fn interrupt(&self) -> BorrowedFd<'_> {
        // SAFETY: the eventfd is the transport's, which lives as long as what is borrowed from it.
        unsafe { BorrowedFd::borrow_raw(self.transport.interrupt().line().as_raw_fd()) }
    }

    /// Has [`interrupt`](Self::interrupt) wait for the next.
    pub(super) fn acknowledge(&self) {
        let moment = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        let interrupt = self.interrupt();
        let mut ready = [rustix::event::PollFd::from_borrowed_fd(interrupt, rustix::event::PollFlags::IN)];
        if rustix::event::poll(&mut ready, Some(&moment)) == Ok(1) {
            let _ = rustix::io::read(interrupt, &mut [0; 8]);
        }
    }
}

fn offer(memory: &GuestMemory, ring: &mut Ring, length: usize, flags: u16) {
    let slot = ring.offered % SIZE;
    let descriptor = GuestAddress(ring.descriptors + u64::from(slot) * 16);
    let length = u64::try_from(length).unwrap_or_default();
    let words = [ring.buffer(slot).0, length | u64::from(flags) << 32];
    memory.write_obj(words, descriptor).expect("a ring in memory");
    let entry = GuestAddress(ring.available() + 4 + u64::from(slot) * 2);
    memory.write_obj(slot, entry).expect("a ring in memory");
    ring.offered = ring.offered.wrapping_add(1);
    memory
        .store(ring.offered, GuestAddress(ring.available() + 2), Ordering::Release)
        .expect("a ring in memory");
}

/// A packet's header (virtio 1.2, 5.10.6).
fn wire(header: &Header, length: usize) -> Vec<u8> {
    let mut wire = Vec::with_capacity(HEADER_SIZE + length);
    wire.extend(GUEST_CID.to_le_bytes());
    wire.extend(HOST_CID.to_le_bytes());
    wire.extend(header.source.to_le_bytes());
    wire.extend(header.destination.to_le_bytes());
    wire.extend(u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
    wire.extend(TYPE_STREAM.to_le_bytes());
    wire.extend(header.operation.to_le_bytes());
    wire.extend(header.flags.to_le_bytes());
    wire.extend(header.buf_alloc.to_le_bytes());
    wire.extend(header.fwd_cnt.to_le_bytes());
    wire
}

/// The 32 bits at this place of a header.
fn field(packet: &[u8], at: usize) -> u32 {
    let bytes = packet.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    u32::from_le_bytes(bytes.expect("a whole header"))
}
