//! Why the virtual machine stops: set once, by whoever knows first, and waited for by the event loop.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::control::StopReason;

/// The first reason that somebody has given for stopping.
#[derive(Debug)]
pub struct Outcome {
    reason: Mutex<Option<StopReason>>,
    event: EventFd,
}

impl Outcome {
    /// Nothing has happened yet.
    ///
    /// # Errors
    /// The host's refusal of an eventfd.
    pub fn new() -> io::Result<Self> {
        Ok(Self { reason: Mutex::new(None), event: EventFd::new(EFD_NONBLOCK)? })
    }

    /// Stops the virtual machine for `reason`, unless somebody has been faster.
    pub fn set(&self, reason: StopReason) {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
        // Only a counter that is full, and thus readable, refuses.
        let _ = self.event.write(1);
    }

    /// The reason, once there is one.
    pub fn get(&self) -> Option<StopReason> {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Readable once there is a reason.
    pub fn event(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as `self`, which the lifetime borrows.
        unsafe { BorrowedFd::borrow_raw(self.event.as_raw_fd()) }
    }
}
