//! The messages.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The longest that the shim may be told to wait for a guest, so that the VMM does not give a guest up before the shim.
pub const LONGEST_PATIENCE: Duration = Duration::from_secs(3600);

/// How long a guest whose kernel has panicked may go on writing to its console before [`Event::Stopped`] comes. It says why
/// first, then where, which is some 1,500 characters, and at last replays its log; each character is two exits.
pub const PANIC_PATIENCE: Duration = Duration::from_millis(500);

/// The most bytes of console that [`Event::Stopped`] carries.
pub const CONSOLE_TAIL: usize = 8 * 1024;

/// What the shim asks of the VMM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Request {
    /// Build a virtual machine and run it. The first message, sent once. Its descriptors are those that
    /// [`Boot::files`] names, in that order.
    Boot(Boot),
    /// Stop the vCPUs and exit. Answered with [`Event::Stopped`] and [`StopReason::Stopped`].
    Stop,
    /// Tell what has been counted. Answered with [`Event::Counters`].
    Counters,
    /// Attach a device to the machine that runs. Its descriptors: a block device's file, or an interface's taps in the
    /// order of its queue pairs. Answered with [`Event::Attached`] or [`Event::Refused`].
    Attach(Device),
    /// Take the device in this slot away, whatever the guest does with it. Answered with [`Event::Detached`], when its
    /// descriptors are closed, or with [`Event::Refused`].
    Detach {
        /// The slot, of [`PluggedDevice`].
        slot: u8,
    },
}

/// The virtual machine to build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Boot {
    /// Virtual CPUs, 1 to 64.
    pub vcpus: u32,
    /// The guest's memory in MiB.
    pub memory_mib: u64,
    /// The guest's vsock address. 3 unless there is a reason: every VM has a vsock of its own.
    pub guest_cid: u32,
    /// Kernel parameters, added at the end of the VMM's own, so that they win.
    pub kernel_parameters: String,
    /// Whether the guest kernel writes its log to the console as it goes (slow), and not only when it panics.
    pub console_verbose: bool,
    /// Directories that virtio-fs serves, each a device of its own.
    pub shares: Vec<Share>,
    /// Network interfaces, in the order in which the guest sees them.
    pub interfaces: Vec<Interface>,
    /// How many queue pairs interfaces may use that come later: there is a thread for each.
    pub later_queue_pairs: u16,
    /// What the descriptors that come with the message are.
    pub files: Vec<FileRole>,
}

/// A directory that virtio-fs serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// The name of a directory in that of [`FileRole::Share`], and the tag that the guest mounts it by: 1 to 36 bytes.
    pub name: String,
    /// Who writes below it.
    pub writers: Writers,
}

/// Who writes to shared files. The directories in the shared one are the host's in either case: it adds and removes them
/// while the guest runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Writers {
    /// The guest alone, which may keep and collect what it reads and writes.
    Guest,
    /// The host, too. Its changes are to be seen in the guest within a second.
    GuestAndHost,
}

/// A network interface of the guest. Its taps come as descriptors: one [`FileRole::Tap`] for each queue pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interface {
    /// Its Ethernet address.
    pub mac: [u8; 6],
    /// Its largest IP packet, in bytes.
    pub mtu: u16,
    /// How many queue pairs it has.
    pub queue_pairs: u16,
}

/// A device for a machine that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Device {
    /// A block device.
    Block(BlockDevice),
    /// A network interface.
    Interface(Interface),
}

/// A block device of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockDevice {
    /// Its length in sectors of 512 bytes.
    pub sectors: u64,
    /// Its block size in bytes.
    pub block_size: u32,
    /// Whether the guest may only read.
    pub read_only: bool,
    /// Its serial number; the guest sees 20 bytes of it.
    pub id: String,
}

/// Where a device is that has come to a running machine, as the guest has to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PluggedDevice {
    /// By which it is taken away again.
    pub slot: u8,
    /// The address of its virtio-mmio registers.
    pub address: u64,
    /// Their length in bytes.
    pub size: u64,
    /// Its interrupt, which all devices that have come have in common.
    pub interrupt: u8,
}

/// What a descriptor that comes with [`Request::Boot`] is for. Each may appear once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum FileRole {
    /// The guest kernel, an uncompressed ELF `vmlinux` with a PVH entry, readable. Needed.
    Kernel,
    /// The initramfs, readable.
    Initramfs,
    /// The directory that holds those of [`Boot::shares`], a mount point. Needed: it becomes the VMM's root.
    Share,
    /// A listening Unix stream socket for connections to the guest's vsock ports.
    Vsock,
    /// One queue of a tap device that was opened with `IFF_TAP`, `IFF_NO_PI` and `IFF_VNET_HDR`. Both numbers count
    /// from 0.
    Tap {
        /// The position of its interface in [`Boot::interfaces`].
        interface: u16,
        /// The queue pair.
        queue_pair: u16,
    },
}

/// What the VMM tells the shim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Event {
    /// The virtual machine is built and its first vCPU is about to run.
    Started(Timeline),
    /// The guest has connected to a port of the host (CID 2). One descriptor comes with it: a connected Unix stream
    /// socket, the host's end. Who has no use for the port closes it, which the guest sees as an end of file.
    GuestConnected {
        /// The port.
        port: u32,
    },
    /// The virtual machine is no more; the VMM is about to exit.
    Stopped {
        /// Why.
        reason: StopReason,
        /// The end of the guest's console, [`CONSOLE_TAIL`] bytes at most. It is what the guest wrote: hostile.
        console: String,
    },
    /// The answer to [`Request::Counters`].
    Counters(Counters),
    /// The answer to [`Request::Attach`]: the device is there.
    Attached(PluggedDevice),
    /// The answer to [`Request::Detach`]: the device is gone.
    Detached,
    /// The answer to [`Request::Attach`] or [`Request::Detach`]: nothing has changed.
    Refused {
        /// Why.
        message: String,
    },
}

/// Why a virtual machine stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum StopReason {
    /// The guest powered off.
    PoweredOff,
    /// The guest asked for a reboot.
    Rebooted,
    /// The guest kernel panicked.
    Panicked {
        /// The kernel's own line, without "Kernel panic - not syncing: ".
        message: String,
    },
    /// The shim asked for it.
    Stopped,
    /// The VMM could not build the virtual machine or keep it running.
    Failed {
        /// What went wrong and what would help.
        message: String,
    },
}

/// When what happened, in nanoseconds of `CLOCK_MONOTONIC`, in order of time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timeline {
    /// The VMM's process reached its entry.
    pub process_start_ns: u64,
    /// It had read [`Request::Boot`].
    pub config_received_ns: u64,
    /// Guest memory was mapped and known to KVM.
    pub memory_ready_ns: u64,
    /// Kernel and initramfs were in guest memory.
    pub kernel_loaded_ns: u64,
    /// The first vCPU was about to execute its first instruction.
    pub first_instruction_ns: u64,
}

/// What the VMM has counted since it started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counters {
    /// Exits of all vCPUs to the VMM's user space, by reason ("io_out", "mmio_read", …). Reasons that have not
    /// occurred are left out. Exits that KVM handles in the kernel are not among them.
    pub exits: BTreeMap<String, u64>,
}
