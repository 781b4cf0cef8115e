//! Guests that have taken over their kernel, against the whole VMM: its process, its jail and its devices, with a share,
//! a vsock socket, a network interface and a disk. Whatever they do, the VMM lives until the guest ends, or ends with a reason, meanwhile holds no
//! more than it may, and a machine beside it works on.
//!
//! What a guest does is made up from a seed, so that a failure can be had again. They run on any KVM.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test program"
)]

mod assembler;
#[path = "../common/mod.rs"]
mod common;
mod driver;
mod files;
mod machine;
mod processor;
mod random;
mod rings;
mod sockets;

#[test]
fn vmm_process() {
    common::be_the_vmm();
}
