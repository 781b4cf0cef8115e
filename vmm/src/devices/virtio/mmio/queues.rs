//! A queue while its driver sets it up.

use std::io;

use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use crate::devices::virtio::DeviceQueue;
use crate::memory::GuestMemory;

/// An address of 64 bits that is written in two halves.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct SplitAddress(u64);

impl SplitAddress {
    pub(super) fn set_low(&mut self, low: u32) {
        self.0 = self.0 & !u64::from(u32::MAX) | u64::from(low);
    }

    pub(super) fn set_high(&mut self, high: u32) {
        self.0 = self.0 & u64::from(u32::MAX) | u64::from(high) << 32;
    }
}

/// What the driver has said about a queue.
#[derive(Debug)]
pub(super) struct QueueSetup {
    max_size: u16,
    size: u32,
    pub(super) descriptors: SplitAddress,
    pub(super) available: SplitAddress,
    pub(super) used: SplitAddress,
    /// The queue, once the driver has enabled it and it was found to lie in memory.
    ready: Option<Queue>,
}

impl QueueSetup {
    pub(super) fn new(max_size: u16) -> Self {
        let address = SplitAddress::default();
        Self {
            max_size,
            size: max_size.into(),
            descriptors: address,
            available: address,
            used: address,
            ready: None,
        }
    }

    pub(super) fn max_size(&self) -> u16 {
        self.max_size
    }

    pub(super) fn set_size(&mut self, size: u32) {
        self.size = size;
    }

    pub(super) fn is_ready(&self) -> bool {
        self.ready.is_some()
    }

    /// Enables the queue if its rings are aligned, lie in memory, and have a size that can be. Otherwise it stays
    /// disabled, as the driver finds when it reads `QueueReady`.
    pub(super) fn enable(&mut self, memory: &GuestMemory, event_idx: bool) {
        if self.ready.is_none() {
            self.ready = self.validated(event_idx).filter(|queue| queue.is_valid(memory));
        }
    }

    pub(super) fn disable(&mut self) {
        self.ready = None;
    }

    pub(super) fn reset(&mut self) {
        *self = Self::new(self.max_size);
    }

    fn validated(&self, event_idx: bool) -> Option<Queue> {
        let mut queue = Queue::new(self.max_size).ok()?;
        queue.try_set_size(u16::try_from(self.size).ok()?).ok()?;
        queue.try_set_desc_table_address(GuestAddress(self.descriptors.0)).ok()?;
        queue.try_set_avail_ring_address(GuestAddress(self.available.0)).ok()?;
        queue.try_set_used_ring_address(GuestAddress(self.used.0)).ok()?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        Some(queue)
    }

    /// The queue for the device, if it is enabled.
    pub(super) fn build(&self, notification: &EventFd) -> io::Result<Option<DeviceQueue>> {
        let Some(queue) = &self.ready else { return Ok(None) };
        let mut copy = Queue::try_from(queue.state()).map_err(io::Error::other)?;
        copy.set_event_idx(queue.event_idx_enabled());
        Ok(Some(DeviceQueue { queue: copy, notification: notification.try_clone()? }))
    }
}
