//! The device as the transport sees it.

use std::io;
use std::sync::Arc;

use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_bindings::virtio_net::{VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF};

use super::control::{Control, Taps};
use super::features;
use super::queue_pair::QueuePair;
use super::receive::Receiver;
use super::tap::{Offloads, Tap};

use super::transmit::Transmitter;
use crate::devices::virtio::ring::Ring;
use crate::devices::virtio::task_threads::{MakeTask, Registration, Task, TaskThreads};
use crate::devices::virtio::{Activation, ActivationError, DeviceQueue, VirtioDevice};

/// The device type (virtio 1.2, 5).
const VIRTIO_ID_NET: u32 = 1;
/// Entries of the queues for frames. A Linux guest fills that for frames to it with 1.5 to 4 KiB buffers.
const QUEUE_SIZE: u16 = 256;
/// Entries of the control queue, on which Linux has one command at a time.
const CONTROL_QUEUE_SIZE: u16 = 16;
/// The most queue pairs: as many vCPUs as a machine may have.
const MOST_PAIRS: usize = 64;
/// The smallest MTU that IPv4 works with (RFC 791).
const SMALLEST_MTU: u16 = 68;

/// What an interface is made of.
pub struct NetConfig {
    /// Its Ethernet address.
    pub mac: [u8; 6],
    /// The largest IP packet, in bytes.
    pub mtu: u16,
    /// The queues of its tap device, one for each queue pair.
    pub taps: Vec<Box<dyn Tap>>,
    /// Where it is served.
    pub threads: TaskThreads,
}

/// Why there is no interface.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// Too few or too many queues.
    #[error("an interface with {0} tap queues: it needs at least 1, and at most {MOST_PAIRS}")]
    Queues(usize),
    /// An MTU below what IPv4 needs.
    #[error("an interface with an MTU of {0}: it must be at least {SMALLEST_MTU}")]
    Mtu(u16),
    /// Not an address of one interface.
    #[error("an interface with the Ethernet address {0:02x?}, which is for groups or for nobody")]
    Mac([u8; 6]),
    /// The tap is not what it should be.
    #[error("the tap device refuses checksum offload, it is not one, or without IFF_VNET_HDR: {0}")]
    Tap(#[source] io::Error),
}

/// A virtio network device (virtio 1.2, 5.1).
pub struct Net {
    mtu: u16,
    taps: Taps,
    threads: TaskThreads,
    features: u64,
    queue_sizes: Vec<u16>,
    configuration: [u8; 12],
    active: Vec<Registration>,
}

impl Net {
    /// An interface that waits for its driver.
    ///
    /// # Errors
    /// The configuration makes no interface.
    pub fn new(config: NetConfig) -> Result<Self, NetError> {
        let NetConfig { mac, mtu, taps, threads } = config;
        let count = taps.len();
        let pairs = u16::try_from(count).map_err(|_| NetError::Queues(count))?;
        if !(1..=MOST_PAIRS).contains(&count) {
            return Err(NetError::Queues(count));
        }
        if mtu < SMALLEST_MTU {
            return Err(NetError::Mtu(mtu));
        }
        if mac == [0; 6] || mac.first().is_some_and(|first| first & 1 != 0) {
            return Err(NetError::Mac(mac));
        }
        let udp_segments = taps
            .first()
            .is_some_and(|tap| tap.set_offloads(Offloads::CHECKSUM | Offloads::UDP_SEGMENTS).is_ok());
        if let Some(tap) = taps.first() {
            tap.set_offloads(Offloads::CHECKSUM).map_err(NetError::Tap)?;
        }
        let features = features::offered(udp_segments, pairs);
        let mut queue_sizes = vec![QUEUE_SIZE; 2 * count];
        if features::has(features, VIRTIO_NET_F_CTRL_VQ) {
            queue_sizes.push(CONTROL_QUEUE_SIZE);
        }
        Ok(Self {
            mtu,
            taps: Taps(taps.into_iter().map(Arc::from).collect()),
            threads,
            features,
            queue_sizes,
            configuration: features::configuration(mac, mtu, pairs),
            active: Vec::new(),
        })
    }

    fn start(&mut self, activation: Activation) -> Result<(), ActivationError> {
        let features = activation.features;
        if !self.taps.set_offloads(features) {
            return Err(refused("TUNSETOFFLOAD", io::Error::last_os_error()));
        }
        // The others come into use when the driver says so (virtio 1.2, 5.1.6.5.6).
        if !self.taps.use_pairs(1) {
            return Err(refused("TUNSETQUEUE", io::Error::last_os_error()));
        }
        for (thread, make_task) in self.tasks(activation)? {
            let registration = self.threads.add(thread, make_task);
            self.active.push(registration.map_err(|source| refused("starting the network thread", source))?);
        }
        Ok(())
    }

    /// What is to be done with the queues that the driver has enabled, and on which thread.
    fn tasks(&self, activation: Activation) -> Result<Vec<(usize, MakeTask)>, ActivationError> {
        let Activation { memory, mut queues, interrupt, features } = activation;
        let has = |feature| features::has(features, feature);
        let largest_frame = features::largest_frame(features::guest_offloads(features), self.mtu);
        let count = if has(VIRTIO_NET_F_MQ) { self.taps.0.len() } else { 1 };
        let mut take = |index: usize| queues.get_mut(index).and_then(Option::take);
        let ring = |queue: DeviceQueue| Ring::new(queue, memory.clone(), has(VIRTIO_RING_F_EVENT_IDX));

        let mut tasks: Vec<(usize, MakeTask)> = Vec::new();
        for (index, tap) in self.taps.0.iter().take(count).enumerate() {
            let (receive, transmit) = match (take(2 * index), take(2 * index + 1)) {
                (Some(receive), Some(transmit)) => (receive, transmit),
                (None, _) if index == 0 => return Err(ActivationError::QueueDisabled(0)),
                (_, None) if index == 0 => return Err(ActivationError::QueueDisabled(1)),
                // A driver need not set up pairs that it does not mean to use.
                _ => continue,
            };
            let (tap, receive, transmit) = (Arc::clone(tap), ring(receive), ring(transmit));
            let (memory, interrupt, merges) =
                (memory.clone(), interrupt.clone(), has(VIRTIO_NET_F_MRG_RXBUF));
            let make_pair = move || -> Box<dyn Task> {
                let receiver = Receiver::new(receive, memory.clone(), merges, largest_frame);
                let transmitter = Transmitter::new(transmit, memory);
                Box::new(QueuePair { tap, receiver, transmitter, interrupt })
            };
            tasks.push((index, Box::new(make_pair)));
        }
        // It follows the pairs that the driver knows of (virtio 1.2, 5.1.2).
        if let Some(queue) = take(2 * count).filter(|_| has(VIRTIO_NET_F_CTRL_VQ)) {
            let (ring, memory, taps) = (ring(queue), memory.clone(), self.taps.clone());
            let control = Control { ring, memory, taps, features, interrupt };
            tasks.push((0, Box::new(move || Box::new(control))));
        }
        Ok(tasks)
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn name(&self) -> &'static str {
        "net"
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        for (index, byte) in data.iter_mut().enumerate() {
            let at = offset.checked_add(index);
            *byte = at.and_then(|at| self.configuration.get(at)).copied().unwrap_or(0);
        }
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {
        // Nothing is writable for a driver that accepts VIRTIO_F_VERSION_1 (virtio 1.2, 5.1.4).
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivationError> {
        let result = self.start(activation);
        if result.is_err() {
            self.reset();
        }
        result
    }

    fn reset(&mut self) {
        self.active.clear();
    }
}

fn refused(what: &'static str, source: io::Error) -> ActivationError {
    ActivationError::Host { what, source }
}
