//! A queue with the bookkeeping that every device's loop needs: taking chains, giving them back, and being quiet
//! in both directions.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{DescriptorChain, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress};

use super::{DeviceQueue, Interrupt};
use crate::memory::GuestMemory;

/// Where the flags lie in a ring (virtio 1.2, 2.7.6 and 2.7.8).
const RING_FLAGS: u64 = 0;
/// Where the index lies in a ring.
const RING_INDEX: u64 = 2;
/// Bytes before the available ring's elements, and of each.
const RING_HEADER: u64 = 4;
const RING_ELEMENT: u64 = 2;
/// Bytes before the used ring's elements, and of each.
const USED_HEADER: u64 = 4;
const USED_ELEMENT: u64 = 8;

/// The driver has broken the ring itself: the device cannot go on before it is reset.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The rings say something impossible, or are not in memory.
    #[error("the driver broke the ring: {0}")]
    Broken(#[source] virtio_queue::Error),
    /// The interrupt could not be raised.
    #[error("interrupt: {0}")]
    Interrupt(#[source] io::Error),
}

impl From<virtio_queue::Error> for RingError {
    fn from(error: virtio_queue::Error) -> Self {
        Self::Broken(error)
    }
}

/// One queue in use by a device.
#[derive(Debug)]
pub struct Ring {
    queue: DeviceQueue,
    memory: GuestMemory,
    /// The used index when the driver was last interrupted, or would have been.
    signalled: u16,
}

impl Ring {
    /// Takes a queue into use. `event_idx` says whether `VIRTIO_F_EVENT_IDX` was agreed on.
    pub fn new(mut queue: DeviceQueue, memory: GuestMemory, event_idx: bool) -> Self {
        queue.queue.set_event_idx(event_idx);
        let signalled = queue.queue.next_used();
        Self { queue, memory, signalled }
    }

    /// The number of entries that the driver chose.
    pub fn size(&self) -> u16 {
        self.queue.queue.size()
    }

    /// The file descriptor that is readable when the driver has notified the queue.
    pub fn notification(&self) -> BorrowedFd<'_> {
        // SAFETY: the EventFd that owns the descriptor is borrowed for as long as the result lives.
        unsafe { BorrowedFd::borrow_raw(self.queue.notification.as_raw_fd()) }
    }

    /// The next chain that the driver has made available.
    ///
    /// # Errors
    /// The available index leapt by more than the ring holds.
    pub fn pop<'m>(
        &mut self,
        memory: &'m GuestMemory,
    ) -> Result<Option<DescriptorChain<&'m GuestMemory>>, RingError> {
        Ok(self.queue.queue.iter(memory)?.next())
    }

    /// Puts the chain that [`pop`](Self::pop) returned last back, to be returned again.
    pub fn unpop(&mut self) {
        self.queue.queue.go_to_previous_position();
    }

    /// Gives the chain that starts at descriptor `head` back to the driver, with `length` bytes written to it.
    ///
    /// # Errors
    /// `head` is outside the descriptor table.
    pub fn push_used(&mut self, head: u16, length: u32) -> Result<(), RingError> {
        self.push_used_together([(head, length)])
    }

    /// The same for several chains, heads with lengths, of which the driver sees all or none. It may look at any time:
    /// a frame that takes several buffers would be half a frame to it otherwise.
    ///
    /// # Errors
    /// A head is outside the descriptor table; then the driver sees none.
    pub fn push_used_together(
        &mut self,
        chains: impl IntoIterator<Item = (u16, u32)>,
    ) -> Result<(), RingError> {
        let mut next = self.queue.queue.next_used();
        for (head, length) in chains {
            if head >= self.size() {
                return Err(virtio_queue::Error::InvalidDescriptorIndex.into());
            }
            let position = u64::from(next.checked_rem(self.size()).unwrap_or(0));
            let element = self.used_ring(USED_HEADER + USED_ELEMENT * position)?;
            let [h0, h1] = head.to_le_bytes();
            let [l0, l1, l2, l3] = length.to_le_bytes();
            let bytes = [h0, h1, 0, 0, l0, l1, l2, l3];
            self.memory.write_slice(&bytes, element).map_err(virtio_queue::Error::GuestMemory)?;
            next = next.wrapping_add(1);
        }
        let index = self.used_ring(RING_INDEX)?;
        // Release: who sees the index sees the elements, and what is in the buffers.
        self.memory
            .store(next.to_le(), index, Ordering::Release)
            .map_err(virtio_queue::Error::GuestMemory)?;
        self.queue.queue.set_next_used(next);
        Ok(())
    }

    fn used_ring(&self, offset: u64) -> Result<GuestAddress, RingError> {
        let start = GuestAddress(self.queue.queue.used_ring());
        Ok(start.checked_add(offset).ok_or(virtio_queue::Error::AddressOverflow)?)
    }

    /// Interrupts the driver if chains were given back since the last call and it wants to know.
    ///
    /// # Errors
    /// The ring is not readable, or the interrupt could not be raised.
    pub fn signal(&mut self, interrupt: &Interrupt) -> Result<(), RingError> {
        let used = self.queue.queue.next_used();
        let before = std::mem::replace(&mut self.signalled, used);
        if used == before || !self.wants_interrupt(before, used)? {
            return Ok(());
        }
        interrupt.used_buffer().map_err(RingError::Interrupt)
    }

    /// Asks the driver not to notify: the device is looking at the ring anyway.
    ///
    /// # Errors
    /// The ring is not writable.
    pub fn suppress_notifications(&mut self) -> Result<(), RingError> {
        Ok(self.queue.queue.disable_notification(&self.memory)?)
    }

    /// Asks the driver to notify from now on. True means that chains have arrived meanwhile, of which no
    /// notification may come: look again.
    ///
    /// # Errors
    /// The ring is not writable.
    pub fn request_notification(&mut self) -> Result<bool, RingError> {
        Ok(self.queue.queue.enable_notification(&self.memory)?)
    }

    /// Whether the driver wants to hear that the used index has gone from `before` to `used`.
    fn wants_interrupt(&self, before: u16, used: u16) -> Result<bool, RingError> {
        // The used index, which was stored before, must be visible ahead of the load of what the driver wants.
        fence(Ordering::SeqCst);
        if self.queue.queue.event_idx_enabled() {
            // "Interrupt me when the element at this index has been used" (virtio 1.2, 2.7.7.2).
            let event = self.load(RING_HEADER + RING_ELEMENT * u64::from(self.size()))?;
            return Ok(used.wrapping_sub(event).wrapping_sub(1) < used.wrapping_sub(before));
        }
        Ok(u32::from(self.load(RING_FLAGS)?) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }

    /// A field of the available ring.
    fn load(&self, offset: u64) -> Result<u16, RingError> {
        let start = GuestAddress(self.queue.queue.avail_ring());
        let address = start.checked_add(offset).ok_or(virtio_queue::Error::AddressOverflow)?;
        let field = self.memory.load(address, Ordering::Relaxed).map_err(virtio_queue::Error::GuestMemory)?;
        Ok(u16::from_le(field))
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.notification()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::devices::virtio::test_driver::{self, DriverQueue, InterruptLine};

    fn ring(driver: &DriverQueue, event_idx: bool) -> Ring {
        Ring::new(driver.device_queue(), driver.memory.clone(), event_idx)
    }

    proptest! {
        /// Against the rule in words: an interrupt comes when the element that the driver named is among those used
        /// since the last time, however often the index has wrapped.
        #[test]
        fn the_driver_is_interrupted_for_the_element_that_it_named(
            counts in proptest::collection::vec((0..16_u16, -20..20_i32), 0..40),
            start in any::<u16>(),
        ) {
            let memory = test_driver::memory();
            let driver = DriverQueue::new(&memory, 0x1_0000, 16);
            let (interrupt, line) = InterruptLine::new();
            let mut ring = ring(&driver, true);
            ring.queue.queue.set_next_used(start);
            ring.signalled = start;
            let mut used = i64::from(start);
            for (count, ahead) in counts {
                let named = used + i64::from(ahead);
                driver.name_element(named as u16);
                ring.push_used_together((0..count).map(|head| (head, 0))).unwrap();
                ring.signal(&interrupt).unwrap();
                let expected = (used..used + i64::from(count)).contains(&named);
                prop_assert_eq!(line.count() > 0, expected);
                used += i64::from(count);
            }
        }
    }

    #[test]
    fn chains_given_back_together_are_seen_together() {
        const ROUNDS: u32 = if cfg!(miri) { 4 } else { 2000 };
        let memory = test_driver::memory();
        let mut driver = DriverQueue::new(&memory, 0x1_0000, 256);
        let mut ring = ring(&driver, true);
        std::thread::scope(|scope| {
            let giver = scope.spawn(move || {
                for _ in 0..ROUNDS {
                    ring.push_used_together((0..64).map(|head| (head, 7))).unwrap();
                }
            });
            let mut seen = 0;
            while !giver.is_finished() {
                let step = driver.used_since_last_look();
                assert_eq!(step % 64, 0, "half of what belongs together");
                seen += u32::from(step);
            }
            seen += u32::from(driver.used_since_last_look());
            assert_eq!(seen % (1 << 16), ROUNDS * 64 % (1 << 16));
        });
    }

    #[test]
    fn a_head_outside_the_table_shows_nothing_to_the_driver() {
        let memory = test_driver::memory();
        let mut driver = DriverQueue::new(&memory, 0x1_0000, 16);
        let mut ring = ring(&driver, true);
        assert!(ring.push_used_together([(3, 1), (16, 1)]).is_err());
        assert_eq!(driver.take_used(), None);
    }

    #[test]
    fn a_driver_without_event_indices_has_a_flag_against_interrupts() {
        let memory = test_driver::memory();
        let driver = DriverQueue::new(&memory, 0x1_0000, 16);
        let (interrupt, line) = InterruptLine::new();
        let mut ring = ring(&driver, false);
        ring.signal(&interrupt).unwrap();
        assert_eq!(line.count(), 0, "nothing was used");
        ring.push_used(0, 0).unwrap();
        ring.signal(&interrupt).unwrap();
        assert_eq!(line.count(), 1);
        driver.set_available_flags(1);
        ring.push_used(0, 0).unwrap();
        ring.signal(&interrupt).unwrap();
        assert_eq!(line.count(), 0);
    }

    #[test]
    fn a_chain_that_is_put_back_comes_again() {
        let memory = test_driver::memory();
        let mut driver = DriverQueue::new(&memory, 0x1_0000, 16);
        let mut ring = ring(&driver, true);
        for head in [3, 5] {
            driver.describe(head, 0x8000, 1, 0, 0);
            driver.offer(head);
        }
        let head = |ring: &mut Ring| Some(ring.pop(&memory).unwrap()?.head_index());
        assert_eq!(head(&mut ring), Some(3));
        ring.unpop();
        assert_eq!(head(&mut ring), Some(3));
        assert_eq!(head(&mut ring), Some(5));
        assert_eq!(head(&mut ring), None);
    }

    #[test]
    fn a_driver_is_asked_for_notifications_only_while_nobody_looks() {
        let memory = test_driver::memory();
        let mut driver = DriverQueue::new(&memory, 0x1_0000, 16);
        let mut ring = ring(&driver, false);
        // `VIRTQ_USED_F_NO_NOTIFY` (virtio 1.2, 2.7.8).
        let unwanted = || memory.read_obj::<u16>(GuestAddress(driver.used_ring())).unwrap() == 1;
        ring.suppress_notifications().unwrap();
        assert!(unwanted());
        assert!(!ring.request_notification().unwrap(), "nothing has arrived");
        assert!(!unwanted());
        driver.offer(0);
        assert!(ring.request_notification().unwrap(), "of this one no notification comes");
    }
}
