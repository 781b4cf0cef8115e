//! Queues on plain memory, as a driver may lay them out, well or badly.

use proptest::prelude::*;
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::queue::{QueueError, Service, serve_queue};
use super::{DeviceQueue, Interrupt};
use crate::memory::{GuestMemory, allocate};

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;

/// A driver and its queue in 32 MiB of memory; buffers belong to 0x8000 and above.
#[derive(Debug)]
pub(crate) struct TestQueue {
    pub(crate) memory: GuestMemory,
    queue: DeviceQueue,
    interrupt: Interrupt,
    size: u16,
    offered: u16,
}

impl TestQueue {
    pub(crate) fn new(size: u16) -> Self {
        let memory = allocate(32).unwrap();
        let mut queue = Queue::new(size).unwrap();
        queue.set_desc_table_address(Some(DESCRIPTORS as u32), Some(0));
        queue.set_avail_ring_address(Some(AVAILABLE as u32), Some(0));
        queue.set_used_ring_address(Some(USED as u32), Some(0));
        queue.set_ready(true);
        assert!(queue.is_valid(&memory));
        let notification = EventFd::new(EFD_NONBLOCK).unwrap();
        let interrupt = Interrupt::new(EventFd::new(EFD_NONBLOCK).unwrap());
        Self { memory, queue: DeviceQueue { queue, notification }, interrupt, size, offered: 0 }
    }

    /// The first address behind memory.
    pub(crate) fn end(&self) -> u64 {
        self.memory.last_addr().0 + 1
    }

    pub(crate) fn descriptor(&mut self, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        let descriptor = RawDescriptor::from(Descriptor::new(address, length, flags, next));
        let at = DESCRIPTORS + 16 * u64::from(index);
        self.memory.write_obj(descriptor, GuestAddress(at)).unwrap();
    }

    pub(crate) fn offer(&mut self, head: u16) {
        let slot = u64::from(self.offered % self.size);
        self.memory.write_obj(head, GuestAddress(AVAILABLE + 4 + 2 * slot)).unwrap();
        self.offered = self.offered.wrapping_add(1);
        self.set_avail_index(self.offered);
    }

    pub(crate) fn set_avail_index(&mut self, index: u16) {
        self.memory.write_obj(index, GuestAddress(AVAILABLE + 2)).unwrap();
    }

    pub(crate) fn serve(&mut self, index: usize, service: &mut dyn Service) -> Result<(), QueueError> {
        serve_queue(&self.memory, index, &mut self.queue, &self.interrupt, service)
    }

    /// Head and length of every used chain.
    pub(crate) fn used(&self) -> Vec<(u32, u32)> {
        let count: u16 = self.memory.read_obj(GuestAddress(USED + 2)).unwrap();
        let element = |index: u16| {
            let at = USED + 4 + 8 * u64::from(index % self.size);
            let [id, length]: [u32; 2] = self.memory.read_obj(GuestAddress(at)).unwrap();
            (id, length)
        };
        (0..count).map(element).collect()
    }

    /// How often the interrupt was raised since the last look.
    pub(crate) fn interrupts(&self) -> u64 {
        self.interrupt.line().read().unwrap_or(0)
    }
}

prop_compose! {
    /// A queue whose descriptors and available ring are anything, biased towards what nearly makes sense.
    pub(crate) fn hostile_queue(size: u16)(
        descriptors in prop::collection::vec(
            (
                prop_oneof![0u64..0x10_0000, (0x1F0_0000u64..0x210_0000), any::<u64>()],
                prop_oneof![0u32..0x2000, any::<u32>()],
                prop_oneof![0u16..8, any::<u16>()],
                prop_oneof![0u16..20, any::<u16>()],
            ),
            16,
        ),
        heads in prop::collection::vec(prop_oneof![0u16..16, any::<u16>()], 0..16),
        index in prop::option::of(any::<u16>()),
    ) -> TestQueue {
        let mut queue = TestQueue::new(size);
        for (at, (address, length, flags, next)) in descriptors.into_iter().enumerate() {
            queue.descriptor(at as u16, address, length, flags, next);
        }
        for head in heads {
            queue.offer(head);
        }
        if let Some(index) = index {
            queue.set_avail_index(index);
        }
        queue
    }
}
