//! The driver's side of virtqueues on plain memory, for the tests of devices: well-behaved by default, and able to
//! write whatever a hostile driver could.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{Ordering, fence};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Activation, DeviceQueue, Interrupt};
use crate::memory::GuestMemory;

/// `VIRTQ_DESC_F_NEXT`
pub(crate) const NEXT: u16 = VRING_DESC_F_NEXT as u16;
/// `VIRTQ_DESC_F_WRITE`
pub(crate) const WRITE: u16 = VRING_DESC_F_WRITE as u16;
/// `VIRTQ_DESC_F_INDIRECT`
pub(crate) const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

/// An entry of a descriptor table: address, length, flags, next.
pub(crate) type Descriptor = (u64, u32, u16, u16);

/// Guest memory for tests: 16 MiB in two regions that meet at 8 MiB, so that a buffer can lie across both, and
/// nothing behind.
pub(crate) fn memory() -> GuestMemory {
    let half = 8 << 20;
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), half), (GuestAddress(half as u64), half)]).unwrap()
}

/// Where the two regions of [`memory`] meet.
pub(crate) const SEAM: u64 = 8 << 20;

/// One queue, as its driver sees it.
#[derive(Debug)]
pub(crate) struct DriverQueue {
    pub(crate) memory: GuestMemory,
    base: u64,
    pub(crate) size: u16,
    pub(crate) available: u16,
    used: u16,
    notification: EventFd,
}

impl DriverQueue {
    /// A queue whose rings take the 16 KiB from `base`.
    pub(crate) fn new(memory: &GuestMemory, base: u64, size: u16) -> Self {
        assert!(size <= 256, "the rings would overlap");
        let notification = EventFd::new(EFD_NONBLOCK).unwrap();
        Self { memory: memory.clone(), base, size, available: 0, used: 0, notification }
    }

    fn available_ring(&self) -> u64 {
        self.base + 0x1000
    }

    pub(crate) fn used_ring(&self) -> u64 {
        self.base + 0x2000
    }

    /// What the transport would hand to the device.
    pub(crate) fn device_queue(&self) -> DeviceQueue {
        let mut queue = Queue::new(256).unwrap();
        queue.set_size(self.size);
        queue.set_desc_table_address(Some(self.base as u32), Some(0));
        queue.set_avail_ring_address(Some(self.available_ring() as u32), Some(0));
        queue.set_used_ring_address(Some(self.used_ring() as u32), Some(0));
        queue.set_ready(true);
        assert!(queue.is_valid(&self.memory));
        DeviceQueue { queue, notification: self.notification.try_clone().unwrap() }
    }

    /// Writes one entry of the descriptor table.
    pub(crate) fn describe(&self, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        write_descriptor(&self.memory, self.base + 16 * u64::from(index), (address, length, flags, next));
    }

    /// Writes a chain of `(address, length, flags)` to the table from `first` on.
    pub(crate) fn describe_chain(&self, first: u16, parts: &[(u64, u32, u16)]) {
        for (index, (address, length, flags)) in (first..).zip(parts) {
            let last = usize::from(index - first) + 1 == parts.len();
            let next = if last { 0 } else { NEXT };
            self.describe(index, *address, *length, flags | next, index + 1);
        }
    }

    /// Puts the chain that starts at `head` into the available ring.
    pub(crate) fn offer(&mut self, head: u16) {
        let entry = self.available_ring() + 4 + 2 * u64::from(self.available % self.size);
        self.memory.write_obj(head, GuestAddress(entry)).unwrap();
        self.set_available(self.available.wrapping_add(1));
    }

    /// Sets the available index, to whatever.
    pub(crate) fn set_available(&mut self, index: u16) {
        self.available = index;
        self.memory.write_obj(index, GuestAddress(self.available_ring() + 2)).unwrap();
    }

    /// Notifies the device.
    pub(crate) fn notify(&self) {
        self.notification.write(1).unwrap();
    }

    /// Whether the device has not taken the last notification.
    pub(crate) fn is_notified(&self) -> bool {
        self.notification.read().is_ok()
    }

    /// Notifies the device of what was made available since `before` if it has asked for that (virtio 1.2, 2.7.10).
    pub(crate) fn notify_if_asked(&self, before: u16) {
        fence(Ordering::SeqCst);
        let event = GuestAddress(self.used_ring() + 4 + 8 * u64::from(self.size));
        let event: u16 = self.memory.load(event, Ordering::SeqCst).unwrap();
        if self.available.wrapping_sub(event).wrapping_sub(1) < self.available.wrapping_sub(before) {
            self.notify();
        }
    }

    /// The next chain that the device has given back: its head and the bytes written. `None`: not yet, and
    /// there will be an interrupt.
    pub(crate) fn take_used(&mut self) -> Option<(u16, u32)> {
        if self.used_index() == self.used {
            self.name_element(self.used);
            fence(Ordering::SeqCst);
            if self.used_index() == self.used {
                return None;
            }
        }
        let entry = self.used_ring() + 4 + 8 * u64::from(self.used % self.size);
        self.used = self.used.wrapping_add(1);
        let head: u32 = self.memory.read_obj(GuestAddress(entry)).unwrap();
        let length: u32 = self.memory.read_obj(GuestAddress(entry + 4)).unwrap();
        Some((u16::try_from(head).unwrap(), length))
    }
}

impl DriverQueue {
    /// Asks for an interrupt when the element of this index has been used.
    pub(crate) fn name_element(&self, index: u16) {
        let used_event = GuestAddress(self.available_ring() + 4 + 2 * u64::from(self.size));
        self.memory.store(index, used_event, Ordering::SeqCst).unwrap();
    }

    /// Sets the flags of the available ring.
    pub(crate) fn set_available_flags(&self, flags: u16) {
        self.memory.store(flags, GuestAddress(self.available_ring()), Ordering::SeqCst).unwrap();
    }

    /// How many chains the device has given back since the last call; they are passed over.
    pub(crate) fn used_since_last_look(&mut self) -> u16 {
        let index = self.used_index();
        index.wrapping_sub(std::mem::replace(&mut self.used, index))
    }

    fn used_index(&self) -> u16 {
        self.memory.load(GuestAddress(self.used_ring() + 2), Ordering::SeqCst).unwrap()
    }
}

/// Writes a descriptor anywhere, an indirect table for one.
pub(crate) fn write_descriptor(memory: &GuestMemory, at: u64, (address, length, flags, next): Descriptor) {
    let mut descriptor = [0; 16];
    descriptor[..8].copy_from_slice(&address.to_le_bytes());
    descriptor[8..12].copy_from_slice(&length.to_le_bytes());
    descriptor[12..14].copy_from_slice(&flags.to_le_bytes());
    descriptor[14..].copy_from_slice(&next.to_le_bytes());
    memory.write_slice(&descriptor, GuestAddress(at)).unwrap();
}

/// The driver's end of an interrupt.
#[derive(Debug)]
pub(crate) struct InterruptLine(EventFd);

impl InterruptLine {
    /// An interrupt for a device, and its line for the driver.
    pub(crate) fn new() -> (Interrupt, Self) {
        let line = EventFd::new(EFD_NONBLOCK).unwrap();
        (Interrupt::new(line.try_clone().unwrap()), Self(line))
    }

    /// Waits until the device has interrupted since the last call, and returns how often it has. Panics when it does
    /// not in half a minute.
    pub(crate) fn wait(&self) -> u64 {
        // SAFETY: the eventfd is open as long as `self`.
        let line = unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) };
        let patience = Timespec { tv_sec: 30, tv_nsec: 0 };
        let ready = poll(&mut [PollFd::new(&line, PollFlags::IN)], Some(&patience)).unwrap();
        assert_eq!(ready, 1, "the device did not interrupt");
        self.0.read().unwrap()
    }

    /// How often the device has interrupted since the last call.
    pub(crate) fn count(&self) -> u64 {
        self.0.read().unwrap_or(0)
    }
}

/// What a device is activated with.
pub(crate) fn activation(
    memory: &GuestMemory,
    queues: &[&DriverQueue],
    interrupt: Interrupt,
    features: u64,
) -> Activation {
    Activation {
        memory: memory.clone(),
        queues: queues.iter().map(|queue| Some(queue.device_queue())).collect(),
        interrupt,
        features,
    }
}
