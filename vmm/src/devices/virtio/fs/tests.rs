//! The device on plain memory, with a driver that may misbehave.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::devices::virtio::{DeviceQueue, Interrupt};
use crate::fs::wire::{InHeader, InitIn, InitOut, Opcode, OutHeader, Wire};
use crate::fs::{CachePolicy, Caching, DescriptorBudget};
use crate::jail::Confinement;
use crate::memory::GuestMemory;

const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;
const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

const MEMORY_BYTES: usize = 4 << 20;
const QUEUE_SIZE: u16 = 16;
/// Rings lie 64 KiB apart from 64 KiB on.
const RINGS: u64 = 0x1_0000;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
/// Where tests put requests and expect replies.
const REQUEST: u64 = 0x10_0000;
const REPLY: u64 = 0x20_0000;
const REPLY_BYTES: u32 = 0x1000;
/// The queue that requests go to.
const REQUESTS: usize = 1;

/// A driver of an activated device.
struct Driver {
    device: Fs,
    memory: GuestMemory,
    notifications: Vec<EventFd>,
    interrupt: EventFd,
    available: [u16; 2],
    used: [u16; 2],
}

const BUDGET: DescriptorBudget = DescriptorBudget { inodes: 100, handles: 100 };

fn config(share: &Path) -> FsConfig {
    FsConfig {
        root: rustix::fs::open(share, OFlags::PATH, Mode::empty()).unwrap(),
        descriptor_directory: FsConfig::open_descriptor_directory().unwrap(),
        tag: "share".into(),
        cache_policy: CachePolicy::uniform(Caching::NONE),
        writeback: false,
        implicit_opens: false,
        most_inodes: 100,
    }
}

impl Driver {
    fn new(share: &Path) -> Self {
        Self::with_used_ring(share, USED)
    }

    fn with_used_ring(share: &Path, used: u64) -> Self {
        let device = Fs::new(config(share), BUDGET, &Confinement::none()).unwrap();
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).unwrap();
        let interrupt = EventFd::new(EFD_NONBLOCK).unwrap();
        let mut driver =
            Self { device, memory, notifications: Vec::new(), interrupt, available: [0; 2], used: [0; 2] };
        driver.activate(used);
        driver
    }

    fn activate(&mut self, used: u64) {
        self.memory.write_slice(&vec![0; REQUEST as usize], GuestAddress(0)).unwrap();
        (self.available, self.used) = ([0; 2], [0; 2]);
        self.notifications.clear();
        let mut queues = Vec::new();
        for index in 0..2 {
            let mut queue = Queue::new(QUEUE_SIZE).unwrap();
            queue.try_set_desc_table_address(GuestAddress(rings(index))).unwrap();
            queue.try_set_avail_ring_address(GuestAddress(rings(index) + AVAIL)).unwrap();
            queue.try_set_used_ring_address(GuestAddress(rings(index) + used)).unwrap();
            queue.set_ready(true);
            let notification = EventFd::new(EFD_NONBLOCK).unwrap();
            self.notifications.push(notification.try_clone().unwrap());
            queues.push(Some(DeviceQueue { queue, notification }));
        }
        self.device
            .activate(Activation {
                memory: self.memory.clone(),
                queues,
                interrupt: Interrupt::new(self.interrupt.try_clone().unwrap()),
                features: 1 << VIRTIO_F_VERSION_1,
            })
            .unwrap();
    }

    fn describe(&self, queue: usize, table: &[Descriptor]) {
        for (index, descriptor) in (0..).zip(table) {
            self.memory.write_obj(*descriptor, GuestAddress(rings(queue) + 16 * index)).unwrap();
        }
    }

    /// Makes `head` available and notifies the device.
    fn offer(&mut self, queue: usize, head: u16) {
        let ring = rings(queue) + AVAIL;
        let slot = u64::from(self.available[queue] % QUEUE_SIZE);
        self.memory.write_obj(head, GuestAddress(ring + 4 + 2 * slot)).unwrap();
        self.leap(queue, 1);
    }

    /// Moves the available index and notifies the device.
    fn leap(&mut self, queue: usize, by: u16) {
        self.available[queue] = self.available[queue].wrapping_add(by);
        self.memory.write_obj(self.available[queue], GuestAddress(rings(queue) + AVAIL + 2)).unwrap();
        self.notifications[queue].write(1).unwrap();
    }

    /// Waits until the device has used another chain: its head and how many bytes were written.
    fn used(&mut self, queue: usize) -> (u32, u32) {
        let ring = rings(queue) + USED;
        loop {
            let index: u16 = self.memory.read_obj(GuestAddress(ring + 2)).unwrap();
            if index != self.used[queue] {
                break;
            }
            self.wait_for_interrupt();
        }
        let slot = ring + 4 + 8 * u64::from(self.used[queue] % QUEUE_SIZE);
        self.used[queue] = self.used[queue].wrapping_add(1);
        let head: u32 = self.memory.read_obj(GuestAddress(slot)).unwrap();
        let written: u32 = self.memory.read_obj(GuestAddress(slot + 4)).unwrap();
        (head, written)
    }

    fn wait_for_interrupt(&self) {
        // SAFETY: the eventfd outlives this function.
        let line = unsafe { BorrowedFd::borrow_raw(self.interrupt.as_raw_fd()) };
        let patience = Timespec { tv_sec: 60, tv_nsec: 0 };
        let ready = rustix::event::poll(&mut [PollFd::new(&line, PollFlags::IN)], Some(&patience)).unwrap();
        assert_eq!(ready, 1, "the device answers");
        self.interrupt.read().unwrap();
    }

    fn put_request(&self, opcode: Opcode, body: &[u8]) -> u32 {
        let length = (InHeader::SIZE + body.len()) as u32;
        let header = InHeader { length, opcode: opcode.number(), unique: 42, node: 1, ..InHeader::default() };
        let mut bytes = Vec::new();
        header.put(&mut bytes);
        bytes.extend_from_slice(body);
        self.memory.write_slice(&bytes, GuestAddress(REQUEST)).unwrap();
        length
    }

    fn reply(&self, written: u32) -> (OutHeader, Vec<u8>) {
        let mut bytes = vec![0; written as usize];
        self.memory.read_slice(&mut bytes, GuestAddress(REPLY)).unwrap();
        let mut rest = bytes.as_slice();
        (OutHeader::take(&mut rest).unwrap(), rest.to_vec())
    }

    /// A well-formed INIT goes through: the device is alive.
    fn assert_alive(&mut self) {
        let mut body = Vec::new();
        InitIn { major: 7, minor: 38, max_readahead: 4096, flags: 0 }.put(&mut body);
        let length = self.put_request(Opcode::Init, &body);
        let table =
            [Descriptor::new(REQUEST, length, NEXT, 1), Descriptor::new(REPLY, REPLY_BYTES, WRITE, 0)];
        self.describe(REQUESTS, &table);
        self.offer(REQUESTS, 0);
        let (head, written) = self.used(REQUESTS);
        assert_eq!(head, 0);
        let (header, body) = self.reply(written);
        assert_eq!((header.error, header.unique, header.length), (0, 42, written));
        assert_eq!(InitOut::take(&mut body.as_slice()).unwrap().minor, 38);
    }

    /// The chain at `head` comes back without a reply, and the device lives on.
    fn assert_chain_is_dropped(&mut self, table: &[Descriptor]) {
        self.describe(REQUESTS, table);
        self.offer(REQUESTS, 0);
        assert_eq!(self.used(REQUESTS), (0, 0));
        self.assert_alive();
    }
}

fn rings(queue: usize) -> u64 {
    RINGS * (queue as u64 + 1)
}

fn with_driver(test: impl FnOnce(&mut Driver)) {
    let share = tempfile::tempdir().unwrap();
    test(&mut Driver::new(share.path()));
}

#[test]
fn the_configuration_space_holds_the_tag_and_one_queue() {
    assert!(matches!(config_space(""), Err(FsError::Tag(_, 0))));
    assert!(matches!(config_space(&"x".repeat(37)), Err(FsError::Tag(_, 37))));
    let space = config_space("share").unwrap();
    assert_eq!(&space[..6], b"share\0");
    assert_eq!(&space[6..], [&[0; 30][..], &[1, 0, 0, 0]].concat());
    assert_eq!(config_space(&"x".repeat(36)).unwrap()[..36], [b'x'; 36]);
}

#[test]
fn reads_of_the_configuration_space_end_in_zeroes() {
    with_driver(|driver| {
        let mut bytes = [0xff; 8];
        driver.device.read_config(36, &mut bytes);
        assert_eq!(bytes, [1, 0, 0, 0, 0, 0, 0, 0]);
        for offset in [40, 41, u64::MAX] {
            let mut bytes = [0xff; 8];
            driver.device.read_config(offset, &mut bytes);
            assert_eq!(bytes, [0; 8]);
        }
    });
}

#[test]
fn a_request_is_answered_on_either_queue() {
    with_driver(|driver| {
        driver.assert_alive();
        driver.assert_alive();
        let length = driver.put_request(Opcode::Getattr, &[0; 16]);
        driver.describe(
            0,
            &[Descriptor::new(REQUEST, length, NEXT, 1), Descriptor::new(REPLY, REPLY_BYTES, WRITE, 0)],
        );
        driver.offer(0, 0);
        let (_, written) = driver.used(0);
        assert_eq!(written, 16 + 104);
    });
}

#[test]
fn a_request_may_lie_in_pieces_and_in_an_indirect_table() {
    with_driver(|driver| {
        let length = driver.put_request(Opcode::Getattr, &[0; 16]);
        let table = [
            Descriptor::new(REQUEST, 7, NEXT, 2),
            Descriptor::new(REPLY, 3, NEXT | WRITE, 3),
            Descriptor::new(REQUEST + 7, length - 7, NEXT, 1),
            Descriptor::new(REPLY + 3, 200, WRITE, 0),
        ];
        for (index, descriptor) in (0..).zip(table) {
            driver.memory.write_obj(descriptor, GuestAddress(0x30_0000 + 16 * index)).unwrap();
        }
        driver.describe(REQUESTS, &[Descriptor::new(0x30_0000, 16 * 4, INDIRECT, 0)]);
        driver.offer(REQUESTS, 0);
        let (_, written) = driver.used(REQUESTS);
        let (header, body) = driver.reply(written);
        assert_eq!((header.error, header.length), (0, 16 + 104));
        assert_eq!(body.len(), 104);
    });
}

#[test]
fn a_looping_chain_ends_the_request_not_the_device() {
    with_driver(|driver| {
        driver.assert_chain_is_dropped(&[
            Descriptor::new(REQUEST, 1, NEXT, 1),
            Descriptor::new(REQUEST, 1, NEXT, 0),
        ]);
        driver.assert_chain_is_dropped(&[Descriptor::new(REPLY, 1, NEXT | WRITE, 0)]);
    });
}

#[test]
fn a_chain_that_leaves_its_table_ends_the_request_not_the_device() {
    with_driver(|driver| {
        driver.assert_chain_is_dropped(&[Descriptor::new(REQUEST, 40, NEXT, QUEUE_SIZE)]);
        driver.assert_chain_is_dropped(&[Descriptor::new(REQUEST, 40, NEXT, u16::MAX)]);
    });
}

#[test]
fn an_indirect_table_of_absurd_length_ends_the_request_not_the_device() {
    with_driver(|driver| {
        for length in [0, 15, 17, 16 * 65_536, u32::MAX, u32::MAX - 15] {
            driver.assert_chain_is_dropped(&[Descriptor::new(REQUEST, length, INDIRECT, 0)]);
        }
        // 65,535 descriptors that all lead to the next.
        for index in 0..65_535_u16 {
            let descriptor = Descriptor::new(REQUEST, 1, NEXT, index.wrapping_add(1));
            driver.memory.write_obj(descriptor, GuestAddress(0x28_0000 + 16 * u64::from(index))).unwrap();
        }
        driver.assert_chain_is_dropped(&[Descriptor::new(0x28_0000, 16 * 65_535, INDIRECT, 0)]);
    });
}

#[test]
fn descriptors_without_bytes_count_like_any_other() {
    with_driver(|driver| {
        let length = driver.put_request(Opcode::Getattr, &[0; 16]);
        // A request, then so many descriptors that the place for the reply is one too many.
        for index in 0..=1024 {
            let (address, bytes, flags) = match index {
                0 => (REQUEST, length, NEXT),
                1024 => (REPLY, REPLY_BYTES, WRITE),
                _ => (REQUEST, 0, NEXT),
            };
            let descriptor = Descriptor::new(address, bytes, flags, index + 1);
            driver.memory.write_obj(descriptor, GuestAddress(0x30_0000 + 16 * u64::from(index))).unwrap();
        }
        driver.assert_chain_is_dropped(&[Descriptor::new(0x30_0000, 16 * 1025, INDIRECT, 0)]);
    });
}

#[test]
fn an_indirect_table_in_an_indirect_table_ends_the_request_not_the_device() {
    with_driver(|driver| {
        let inner = Descriptor::new(0x30_0000, 16, INDIRECT, 0);
        driver.memory.write_obj(inner, GuestAddress(0x30_0000)).unwrap();
        driver.assert_chain_is_dropped(&[Descriptor::new(0x30_0000, 16, INDIRECT, 0)]);
    });
}

#[test]
fn an_address_outside_memory_ends_the_request_not_the_device() {
    with_driver(|driver| {
        let end = MEMORY_BYTES as u64;
        for (address, length) in [(end, 1), (end - 1, 2), (u64::MAX, 1), (u64::MAX - 7, 16), (0, u32::MAX)] {
            driver.assert_chain_is_dropped(&[Descriptor::new(address, length, 0, 0)]);
            driver.assert_chain_is_dropped(&[
                Descriptor::new(REQUEST, 40, NEXT, 1),
                Descriptor::new(address, length, WRITE, 0),
            ]);
            driver.assert_chain_is_dropped(&[Descriptor::new(address, 16 * 4, INDIRECT, 0)]);
        }
    });
}

#[test]
fn a_readable_descriptor_is_never_written() {
    with_driver(|driver| {
        let length = driver.put_request(Opcode::Getattr, &[0; 16]);
        driver.memory.write_slice(&[0xaa; 256], GuestAddress(REPLY)).unwrap();
        driver.describe(
            REQUESTS,
            &[Descriptor::new(REQUEST, length, NEXT, 1), Descriptor::new(REPLY, 256, 0, 0)],
        );
        driver.offer(REQUESTS, 0);
        assert_eq!(driver.used(REQUESTS), (0, 0));
        let mut bytes = [0; 256];
        driver.memory.read_slice(&mut bytes, GuestAddress(REPLY)).unwrap();
        assert_eq!(bytes, [0xaa; 256]);
        driver.assert_alive();
    });
}

#[test]
fn a_reply_never_leaves_its_room() {
    with_driver(|driver| {
        for room in [0, 1, 15, 16, 17, 119, 120] {
            let length = driver.put_request(Opcode::Getattr, &[0; 16]);
            driver.memory.write_slice(&[0xaa; 256], GuestAddress(REPLY)).unwrap();
            driver.describe(
                REQUESTS,
                &[Descriptor::new(REQUEST, length, NEXT, 1), Descriptor::new(REPLY, room, WRITE, 0)],
            );
            driver.offer(REQUESTS, 0);
            let (_, written) = driver.used(REQUESTS);
            assert!(written <= room, "{written} bytes in {room}");
            let mut bytes = vec![0; 256 - room as usize];
            driver.memory.read_slice(&mut bytes, GuestAddress(REPLY + u64::from(room))).unwrap();
            assert!(bytes.iter().all(|byte| *byte == 0xaa), "{room}");
        }
        driver.assert_alive();
    });
}

#[test]
fn a_readable_descriptor_behind_a_writable_one_ends_the_request_not_the_device() {
    with_driver(|driver| {
        driver.assert_chain_is_dropped(&[
            Descriptor::new(REPLY, 64, NEXT | WRITE, 1),
            Descriptor::new(REQUEST, 40, 0, 0),
        ]);
    });
}

#[test]
fn an_empty_request_ends_without_a_reply() {
    with_driver(|driver| {
        driver.assert_chain_is_dropped(&[Descriptor::new(REQUEST, 0, 0, 0)]);
        driver.assert_chain_is_dropped(&[
            Descriptor::new(REQUEST, 39, NEXT, 1),
            Descriptor::new(REPLY, REPLY_BYTES, WRITE, 0),
        ]);
    });
}

#[test]
fn a_head_that_does_not_exist_is_skipped() {
    with_driver(|driver| {
        driver.offer(REQUESTS, QUEUE_SIZE);
        driver.offer(REQUESTS, u16::MAX);
        driver.assert_alive();
    });
}

#[test]
fn an_available_index_that_leaps_stops_the_queue_until_a_reset() {
    with_driver(|driver| {
        driver.assert_alive();
        driver.leap(REQUESTS, QUEUE_SIZE + 1);
        // The other queue shows that the device has seen it and lives.
        let length = driver.put_request(Opcode::Getattr, &[0; 16]);
        driver.describe(
            0,
            &[Descriptor::new(REQUEST, length, NEXT, 1), Descriptor::new(REPLY, REPLY_BYTES, WRITE, 0)],
        );
        driver.offer(0, 0);
        assert_eq!(driver.used(0).1, 16 + 104);
        let index: u16 = driver.memory.read_obj(GuestAddress(rings(REQUESTS) + USED + 2)).unwrap();
        assert_eq!(index, 1, "nothing but the first request was used");
        driver.device.reset();
        driver.activate(USED);
        driver.assert_alive();
    });
}

#[test]
fn a_used_ring_outside_memory_stops_the_queue_until_a_reset() {
    let share = tempfile::tempdir().unwrap();
    let mut driver = Driver::with_used_ring(share.path(), MEMORY_BYTES as u64);
    driver.offer(REQUESTS, 0);
    driver.device.reset();
    driver.activate(USED);
    driver.assert_alive();
}

#[test]
fn a_reset_ends_the_thread_under_a_flood_of_requests() {
    with_driver(|driver| {
        let length = driver.put_request(Opcode::Getattr, &[0; 16]);
        driver.describe(
            REQUESTS,
            &[Descriptor::new(REQUEST, length, NEXT, 1), Descriptor::new(REPLY, REPLY_BYTES, WRITE, 0)],
        );
        for _ in 0..1000 {
            driver.offer(REQUESTS, 0);
        }
        driver.device.reset();
        assert!(driver.device.session.is_none());
        let index: u16 = driver.memory.read_obj(GuestAddress(rings(REQUESTS) + USED + 2)).unwrap();
        driver.offer(REQUESTS, 0);
        let later: u16 = driver.memory.read_obj(GuestAddress(rings(REQUESTS) + USED + 2)).unwrap();
        assert_eq!(index, later, "nobody serves after a reset");
    });
}

#[test]
fn a_device_without_a_queue_says_which() {
    let share = tempfile::tempdir().unwrap();
    let mut driver = Driver::new(share.path());
    driver.device.reset();
    let result = driver.device.activate(Activation {
        memory: driver.memory.clone(),
        queues: vec![None, None],
        interrupt: Interrupt::new(driver.interrupt.try_clone().unwrap()),
        features: 1 << VIRTIO_F_VERSION_1,
    });
    assert!(matches!(result, Err(ActivationError::QueueDisabled(0))));
}

#[test]
fn a_share_that_is_no_directory_makes_no_device() {
    let share = tempfile::tempdir().unwrap();
    let file = share.path().join("file");
    std::fs::write(&file, b"").unwrap();
    let message = Fs::new(config(&file), BUDGET, &Confinement::none()).unwrap_err().to_string();
    assert!(message.contains("RegularFile") && message.contains("give a directory"), "{message}");
}
