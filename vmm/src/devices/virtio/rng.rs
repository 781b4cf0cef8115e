//! The entropy device (virtio 1.2, section 5.4): the host's random bytes.

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vm_memory::{Bytes, GuestAddress};

use super::queue::{Chain, Server, Service, writable};
use super::{Activation, ActivationError, VirtioDevice};
use crate::event_loop::EventLoop;
use crate::memory::GuestMemory;

/// The most bytes that one request gets. The driver asks again; nobody is to occupy the loop for long.
const REQUEST_LIMIT: usize = 64 * 1024;
/// Bytes that are fetched and copied at a time.
const PIECE: usize = 256;

/// The entropy device.
pub struct Rng(Server);

impl Rng {
    /// An entropy device that is served on `event_loop`.
    pub fn new(event_loop: EventLoop) -> Self {
        Self(Server::new(event_loop, Box::new(Entropy)))
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn name(&self) -> &'static str {
        "rng"
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64]
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivationError> {
        self.0.start(activation)
    }

    fn reset(&mut self) {
        self.0.stop();
    }
}

/// Fills requests with random bytes.
struct Entropy;

impl Service for Entropy {
    fn serve(&mut self, memory: &GuestMemory, _queue: usize, chain: Chain<'_>) -> u32 {
        let mut left = REQUEST_LIMIT;
        let mut written = 0;
        for descriptor in writable(chain) {
            let wanted = usize::try_from(descriptor.len()).unwrap_or(left).min(left);
            let filled = fill(memory, descriptor.addr(), wanted);
            written += filled;
            left -= filled;
            if filled < wanted || left == 0 {
                break;
            }
        }
        u32::try_from(written).unwrap_or(u32::MAX)
    }
}

/// Writes `length` random bytes at `address`, as many as there is memory for; returns their number.
fn fill(memory: &GuestMemory, mut address: GuestAddress, length: usize) -> usize {
    let mut filled = 0;
    while filled < length {
        let mut piece = [0; PIECE];
        let wanted = PIECE.min(length - filled);
        let Some(piece) = piece.get_mut(..wanted) else { break };
        let Ok(got) = rustix::rand::getrandom(&mut *piece, rustix::rand::GetRandomFlags::empty()) else {
            break;
        };
        let Ok(put) = memory.write(piece.get(..got).unwrap_or_default(), address) else { break };
        filled += put;
        let Some(next) = address.0.checked_add(put as u64).filter(|_| put > 0) else { break };
        address = GuestAddress(next);
    }
    filled
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::devices::virtio::testing::{INDIRECT, NEXT, TestQueue, WRITE, hostile_queue};

    #[test]
    fn a_request_is_filled_and_its_length_reported() {
        let mut queue = TestQueue::new(64);
        queue.descriptor(0, 0x8000, 32, NEXT | WRITE, 1);
        queue.descriptor(1, 0x9000, 32, WRITE, 0);
        queue.offer(0);
        queue.serve(0, &mut Entropy).unwrap();
        assert_eq!(queue.used(), [(0, 64)]);
        let bytes: [u8; 32] = queue.memory.read_obj(GuestAddress(0x9000)).unwrap();
        assert_ne!(bytes, [0; 32], "2^-256");
        assert_eq!(queue.interrupts(), 1);
    }

    #[test]
    fn a_read_only_descriptor_is_not_written() {
        let mut queue = TestQueue::new(64);
        queue.descriptor(0, 0x8000, 64, 0, 0);
        queue.offer(0);
        queue.serve(0, &mut Entropy).unwrap();
        assert_eq!(queue.used(), [(0, 0)]);
        assert_eq!(queue.memory.read_obj::<[u8; 32]>(GuestAddress(0x8000)).unwrap(), [0; 32]);
    }

    #[test]
    fn a_looping_chain_ends_the_request_not_the_device() {
        let mut queue = TestQueue::new(64);
        queue.descriptor(0, 0x8000, 16, NEXT | WRITE, 0);
        queue.descriptor(1, 0x9000, 16, WRITE, 0);
        queue.offer(0);
        queue.offer(1);
        queue.serve(0, &mut Entropy).unwrap();
        assert_eq!(queue.used(), [(0, 64 * 16), (1, 16)]);
    }

    #[test]
    fn an_indirect_table_of_absurd_length_ends_the_request_not_the_device() {
        let mut queue = TestQueue::new(64);
        queue.descriptor(0, 0x8000, 0xFFFF_FFF0, INDIRECT, 0);
        queue.descriptor(1, 0x8000, 16, WRITE, 0);
        queue.offer(0);
        queue.offer(1);
        queue.serve(0, &mut Entropy).unwrap();
        assert_eq!(queue.used(), [(0, 0), (1, 16)]);
    }

    #[test]
    fn what_comes_after_more_descriptors_than_a_chain_may_have_is_not_filled() {
        let mut queue = TestQueue::new(64);
        let table = queue.indirect_table(2000, |index| (0x8000, u32::from(index == 1500), WRITE));
        queue.descriptor(0, table, 16 * 2000, INDIRECT, 0);
        queue.offer(0);
        queue.serve(0, &mut Entropy).unwrap();
        assert_eq!(queue.used(), [(0, 0)]);
    }

    #[test]
    fn an_address_outside_memory_ends_the_request_not_the_device() {
        let mut queue = TestQueue::new(64);
        queue.descriptor(0, u64::MAX - 4, 64, WRITE, 0);
        queue.descriptor(1, queue.end() - 8, 64, WRITE, 0);
        queue.offer(0);
        queue.offer(1);
        queue.serve(0, &mut Entropy).unwrap();
        assert_eq!(queue.used(), [(0, 0), (1, 8)], "what fits is filled");
    }

    #[test]
    fn an_avail_index_that_leaps_breaks_the_queue() {
        let mut queue = TestQueue::new(64);
        queue.set_avail_index(65);
        assert!(queue.serve(0, &mut Entropy).is_err());
    }

    #[test]
    fn a_head_outside_the_table_breaks_the_queue() {
        let mut queue = TestQueue::new(64);
        queue.offer(64);
        assert!(queue.serve(0, &mut Entropy).is_err());
    }

    #[test]
    fn a_huge_request_is_bounded() {
        let mut queue = TestQueue::new(64);
        queue.descriptor(0, 0x8000, 0x7000_0000, WRITE, 0);
        queue.offer(0);
        queue.serve(0, &mut Entropy).unwrap();
        assert_eq!(queue.used(), [(0, u32::try_from(REQUEST_LIMIT).unwrap())]);
    }

    proptest! {
        #[test]
        fn no_queue_makes_the_device_panic(mut queue in hostile_queue(16)) {
            let _ = queue.serve(0, &mut Entropy);
        }
    }
}
