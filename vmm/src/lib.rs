//! Saya's virtual machine monitor as a library: guest memory, boot, vCPUs, virtio devices and the virtio-fs server.
//!
//! It knows nothing of containers. Everything that the guest can write is hostile: it is bounded, checked, and
//! answered with an error or a dead device, never with a panic.

pub mod control;
pub mod devices;
pub mod fs;
pub mod memory;
