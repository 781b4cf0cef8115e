//! Frames from the guest.

use std::os::fd::BorrowedFd;

use super::tap::{HEADER_SIZE, write_frame};
use crate::devices::virtio::Interrupt;
use crate::devices::virtio::chain::{Chain, MAX_DESCRIPTORS};
use crate::devices::virtio::ring::{Ring, RingError};
use crate::memory::GuestMemory;

/// Bytes of an Ethernet header, the least that a frame has.
const ETHERNET_HEADER: usize = 14;

/// The queue of frames from the guest.
pub(super) struct Transmitter {
    ring: Ring,
    memory: GuestMemory,
    iovecs: Vec<libc::iovec>,
}

impl Transmitter {
    pub(super) fn new(ring: Ring, memory: GuestMemory) -> Self {
        Self { ring, memory, iovecs: Vec::new() }
    }

    /// Where the driver notifies that it has frames.
    pub(super) fn notification(&self) -> BorrowedFd<'_> {
        self.ring.notification()
    }

    /// Sends what the driver has made available, at most a ring full. True: there is more.
    pub(super) fn work(&mut self, tap: BorrowedFd<'_>, interrupt: &Interrupt) -> Result<bool, RingError> {
        self.ring.suppress_notifications()?;
        let mut more = true;
        for _ in 0..self.ring.size() {
            if self.send(tap)? {
                continue;
            }
            more = self.ring.request_notification()?;
            if !more {
                break;
            }
        }
        self.ring.signal(interrupt)?;
        Ok(more)
    }

    /// Sends one frame. False: there is none.
    fn send(&mut self, tap: BorrowedFd<'_>) -> Result<bool, RingError> {
        let Some(chain) = self.ring.pop(&self.memory)? else { return Ok(false) };
        let head = chain.head_index();
        if let Ok(Chain { readable, .. }) = Chain::parse(&self.memory, chain, self.ring.size()) {
            self.iovecs.clear();
            readable.append_iovecs(&mut self.iovecs);
            if readable.len() >= HEADER_SIZE + ETHERNET_HEADER && self.iovecs.len() <= MAX_DESCRIPTORS {
                // A frame that the kernel does not take, because its header makes no sense or for want of memory, is
                // lost, as frames may be on any network.
                let _ = write_frame(tap, &self.iovecs);
            }
        }
        self.ring.push_used(head, 0)?;
        Ok(true)
    }
}
