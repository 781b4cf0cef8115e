//! The devices that the guest sees.

pub mod console;
pub mod power;
pub mod virtio;
