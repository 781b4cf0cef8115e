//! The devices that the guest sees.

pub mod clock;
pub mod console;
pub mod io_apic;
pub mod power;
pub mod virtio;
