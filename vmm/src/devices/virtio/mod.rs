//! virtio devices (Virtual I/O Device specification, version 1.2, called "virtio 1.2" below).

pub mod balloon;
pub mod blk;
pub mod chain;
pub mod device;
pub mod fs;
pub mod interrupt;
pub mod mmio;
pub mod net;
mod poller;
pub mod queue;
pub mod ring;
pub mod rng;
mod standby;
pub mod task_threads;
#[cfg(test)]
pub(crate) mod test_driver;
#[cfg(test)]
pub(crate) mod testing;
pub mod vsock;

pub use device::{Activation, ActivationError, DeviceQueue, VirtioDevice};
pub use interrupt::Interrupt;
