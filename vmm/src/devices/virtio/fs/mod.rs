//! The virtio file system device (virtio 1.2, section 5.11).
//!
//! Two queues: the high priority queue, on which the driver sends FORGET, and one request queue. A thread named `fs`
//! serves both; the FUSE server itself is [`crate::fs`].

mod chain;
mod worker;

use std::io;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::standby::{Session, Standby, ThreadPlan, UntilStopped};
use super::{Activation, ActivationError, VirtioDevice};
use crate::fs::{DescriptorBudget, FsConfig, FsError, Server};
use crate::jail::{Confinement, Role};
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
    config_space: [u8; TAG_BYTES + size_of::<u32>()],
    thread: Standby<UntilStopped<Activation>>,
    /// From an activation to the next reset.
    session: Option<Session>,
}

impl Fs {
    /// A device that shares what `config` says and holds what `budget` allows, and its thread.
    ///
    /// # Errors
    /// A directory that cannot be shared, a tag that does not fit, or the host's refusal of the thread.
    pub fn new(
        config: FsConfig,
        budget: DescriptorBudget,
        confinement: &Confinement,
    ) -> Result<Self, FsError> {
        let config_space = config_space(&config.tag)?;
        let plan = ThreadPlan { name: "fs", stack: STACK_BYTES, role: Role::Fs, confinement };
        // The server must be made on the thread that it will run on.
        let prepare = move || {
            let mut server = Server::new(config, budget).map_err(io::Error::other)?;
            Ok(move |session| serve(&mut server, session))
        };
        let thread = Standby::start(plan, prepare).map_err(|error| FsError::Host("the fs thread", error))?;
        Ok(Self { config_space, thread, session: None })
    }
}

/// Serves the queues until it is told to stop, and forgets what the guest knew.
fn serve(server: &mut Server, session: UntilStopped<Activation>) {
    let UntilStopped { work: Activation { memory, queues, interrupt, .. }, stop } = session;
    match Worker::new(server, queues, interrupt.clone(), stop) {
        Ok(mut worker) => worker.run(&memory),
        Err(error) => {
            eprintln!("fs: the device stops until the guest resets it: {error}");
            // Should the interrupt fail, the driver still finds it in the status.
            let _ = interrupt.needs_reset();
        }
    }
    server.end_session();
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
        let refused = |source| ActivationError::Host { what: "the fs thread", source };
        self.session = Some(self.thread.begin_session(activation).map_err(refused)?);
        Ok(())
    }

    fn reset(&mut self) {
        if let Some(session) = self.session.take() {
            session.end();
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
