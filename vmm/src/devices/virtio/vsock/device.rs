//! The device as the transport sees it.

use std::io;
use std::os::unix::net::UnixListener;

use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use super::connector::Connector;
use super::worker::{self, GuestSide, HostSide};
use crate::devices::virtio::ring::Ring;
use crate::devices::virtio::standby::{Session, Standby, ThreadPlan, UntilStopped};
use crate::devices::virtio::{Activation, ActivationError, VirtioDevice};
use crate::jail::{Confinement, Role};

/// The device type (virtio 1.2, 5).
const VIRTIO_ID_VSOCK: u32 = 19;

/// Packets to the guest, packets from the guest, events. A Linux guest fills the first with 4 KiB buffers, and
/// never uses more than 8 of the last, in which nothing is ever put: there is no migration to tell of.
const QUEUE_SIZES: [u16; 3] = [128, 128, 8];
const RX_QUEUE: usize = 0;
const TX_QUEUE: usize = 1;

/// The thread's stack. Nothing there recurses, and all buffers are on the heap.
const STACK_SIZE: usize = 128 * 1024;

/// What a vsock device is made of.
pub struct VsockConfig {
    /// The guest's address, 3 or more.
    pub guest_cid: u64,
    /// Where host clients connect to ask for a port of the guest. Clients wait in its backlog until the guest's
    /// driver is ready. It is made non-blocking.
    pub listener: UnixListener,
    /// Where the guest's connections to the host go.
    pub connector: Box<dyn Connector + Send>,
}

/// A virtio socket device (virtio 1.2, 5.10) in user space, on a thread of its own.
pub struct Vsock {
    guest_cid: u64,
    thread: Standby<UntilStopped<GuestSide>>,
    /// From an activation to the next reset.
    session: Option<Session>,
}

impl Vsock {
    /// A device that waits for its driver, and its thread.
    ///
    /// # Errors
    /// The host's refusal of the thread.
    pub fn new(config: VsockConfig, confinement: &Confinement) -> io::Result<Self> {
        let VsockConfig { guest_cid, listener, connector } = config;
        let plan = ThreadPlan { name: "vsock", stack: STACK_SIZE, role: Role::Vsock, confinement };
        let prepare = move || {
            let mut host = HostSide::new(listener, connector);
            Ok(move |UntilStopped { work, stop }| worker::run(work, &mut host, &stop))
        };
        Ok(Self { guest_cid, thread: Standby::start(plan, prepare)?, session: None })
    }

    /// Takes the queues into use.
    fn guest_side(&self, activation: Activation) -> Result<GuestSide, ActivationError> {
        let Activation { memory, queues, interrupt, features } = activation;
        let event_idx = features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        let mut rings = queues.into_iter().map(|queue| Some(Ring::new(queue?, memory.clone(), event_idx)));
        let mut ring = |index| rings.next().flatten().ok_or(ActivationError::QueueDisabled(index));
        let (rx, tx) = (ring(RX_QUEUE)?, ring(TX_QUEUE)?);
        drop(rings);
        Ok(GuestSide { guest_cid: self.guest_cid, memory, rx, tx, interrupt })
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn name(&self) -> &'static str {
        "vsock"
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        // No socket type is named: that means streams and nothing else (virtio 1.2, 5.10.3).
        (1 << VIRTIO_F_VERSION_1) | (1 << VIRTIO_RING_F_EVENT_IDX)
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // `struct virtio_vsock_config` is the guest's address and nothing else.
        let config = self.guest_cid.to_le_bytes();
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = offset.checked_add(index).and_then(|at| config.get(at)).copied().unwrap_or(0);
        }
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {
        // Nothing is writable.
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivationError> {
        let guest = self.guest_side(activation)?;
        let refused = |source| ActivationError::Host { what: "the vsock thread", source };
        self.session = Some(self.thread.begin_session(guest).map_err(refused)?);
        Ok(())
    }

    fn reset(&mut self) {
        if let Some(session) = self.session.take() {
            session.end();
        }
    }
}

impl Drop for Vsock {
    fn drop(&mut self) {
        self.reset();
    }
}
