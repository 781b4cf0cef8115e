//! What the transport asks of a virtio device.

use std::io;

use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

use super::Interrupt;
use crate::memory::GuestMemory;

/// One queue as the driver has set it up: valid rings inside memory, size and addresses fixed.
#[derive(Debug)]
pub struct DeviceQueue {
    /// The rings.
    pub queue: Queue,
    /// Readable when the driver has notified the queue (an ioeventfd on the transport's `QueueNotify`).
    pub notification: EventFd,
}

/// What a device is handed when its driver sets `DRIVER_OK`.
#[derive(Debug)]
pub struct Activation {
    /// The guest's memory. Cloning shares the mapping.
    pub memory: GuestMemory,
    /// One entry per queue of [`VirtioDevice::queue_sizes`]; `None` where the driver left the queue disabled.
    pub queues: Vec<Option<DeviceQueue>>,
    /// The device's interrupt.
    pub interrupt: Interrupt,
    /// The feature bits that both sides have agreed on.
    pub features: u64,
}

/// Why a device could not be activated. The transport answers with `DEVICE_NEEDS_RESET`.
#[derive(Debug, thiserror::Error)]
pub enum ActivationError {
    /// A queue that the device cannot do without is disabled.
    #[error("queue {0} is needed and the driver left it disabled")]
    QueueDisabled(usize),
    /// The host refused something.
    #[error("{what}: {source}")]
    Host {
        /// What was asked of the host.
        what: &'static str,
        /// Its answer.
        source: io::Error,
    },
}

/// A virtio device behind a virtio-mmio transport.
///
/// The transport runs on the vCPU threads and calls this under a lock; a device that processes its queues
/// elsewhere moves what [`activate`](Self::activate) hands it to that thread. Nothing here may block on the guest.
pub trait VirtioDevice: Send {
    /// The device type (virtio 1.2, section 5).
    fn device_type(&self) -> u32;

    /// The name for messages and threads: "fs", "vsock", "rng", "balloon", "net", …
    fn name(&self) -> &'static str;

    /// The largest size of each queue, a power of two; the length is the number of queues.
    fn queue_sizes(&self) -> &[u16];

    /// The feature bits on offer. `VIRTIO_F_VERSION_1` must be among them: there is no legacy interface.
    fn features(&self) -> u64;

    /// Reads the device's configuration space. Bytes beyond its end read as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes the device's configuration space. What is not writable is ignored, as virtio 1.2 section 2.5 has it.
    fn write_config(&mut self, offset: u64, data: &[u8]);

    /// The driver is ready: start processing.
    ///
    /// # Errors
    /// The device stays dead and the driver learns that it needs a reset.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivationError>;

    /// Stop processing, let go of everything that [`activate`](Self::activate) brought, and be as new. When it
    /// returns no thread of the device touches guest memory any more.
    fn reset(&mut self);
}
