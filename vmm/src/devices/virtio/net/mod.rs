//! virtio-net: the guest's network interfaces, each behind a tap device of the host.
//!
//! A frame is copied once, by the kernel, between its socket buffer and guest memory. Checksums and segmentation are
//! left to whoever is last on the way, so that a TCP stream moves in frames of up to 64 KiB: the header that
//! precedes each frame on the ring is the one that the tap reads and writes (`IFF_VNET_HDR`).

mod control;
mod device;
mod features;
mod queue_pair;
mod receive;
mod tap;
mod transmit;

pub use device::{Net, NetConfig, NetError};
pub use tap::{KernelTap, Offloads, Tap};

#[cfg(test)]
mod tests;
