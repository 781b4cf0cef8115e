//! Saya's virtual machine monitor as a library: guest memory, boot, vCPUs, virtio devices and the virtio-fs server.
//!
//! It knows nothing of containers. Everything that the guest can write is hostile: it is bounded, checked, and
//! answered with an error or a dead device, never with a panic.

pub mod boot;
pub mod bus;
pub mod clock;
pub mod control;
pub mod cpu;
pub mod devices;
pub mod event_loop;
pub mod fs;
pub mod jail;
pub mod kvm;
pub mod layout;
pub mod memory;
pub mod outcome;
pub mod process;
pub mod vm;

/// How many steps a test that is fed at random takes: fewer under Miri, which needs a thousand times as long for each.
#[cfg(test)]
const fn steps(usual: usize) -> usize {
    if cfg!(miri) { usual / 16 } else { usual }
}
