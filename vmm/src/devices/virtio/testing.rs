//! Queues on plain memory, as a driver may lay them out, well or badly.

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::queue::{QueueError, Service, serve_queue};
use super::test_driver::{DriverQueue, InterruptLine, write_descriptor};
use super::{DeviceQueue, Interrupt};
use crate::memory::{GuestMemory, plain};

pub(crate) use super::test_driver::{INDIRECT, NEXT, WRITE};

/// Where the rings begin.
const RINGS: u64 = 0x1000;
/// Where an indirect table begins.
const TABLE: u64 = 0x100_0000;

/// A driver and its queue in 32 MiB of memory; buffers belong to 0x8000 and above.
#[derive(Debug)]
pub(crate) struct TestQueue {
    pub(crate) memory: GuestMemory,
    driver: DriverQueue,
    queue: DeviceQueue,
    interrupt: Interrupt,
    line: InterruptLine,
}

impl TestQueue {
    pub(crate) fn new(size: u16) -> Self {
        let memory = plain(32);
        let driver = DriverQueue::new(&memory, RINGS, size);
        let (interrupt, line) = InterruptLine::new();
        Self { memory, queue: driver.device_queue(), driver, interrupt, line }
    }

    /// The first address behind memory.
    pub(crate) fn end(&self) -> u64 {
        self.memory.last_addr().0 + 1
    }

    pub(crate) fn descriptor(&mut self, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        self.driver.describe(index, address, length, flags, next);
    }

    /// Writes an indirect table of `count` descriptors that all lead to the next, each with the address, length and flags that
    /// `part` has for its index, and returns where it lies.
    pub(crate) fn indirect_table(&self, count: u16, part: impl Fn(u16) -> (u64, u32, u16)) -> u64 {
        for index in 0..count {
            let (address, length, flags) = part(index);
            let (flags, next) = if index + 1 == count { (flags, 0) } else { (flags | NEXT, index + 1) };
            let at = TABLE + 16 * u64::from(index);
            write_descriptor(&self.memory, at, (address, length, flags, next));
        }
        TABLE
    }

    pub(crate) fn offer(&mut self, head: u16) {
        self.driver.offer(head);
    }

    pub(crate) fn set_avail_index(&mut self, index: u16) {
        self.driver.set_available(index);
    }

    pub(crate) fn serve(&mut self, index: usize, service: &mut dyn Service) -> Result<(), QueueError> {
        serve_queue(&self.memory, index, &mut self.queue, &self.interrupt, service)
    }

    /// Head and length of every used chain.
    pub(crate) fn used(&self) -> Vec<(u32, u32)> {
        let used = self.driver.used_ring();
        let count: u16 = self.memory.read_obj(GuestAddress(used + 2)).unwrap();
        let element = |index: u16| {
            let at = used + 4 + 8 * u64::from(index % self.driver.size);
            let [id, length]: [u32; 2] = self.memory.read_obj(GuestAddress(at)).unwrap();
            (id, length)
        };
        (0..count).map(element).collect()
    }

    /// How often the interrupt was raised since the last look.
    pub(crate) fn interrupts(&self) -> u64 {
        self.line.count()
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
