//! virtio-blk (virtio 1.2, 5.2): a block device of the host's, read and written straight from and into guest memory.
//!
//! What the guest writes goes through the host's page cache and is safe once the guest has flushed it, as on any disk with
//! a cache of its own.

mod configuration;
mod device;
mod host_file;
mod queue;
mod request;

pub use device::{Blk, BlkConfig, BlkError};

/// The unit of all positions and lengths, whatever the device's block size (virtio 1.2, 5.2.4).
pub const SECTOR: u64 = 512;

#[cfg(test)]
mod tests;
