//! The devices that the guest sees.

pub mod console;
pub mod io_apic;
pub mod power;
pub mod virtio;
