//! virtio devices (Virtual I/O Device specification, version 1.2, called "virtio 1.2" below).

pub mod device;
pub mod fs;
pub mod interrupt;

pub use device::{Activation, ActivationError, DeviceQueue, VirtioDevice};
pub use interrupt::Interrupt;
