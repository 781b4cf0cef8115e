//! The devices that the guest sees.

pub mod virtio;
