//! The memory balloon (virtio 1.2, section 5.5): memory that the guest does not use goes back to the host.
//!
//! The host asks for nothing: the balloon's target stays zero. What matters is free page reporting, by which the guest
//! names blocks that it has freed, unasked.

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vm_memory::{Bytes, GuestAddress};

use super::queue::{Chain, Server, Service, readable, writable};
use super::{Activation, ActivationError, VirtioDevice};
use crate::event_loop::EventLoop;
use crate::memory::{GuestMemory, discard};

/// `VIRTIO_BALLOON_F_DEFLATE_ON_OOM`: the guest may take pages back when it is short of memory.
const DEFLATE_ON_OOM: u64 = 1 << 2;
/// `VIRTIO_BALLOON_F_PAGE_REPORTING`.
const PAGE_REPORTING: u64 = 1 << 5;

/// Page numbers are in units of this, whatever the guest's page size (`VIRTIO_BALLOON_PFN_SHIFT`).
const PAGE_SHIFT: u32 = 12;
/// The most page numbers of one request that are heeded. Linux sends 256.
const PAGE_NUMBER_LIMIT: usize = 1024;
/// The most blocks of one report that are heeded. Linux sends 32.
const BLOCK_LIMIT: usize = 128;

// The queues, in the order in which the driver counts those whose features are on offer.
const INFLATE: usize = 0;
const REPORT: usize = 2;

/// The memory balloon.
pub struct Balloon(Server);

impl Balloon {
    /// A balloon that is served on `event_loop`.
    pub fn new(event_loop: EventLoop) -> Self {
        Self(Server::new(event_loop, Box::new(Discard)))
    }
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BALLOON
    }

    fn name(&self) -> &'static str {
        "balloon"
    }

    fn queue_sizes(&self) -> &[u16] {
        // Inflate, deflate, report.
        &[64, 64, 64]
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | DEFLATE_ON_OOM | PAGE_REPORTING
    }

    /// All zero: the host wants no pages.
    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    /// The driver tells how many pages the balloon holds, which is of no use here.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivationError> {
        self.0.start(activation)
    }

    fn reset(&mut self) {
        self.0.stop();
    }
}

/// Gives memory back. A range that is not the guest's to give is left alone: what it says is only advice.
struct Discard;

impl Service for Discard {
    fn serve(&mut self, memory: &GuestMemory, queue: usize, chain: Chain<'_>) -> u32 {
        match queue {
            INFLATE => discard_pages(memory, chain),
            REPORT => discard_blocks(memory, chain),
            // Deflated pages come back by themselves when the guest touches them.
            _ => {}
        }
        0
    }
}

/// Discards pages whose numbers stand in the request, neighbours together.
fn discard_pages(memory: &GuestMemory, chain: Chain<'_>) {
    let mut numbers = readable(chain).flat_map(|descriptor| {
        let count = u64::from(descriptor.len()) / 4;
        (0..count).map_while(move |index| {
            let address = descriptor.addr().0.checked_add(4 * index)?;
            memory.read_obj::<u32>(GuestAddress(address)).ok().map(u32::from_le)
        })
    });
    let mut numbers = numbers.by_ref().take(PAGE_NUMBER_LIMIT).peekable();
    while let Some(first) = numbers.next() {
        let mut count = 1;
        while numbers.next_if(|&next| u64::from(next) == u64::from(first) + count).is_some() {
            count += 1;
        }
        let _ = discard(memory, GuestAddress(u64::from(first) << PAGE_SHIFT), count << PAGE_SHIFT);
    }
}

/// Discards the blocks that are the request's buffers themselves.
fn discard_blocks(memory: &GuestMemory, chain: Chain<'_>) {
    for block in writable(chain).take(BLOCK_LIMIT) {
        let _ = discard(memory, block.addr(), u64::from(block.len()));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::devices::virtio::testing::{INDIRECT, NEXT, TestQueue, WRITE, hostile_queue};

    const MARK: u32 = 0xA5A5_A5A5;

    fn marked(addresses: &[u64]) -> TestQueue {
        let queue = TestQueue::new(64);
        for address in addresses {
            queue.memory.write_obj(MARK, GuestAddress(*address)).unwrap();
        }
        queue
    }

    fn holds(queue: &TestQueue, address: u64) -> bool {
        queue.memory.read_obj::<u32>(GuestAddress(address)).unwrap() == MARK
    }

    #[test]
    fn inflated_pages_are_discarded_and_their_neighbours_are_not() {
        let mut queue = marked(&[0x20_000, 0x21_000, 0x22_000, 0x24_000]);
        for (index, page) in [0x20u32, 0x21, 0x24].into_iter().enumerate() {
            queue.memory.write_obj(page, GuestAddress(0x8000 + 4 * index as u64)).unwrap();
        }
        queue.descriptor(0, 0x8000, 12, 0, 0);
        queue.offer(0);
        queue.serve(INFLATE, &mut Discard).unwrap();
        assert_eq!(queue.used(), [(0, 0)]);
        let held = [0x20_000, 0x21_000, 0x22_000, 0x24_000].map(|address| holds(&queue, address));
        assert_eq!(held, [false, false, true, false]);
    }

    #[test]
    fn reported_blocks_are_discarded() {
        let mut queue = marked(&[0x20_000, 0x30_000, 0x40_000]);
        queue.descriptor(0, 0x20_000, 0x1_0000, NEXT | WRITE, 1);
        queue.descriptor(1, 0x40_000, 0x1000, WRITE, 0);
        queue.offer(0);
        queue.serve(REPORT, &mut Discard).unwrap();
        assert_eq!(
            [0x20_000, 0x30_000, 0x40_000].map(|address| holds(&queue, address)),
            [false, true, false]
        );
    }

    #[test]
    fn a_read_only_block_is_not_discarded() {
        let mut queue = marked(&[0x20_000]);
        queue.descriptor(0, 0x20_000, 0x1000, 0, 0);
        queue.offer(0);
        queue.serve(REPORT, &mut Discard).unwrap();
        assert!(holds(&queue, 0x20_000));
    }

    #[test]
    fn a_block_outside_memory_is_left_alone_and_the_next_is_discarded() {
        let mut queue = marked(&[0x20_000]);
        queue.descriptor(0, queue.end() - 4096, 8192, NEXT | WRITE, 1);
        queue.descriptor(1, u64::MAX - 100, u32::MAX / 2, NEXT | WRITE, 2);
        queue.descriptor(2, 0x20_000, 4096, WRITE, 0);
        queue.memory.write_obj(MARK, GuestAddress(queue.end() - 4096)).unwrap();
        queue.offer(0);
        queue.serve(REPORT, &mut Discard).unwrap();
        assert!(holds(&queue, queue.end() - 4096));
        assert!(!holds(&queue, 0x20_000));
    }

    #[test]
    fn a_looping_chain_ends_the_request_not_the_device() {
        for index in [INFLATE, REPORT] {
            let mut queue = marked(&[]);
            queue.descriptor(0, 0x20_000, 4096, NEXT | WRITE, 0);
            queue.descriptor(1, 0x30_000, 4096, 0, 0);
            queue.offer(0);
            queue.offer(1);
            queue.serve(index, &mut Discard).unwrap();
            assert_eq!(queue.used(), [(0, 0), (1, 0)]);
        }
    }

    #[test]
    fn an_indirect_table_of_absurd_length_ends_the_request_not_the_device() {
        for index in [INFLATE, REPORT] {
            let mut queue = marked(&[]);
            queue.descriptor(0, 0x20_000, 0xFFFF_FFF0, INDIRECT, 0);
            queue.offer(0);
            queue.serve(index, &mut Discard).unwrap();
            assert_eq!(queue.used(), [(0, 0)]);
        }
    }

    #[test]
    fn what_comes_after_more_descriptors_than_a_chain_may_have_is_not_heeded() {
        for (index, flags) in [(INFLATE, 0), (REPORT, WRITE)] {
            let mut queue = marked(&[0x20_000]);
            queue.memory.write_obj(0x20u32, GuestAddress(0x8000)).unwrap();
            let part = if index == INFLATE { (0x8000, 4) } else { (0x20_000, 4096) };
            // Before it, descriptors of the other kind, without bytes.
            let table = queue.indirect_table(2000, |at| match at {
                1500 => (part.0, part.1, flags),
                _ => (0x8000, 0, WRITE ^ flags),
            });
            queue.descriptor(0, table, 16 * 2000, INDIRECT, 0);
            queue.offer(0);
            queue.serve(index, &mut Discard).unwrap();
            assert_eq!(queue.used(), [(0, 0)]);
            assert!(holds(&queue, 0x20_000), "queue {index}");
        }
    }

    #[test]
    fn page_numbers_that_lie_outside_memory_are_not_read() {
        let mut queue = marked(&[]);
        queue.descriptor(0, queue.end() - 4, 0x7FFF_FFFF, NEXT, 1);
        queue.descriptor(1, u64::MAX - 3, 64, 0, 0);
        queue.offer(0);
        queue.serve(INFLATE, &mut Discard).unwrap();
        assert_eq!(queue.used(), [(0, 0)]);
    }

    #[test]
    fn an_avail_index_that_leaps_breaks_the_queue() {
        for index in [INFLATE, 1, REPORT] {
            let mut queue = marked(&[]);
            queue.set_avail_index(1000);
            assert!(queue.serve(index, &mut Discard).is_err());
        }
    }

    #[test]
    fn page_numbers_beyond_the_limit_are_not_heeded() {
        let mut queue = marked(&[0x20_000]);
        let numbers = [0x100u32.to_le_bytes(); PAGE_NUMBER_LIMIT].concat();
        queue.memory.write_slice(&numbers, GuestAddress(0x8000)).unwrap();
        queue.memory.write_obj(0x20u32, GuestAddress(0x8000 + numbers.len() as u64)).unwrap();
        let length = u32::try_from(numbers.len() + 4).unwrap();
        queue.descriptor(0, 0x8000, length, 0, 0);
        queue.offer(0);
        queue.serve(INFLATE, &mut Discard).unwrap();
        assert!(holds(&queue, 0x20_000));
    }

    proptest! {
        #[test]
        fn no_queue_makes_the_device_panic(mut queue in hostile_queue(16), index in 0usize..4) {
            let _ = queue.serve(index, &mut Discard);
        }
    }
}
