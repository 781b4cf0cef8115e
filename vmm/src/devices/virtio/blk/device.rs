//! The device as the transport sees it.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use super::SECTOR;
use super::configuration::{self, QUEUE_SIZE};
use super::host_file::HostFile;
use super::queue::RequestQueue;
use super::request::Disk;
use crate::devices::virtio::ring::Ring;
use crate::devices::virtio::task_threads::{Registration, Task, TaskThreads};
use crate::devices::virtio::{Activation, ActivationError, VirtioDevice};

/// The largest block size, a page: Linux takes no larger one.
const LARGEST_BLOCK: u32 = 4096;

/// What a block device is made of.
pub struct BlkConfig {
    /// The host's device or file, open for reading, and for writing unless the guest's is read-only.
    pub file: OwnedFd,
    /// Its length in sectors of 512 bytes.
    pub sectors: u64,
    /// Its block size in bytes.
    pub block_size: u32,
    /// Whether the guest may only read.
    pub read_only: bool,
    /// Its serial number, of which the guest sees the first 20 bytes.
    pub id: String,
    /// Where it is served.
    pub threads: TaskThreads,
}

/// Why there is no block device.
#[derive(Debug, thiserror::Error)]
pub enum BlkError {
    /// A block size that Linux has none of.
    #[error("a block device with blocks of {0} bytes: it must be a power of two from 512 to {LARGEST_BLOCK}")]
    BlockSize(u32),
    /// More than a file can have.
    #[error("a block device of {0} sectors of 512 bytes is larger than any file")]
    Sectors(u64),
}

/// A virtio block device (virtio 1.2, 5.2).
pub struct Blk {
    disk: Arc<Disk>,
    threads: TaskThreads,
    features: u64,
    configuration: Vec<u8>,
    active: Option<Registration>,
}

impl Blk {
    /// A block device that waits for its driver.
    ///
    /// # Errors
    /// The configuration makes no block device.
    pub fn new(config: BlkConfig) -> Result<Self, BlkError> {
        let BlkConfig { file, sectors, block_size, read_only, id, threads } = config;
        if !block_size.is_power_of_two() || !(512..=LARGEST_BLOCK).contains(&block_size) {
            return Err(BlkError::BlockSize(block_size));
        }
        if sectors.checked_mul(SECTOR).is_none_or(|bytes| i64::try_from(bytes).is_err()) {
            return Err(BlkError::Sectors(sectors));
        }
        Ok(Self {
            disk: Arc::new(Disk { file: HostFile(file), sectors, read_only, id }),
            threads,
            features: configuration::features(read_only),
            configuration: configuration::space(sectors, block_size).to_vec(),
            active: None,
        })
    }
}

impl VirtioDevice for Blk {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn name(&self) -> &'static str {
        "blk"
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.configuration.get(offset..));
        let mut bytes = rest.unwrap_or_default().iter();
        data.fill_with(|| bytes.next().copied().unwrap_or(0));
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {
        // Only `writeback` is writable, where that is on offer (virtio 1.2, 5.2.4).
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivationError> {
        let Activation { memory, queues, interrupt, features } = activation;
        let queue = queues.into_iter().next().flatten().ok_or(ActivationError::QueueDisabled(0))?;
        let ring = Ring::new(queue, memory.clone(), features & 1 << VIRTIO_RING_F_EVENT_IDX != 0);
        let queue = RequestQueue { disk: Arc::clone(&self.disk), ring, memory, interrupt };
        let make_task = move || -> Box<dyn Task> { Box::new(queue) };
        let active = self.threads.add(0, Box::new(make_task));
        self.active =
            Some(active.map_err(|source| ActivationError::Host { what: "the blk thread", source })?);
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
    }
}
