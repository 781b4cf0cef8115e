//! A queue with the bookkeeping that every device's loop needs: taking chains, giving them back, and being quiet
//! in both directions.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::Ordering;

use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{DescriptorChain, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::{DeviceQueue, Interrupt};
use crate::memory::GuestMemory;

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
    used_any: bool,
}

impl Ring {
    /// Takes a queue into use. `event_idx` says whether `VIRTIO_F_EVENT_IDX` was agreed on.
    pub fn new(mut queue: DeviceQueue, memory: GuestMemory, event_idx: bool) -> Self {
        queue.queue.set_event_idx(event_idx);
        Self { queue, memory, used_any: false }
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
        self.queue.queue.add_used(&self.memory, head, length)?;
        self.used_any = true;
        Ok(())
    }

    /// Interrupts the driver if chains were given back since the last call and it wants to know.
    ///
    /// # Errors
    /// The ring is not readable, or the interrupt could not be raised.
    pub fn signal(&mut self, interrupt: &Interrupt) -> Result<(), RingError> {
        if !std::mem::take(&mut self.used_any) || !self.wants_interrupt()? {
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

    fn wants_interrupt(&mut self) -> Result<bool, RingError> {
        if self.queue.queue.event_idx_enabled() {
            return Ok(self.queue.queue.needs_notification(&self.memory)?);
        }
        // virtio-queue leaves the flag of the available ring to its caller. The fence orders the used index,
        // which was stored before, ahead of the load of the flag.
        std::sync::atomic::fence(Ordering::SeqCst);
        let flags: u16 = self
            .memory
            .load(GuestAddress(self.queue.queue.avail_ring()), Ordering::Relaxed)
            .map_err(virtio_queue::Error::GuestMemory)?;
        Ok(u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.notification()
    }
}
