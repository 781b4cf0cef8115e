//! The request queue at work.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::request::Disk;
use crate::devices::virtio::Interrupt;
use crate::devices::virtio::chain::Chain;
use crate::devices::virtio::ring::{Ring, RingError};
use crate::devices::virtio::task_threads::{Ready, Task};
use crate::memory::GuestMemory;

/// How many requests are served before another device of the thread's has its turn.
const TURN: usize = 32;

/// The request queue of a device that has its driver.
pub(super) struct RequestQueue {
    pub(super) disk: Arc<Disk>,
    pub(super) ring: Ring,
    pub(super) memory: GuestMemory,
    pub(super) interrupt: Interrupt,
}

impl Task for RequestQueue {
    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.ring.notification()]
    }

    fn work(&mut self, _ready: Ready) -> Result<bool, RingError> {
        self.ring.suppress_notifications()?;
        let mut more = true;
        for _ in 0..TURN {
            if let Some(chain) = self.ring.pop(&self.memory)? {
                let head = chain.head_index();
                let chain = Chain::parse(&self.memory, chain, self.ring.size());
                let written = chain.map_or(0, |chain| self.disk.serve(chain));
                self.ring.push_used(head, written)?;
                // A request takes as long as the host's device does: the driver need not wait for the next one.
                self.ring.signal(&self.interrupt)?;
            } else {
                more = self.ring.request_notification()?;
                if !more {
                    break;
                }
            }
        }
        Ok(more)
    }

    fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }
}
