//! The virtio devices of a virtual machine.

use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use crate::control::{BlockDevice, Device, Event, Interface, VmmEnd, Writers};
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::balloon::Balloon;
use crate::devices::virtio::blk::{Blk, BlkConfig, BlkError};
use crate::devices::virtio::fs::Fs;
use crate::devices::virtio::net::{KernelTap, Net, NetConfig, NetError, Tap};
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::task_threads::TaskThreads;
use crate::devices::virtio::vsock::{Connector, Vsock, VsockConfig};
use crate::event_loop::EventLoop;
use crate::fs::{CachePolicy, Caching, DescriptorBudget, FsConfig, FsError};
use crate::jail::{Confinement, Role};
use crate::vm::VmConfig;

/// The guest memory that an inode takes of which a kernel knows, in bytes: `fuse_inode` and `dentry`.
const INODE_IN_GUEST: u64 = 1024;
/// The fewest and the most inodes of a share that the guest may know. One with the longest name takes 460 bytes here.
const INODES: RangeInclusive<u64> = 1 << 16..=1 << 20;
/// The lowest address that is not reserved (virtio 1.2, 5.10.4).
const FIRST_CID: u32 = 3;

/// The host's side of the devices.
#[derive(Default)]
pub(super) struct HostSide {
    /// Directories to share.
    pub(super) shares: Vec<SharedDirectory>,
    /// Both directions of vsock.
    pub(super) vsock: Option<VsockHost>,
    /// Network interfaces, in the order in which the guest sees them.
    pub(super) interfaces: Vec<InterfaceHost>,
    /// How many queue pairs interfaces may use that come later.
    pub(super) later_queue_pairs: u16,
}

/// A directory to share.
pub(super) struct SharedDirectory {
    /// The tag by which the guest mounts it.
    pub(super) tag: String,
    pub(super) root: OwnedFd,
    /// See [`FsConfig`].
    pub(super) descriptor_directory: OwnedFd,
    pub(super) writers: Writers,
}

/// The host's side of vsock.
pub(super) struct VsockHost {
    pub(super) guest_cid: u32,
    pub(super) listener: UnixListener,
    pub(super) connector: Box<dyn Connector + Send>,
}

/// The host's side of a network interface.
pub(super) struct InterfaceHost {
    pub(super) mac: [u8; 6],
    pub(super) mtu: u16,
    /// The queues of its tap, one for each queue pair.
    pub(super) taps: Vec<OwnedFd>,
}

/// Why there is no such device.
#[derive(Debug, thiserror::Error)]
pub(super) enum DeviceError {
    #[error("the shared directory {0}: {1}")]
    Share(String, FsError),
    #[error("the vsock thread: {0}")]
    Vsock(io::Error),
    #[error("guest_cid {0} is reserved: use 3 or more")]
    GuestCid(u32),
    #[error("network interface {0}: {1}")]
    Net(usize, NetError),
    #[error("the network interface: {0}")]
    LaterNet(#[from] NetError),
    #[error("the network threads: {0}")]
    NetThreads(io::Error),
    #[error("the thread for block devices: {0}")]
    BlkThread(io::Error),
    #[error("the block device: {0}")]
    Blk(#[from] BlkError),
    #[error("the device comes with {0} descriptors and needs {1}")]
    Descriptors(usize, usize),
}

/// Threads for devices that come while the machine runs: nobody may make any then.
#[derive(Clone)]
pub(super) struct LaterThreads {
    blk: TaskThreads,
    net: TaskThreads,
}

impl LaterThreads {
    /// Makes a device that has come with `descriptors`.
    pub(super) fn make(
        &self,
        device: Device,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Box<dyn VirtioDevice>, DeviceError> {
        match device {
            Device::Block(device) => self.block(device, descriptors),
            Device::Interface(Interface { mac, mtu, queue_pairs }) => {
                if descriptors.len() != usize::from(queue_pairs) {
                    return Err(DeviceError::Descriptors(descriptors.len(), queue_pairs.into()));
                }
                let interface = InterfaceHost { mac, mtu, taps: descriptors };
                Ok(Box::new(net(interface, self.net.clone())?))
            }
        }
    }

    fn block(
        &self,
        device: BlockDevice,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Box<dyn VirtioDevice>, DeviceError> {
        let [file] = <[_; 1]>::try_from(descriptors)
            .map_err(|descriptors| DeviceError::Descriptors(descriptors.len(), 1))?;
        let BlockDevice { sectors, block_size, read_only, id } = device;
        let threads = self.blk.clone();
        Ok(Box::new(Blk::new(BlkConfig { file, sectors, block_size, read_only, id, threads })?))
    }
}

/// The devices, in the order in which the guest sees them, and the threads of those that may come later. The calling
/// thread's capabilities are the threads' to begin with.
pub(super) fn build(
    host: HostSide,
    machine: &VmConfig,
    event_loop: &EventLoop,
    confinement: &Confinement,
) -> Result<(Vec<Box<dyn VirtioDevice>>, LaterThreads), DeviceError> {
    let net_threads = net_threads(&host, machine.vcpus, confinement).map_err(DeviceError::NetThreads)?;
    let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
    let budget = DescriptorBudget::of_this_process(u32::try_from(host.shares.len()).unwrap_or(u32::MAX));
    let inodes = most_inodes(machine.memory_mib);
    for share in host.shares {
        devices.push(Box::new(fs(share, budget, inodes, confinement)?));
    }
    if let Some(vsock) = host.vsock {
        let VsockHost { guest_cid, listener, connector } = vsock;
        if guest_cid < FIRST_CID || guest_cid == u32::MAX {
            return Err(DeviceError::GuestCid(guest_cid));
        }
        let config = VsockConfig { guest_cid: guest_cid.into(), listener, connector };
        devices.push(Box::new(Vsock::new(config, confinement).map_err(DeviceError::Vsock)?));
    }
    for (index, interface) in host.interfaces.into_iter().enumerate() {
        let net = net(interface, net_threads.clone()).map_err(|error| DeviceError::Net(index, error))?;
        devices.push(Box::new(net));
    }
    devices.push(Box::new(Rng::new(event_loop.clone())));
    devices.push(Box::new(Balloon::new(event_loop.clone())));
    let blk_thread = TaskThreads::start(Role::Blk, 1, confinement).map_err(DeviceError::BlkThread)?;
    Ok((devices, LaterThreads { blk: blk_thread, net: net_threads }))
}

/// How many inodes of a share a guest may know: as many as an honest one with so much memory can keep.
fn most_inodes(memory_mib: u64) -> usize {
    let kept = memory_mib.saturating_mul(1 << 20) / INODE_IN_GUEST;
    usize::try_from(kept.clamp(*INODES.start(), *INODES.end())).unwrap_or(usize::MAX)
}

fn fs(
    share: SharedDirectory,
    budget: DescriptorBudget,
    most_inodes: usize,
    confinement: &Confinement,
) -> Result<Fs, DeviceError> {
    let SharedDirectory { tag, root, descriptor_directory, writers } = share;
    let exclusive = writers == Writers::Guest;
    let caching = if exclusive { Caching::EXCLUSIVE } else { Caching::SHARED };
    let config = FsConfig {
        root,
        descriptor_directory,
        tag: tag.clone(),
        // The directories in the shared one are the host's, whoever writes below them.
        cache_policy: CachePolicy::below(1, caching),
        writeback: exclusive,
        implicit_opens: exclusive,
        most_inodes,
    };
    Fs::new(config, budget, confinement).map_err(|error| DeviceError::Share(tag, error))
}

fn net(interface: InterfaceHost, threads: TaskThreads) -> Result<Net, NetError> {
    let InterfaceHost { mac, mtu, taps } = interface;
    let open = |queue| -> Result<Box<dyn Tap>, NetError> {
        Ok(Box::new(KernelTap::new(queue).map_err(NetError::Tap)?))
    };
    let taps = taps.into_iter().map(open).collect::<Result<_, _>>()?;
    Net::new(NetConfig { mac, mtu, taps, threads })
}

/// The threads for all interfaces, of now and later.
fn net_threads(host: &HostSide, vcpus: u32, confinement: &Confinement) -> io::Result<TaskThreads> {
    let pairs = host.interfaces.iter().map(|interface| interface.taps.len()).max().unwrap_or_default();
    let pairs = pairs.max(host.later_queue_pairs.into());
    let vcpus = usize::try_from(vcpus).unwrap_or(usize::MAX);
    TaskThreads::start(Role::Net, pairs.min(vcpus), confinement)
}

/// Hands the guest's connections to the shim, over the control socket.
pub(super) struct ControlConnector(pub(super) Arc<VmmEnd>);

impl Connector for ControlConnector {
    fn connect(&mut self, port: u32) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        self.0.try_send(&Event::GuestConnected { port }, &[theirs.as_fd()]).map_err(io::Error::other)?;
        Ok(ours)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;
    use crate::control::pair;

    #[test]
    fn a_connection_of_the_guest_arrives_at_the_shim() {
        let (shim, vmm) = pair().unwrap();
        let mut guest = ControlConnector(Arc::new(vmm)).connect(1024).unwrap();
        let (event, mut descriptors) = shim.receive().unwrap().unwrap();
        assert_eq!((event, descriptors.len()), (Event::GuestConnected { port: 1024 }, 1));
        guest.write_all(b"ready\n").unwrap();
        drop(guest);
        let mut line = String::new();
        UnixStream::from(descriptors.remove(0)).read_to_string(&mut line).unwrap();
        assert_eq!(line, "ready\n");
    }

    #[test]
    fn a_shim_that_does_not_read_costs_the_guest_its_connection_and_nobody_any_time() {
        let (_shim, vmm) = pair().unwrap();
        let mut connector = ControlConnector(Arc::new(vmm));
        let mut streams = Vec::new();
        while let Ok(stream) = connector.connect(1024) {
            streams.push(stream);
        }
        assert!(!streams.is_empty());
    }

    #[test]
    fn a_guest_knows_as_many_inodes_as_its_memory_could_keep_and_no_more_than_a_million() {
        assert_eq!([64, 512, 4096, u64::MAX].map(most_inodes), [1 << 16, 1 << 19, 1 << 20, 1 << 20]);
    }

    #[test]
    fn a_reserved_address_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("vsock")).unwrap();
        let (_shim, vmm) = pair().unwrap();
        let connector = Box::new(ControlConnector(Arc::new(vmm)));
        let vsock = Some(VsockHost { guest_cid: 2, listener, connector });
        let host = HostSide { vsock, ..HostSide::default() };
        let machine =
            VmConfig { vcpus: 1, memory_mib: 64, kernel_parameters: String::new(), console_verbose: false };
        let built = build(host, &machine, &EventLoop::new().unwrap(), &Confinement::none());
        assert!(matches!(built.map(|_| ()), Err(DeviceError::GuestCid(2))));
    }
}
