//! The two queues of an interface that belong together, with the queue of the tap that they share.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use super::receive::Receiver;
use super::tap::Tap;
use super::transmit::Transmitter;
use crate::devices::virtio::Interrupt;
use crate::devices::virtio::ring::RingError;
use crate::devices::virtio::task_threads::{Ready, Task};

/// A queue pair at work.
pub(super) struct QueuePair {
    pub(super) tap: Arc<dyn Tap>,
    pub(super) receiver: Receiver,
    pub(super) transmitter: Transmitter,
    pub(super) interrupt: Interrupt,
}

impl QueuePair {
    const TAP: usize = 0;
}

impl Task for QueuePair {
    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.tap.as_fd(), self.receiver.notification(), self.transmitter.notification()]
    }

    fn work(&mut self, ready: Ready) -> Result<bool, RingError> {
        if ready.has(Self::TAP) {
            self.receiver.on_readable();
        }
        let sent = self.transmitter.work(self.tap.as_fd(), &self.interrupt)?;
        let received = self.receiver.work(self.tap.as_fd(), &self.interrupt)?;
        Ok(sent || received)
    }

    fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }
}
