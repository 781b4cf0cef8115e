//! The virtio file system device (virtio 1.2, section 5.11).
//!
//! Two queues: the high priority queue, on which the driver sends FORGET, and one request queue. A thread named `fs`
//! serves both; the FUSE server itself is [`crate::fs`].

mod chain;
mod worker;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::thread::JoinHandle;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Activation, ActivationError, VirtioDevice};
use crate::fs::{FsConfig, FsError};
use worker::Worker;

/// The device type (virtio 1.2, 5.11.1).
const DEVICE_TYPE: u32 = 26;
/// Bytes of the tag in the configuration space (virtio 1.2, 5.11.4).
const TAG_BYTES: usize = 36;
/// The high priority queue takes one descriptor per FORGET.
const HIGH_PRIORITY_QUEUE_SIZE: u16 = 128;
/// The driver cuts requests to fit: for 256 pages in one request it wants 4 descriptors more than that.
const REQUEST_QUEUE_SIZE: u16 = 512;
const QUEUE_SIZES: [u16; 2] = [HIGH_PRIORITY_QUEUE_SIZE, REQUEST_QUEUE_SIZE];
/// The thread's deepest call path is a FUSE operation on a few kilobytes of locals.
const STACK_BYTES: usize = 256 * 1024;

/// A virtio file system device.
#[derive(Debug)]
pub struct Fs {
    config: FsConfig,
    config_space: [u8; TAG_BYTES + size_of::<u32>()],
    running: Option<Running>,
}

/// The thread that serves the queues.
#[derive(Debug)]
struct Running {
    thread: JoinHandle<()>,
    stop: EventFd,
}

impl Fs {
    /// A device that shares what `config` says.
    ///
    /// # Errors
    /// When the tag does not fit into the configuration space. What is wrong with the directory shows at activation.
    pub fn new(config: FsConfig) -> Result<Self, FsError> {
        let config_space = config_space(&config.tag)?;
        Ok(Self { config, config_space, running: None })
    }

    /// A configuration for one activation: the device keeps its own, for the next one after a reset.
    fn config_for_thread(&self) -> io::Result<FsConfig> {
        let duplicate = |descriptor: &OwnedFd| descriptor.try_clone();
        Ok(FsConfig {
            root: duplicate(&self.config.root)?,
            descriptor_directory: duplicate(&self.config.descriptor_directory)?,
            tag: self.config.tag.clone(),
            cache_policy: self.config.cache_policy.clone(),
            writeback: self.config.writeback,
            remote_locks: self.config.remote_locks,
            implicit_opens: self.config.implicit_opens,
            most_inodes: self.config.most_inodes,
        })
    }

    fn start(&self, activation: Activation) -> io::Result<Running> {
        let config = self.config_for_thread()?;
        let stop = EventFd::new(EFD_NONBLOCK)?;
        let stop_for_thread = stop.try_clone()?;
        let (report, started) = mpsc::sync_channel(1);
        // The server must be made on the thread that it will run on.
        let thread =
            std::thread::Builder::new().name("fs".into()).stack_size(STACK_BYTES).spawn(move || {
                match Worker::new(config, activation.queues, activation.interrupt, stop_for_thread) {
                    Ok(mut worker) => {
                        let _ = report.send(Ok(()));
                        worker.run(&activation.memory);
                    }
                    Err(error) => {
                        let _ = report.send(Err(error));
                    }
                }
            })?;
        match started.recv() {
            Ok(Ok(())) => Ok(Running { thread, stop }),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(io::Error::other("the fs thread ended before it had started")),
        }
    }
}

impl VirtioDevice for Fs {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn name(&self) -> &'static str {
        "fs"
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.config_space.get(offset..));
        let mut bytes = rest.unwrap_or_default().iter();
        data.fill_with(|| bytes.next().copied().unwrap_or(0));
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {
        // Nothing in the configuration space is writable (virtio 1.2, 5.11.4).
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivationError> {
        for index in 0..QUEUE_SIZES.len() {
            if activation.queues.get(index).is_none_or(Option::is_none) {
                return Err(ActivationError::QueueDisabled(index));
            }
        }
        let event_idx = activation.features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        worker::use_event_idx(&mut activation.queues, event_idx);
        let running = self
            .start(activation)
            .map_err(|source| ActivationError::Host { what: "start the fs thread", source })?;
        self.running = Some(running);
        Ok(())
    }

    fn reset(&mut self) {
        if let Some(running) = self.running.take() {
            // Writing to an eventfd fails only when its counter is full, and then the thread has been told already.
            let _ = running.stop.write(1);
            // A thread that panicked touches guest memory no more than one that ended.
            let _ = running.thread.join();
        }
    }
}

impl Drop for Fs {
    fn drop(&mut self) {
        self.reset();
    }
}

/// `struct virtio_fs_config`: the tag, padded with NULs, and the number of request queues.
fn config_space(tag: &str) -> Result<[u8; TAG_BYTES + size_of::<u32>()], FsError> {
    if tag.is_empty() || tag.len() > TAG_BYTES {
        return Err(FsError::Tag(tag.to_owned(), tag.len()));
    }
    let mut space = [0; TAG_BYTES + size_of::<u32>()];
    let request_queues = 1_u32.to_le_bytes();
    let padded = tag.bytes().chain(std::iter::repeat(0)).take(TAG_BYTES);
    for (room, byte) in space.iter_mut().zip(padded.chain(request_queues)) {
        *room = byte;
    }
    Ok(space)
}

#[cfg(test)]
mod tests;
