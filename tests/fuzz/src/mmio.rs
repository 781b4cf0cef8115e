//! A virtio device behind its registers, with rings of any content in 16 MiB of guest memory, served by the code that
//! serves a guest.
//!
//! Devices with threads of their own (fs, vsock, net, blk) are given a moment after each notification.
//!
//! The first byte chooses the device and of what kind it is, and each step has a byte before it: write a register (index,
//! value), write memory (address, block), set one queue up as a driver would (number, size, three addresses, features),
//! notify and serve, set all queues up (likewise; the numbers of bytes from the rings of one to those of the next come first).

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::sync::{Arc, LazyLock};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use saya_vmm::bus::BusDevice;
use saya_vmm::devices::virtio::VirtioDevice;
use saya_vmm::devices::virtio::balloon::Balloon;
use saya_vmm::devices::virtio::blk::{Blk, BlkConfig};
use saya_vmm::devices::virtio::fs::Fs;
use saya_vmm::devices::virtio::mmio::{MmioTransport, RegisterMemory};
use saya_vmm::devices::virtio::net::{Net, NetConfig, Offloads, Tap};
use saya_vmm::devices::virtio::rng::Rng;
use saya_vmm::devices::virtio::task_threads::TaskThreads;
use saya_vmm::devices::virtio::vsock::{UnixSocketConnector, Vsock, VsockConfig};
use saya_vmm::event_loop::{EventFlags, EventLoop, Handler};
use saya_vmm::fs::DescriptorBudget;
use saya_vmm::jail::{Confinement, Role};
use saya_vmm::memory::{self, GuestMemory};
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::fuse;
use crate::input::Input;

/// The least memory that a machine can have, in MiB; addresses of 3 bytes reach its first half.
const MEMORY_MIB: u64 = 32;
/// The most steps of one input.
const STEPS: usize = 256;

/// Guest memory is never unmapped, so that there is one for all runs; each begins with it empty.
static MEMORY: LazyLock<GuestMemory> = LazyLock::new(|| memory::allocate(MEMORY_MIB).expect("memory"));

pub(crate) fn run(input: &[u8]) {
    let mut input = Input::new(input);
    let Some(mut machine) = Machine::new(&mut input) else { return };
    for _ in 0..STEPS {
        if machine.step(&mut input).is_none() {
            return;
        }
    }
}

fn shared(directory: &Path, kind: u8) -> Fs {
    let share = directory.join("share");
    fuse::fill(&share);
    let budget = DescriptorBudget { inodes: 64, handles: 64 };
    Fs::new(fuse::configuration(&share, kind), budget, &Confinement::none()).expect("the fs device")
}

/// A device whose guest finds nobody on any port.
fn vsock(directory: &Path) -> Vsock {
    let base = directory.join("vsock");
    let listener = UnixListener::bind(&base).expect("a socket");
    let connector = Box::new(UnixSocketConnector::new(&base));
    let config = VsockConfig { guest_cid: 3, listener, connector };
    Vsock::new(config, &Confinement::none()).expect("the vsock device")
}

/// A tap that gives the guest the frames that the guest has sent.
struct Loop(UnixDatagram);

impl Loop {
    fn new(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).expect("a socket");
        socket.connect(path).expect("a socket");
        socket.set_nonblocking(true).expect("a socket");
        Self(socket)
    }
}

impl AsFd for Loop {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Tap for Loop {
    fn set_offloads(&self, _: Offloads) -> io::Result<()> {
        Ok(())
    }

    fn set_attached(&self, _: bool) -> io::Result<()> {
        Ok(())
    }
}

/// A device of one pair of queues, or of two where `kind` is odd.
fn net(directory: &Path, kind: u8) -> Net {
    let threads = TaskThreads::start(Role::Net, 1, &Confinement::none()).expect("a thread");
    let tap = |number: u8| Box::new(Loop::new(&directory.join(number.to_string()))) as Box<dyn Tap>;
    let taps = (0..=kind % 2).map(tap).collect();
    Net::new(NetConfig { mac: [2, 0, 0, 0, 0, 1], mtu: 1500, taps, threads }).expect("the net device")
}

/// A device of 64 sectors, which the guest may write where `kind` is even.
fn blk(directory: &Path, kind: u8) -> Blk {
    let path = directory.join("disk");
    std::fs::write(&path, [7; 64 * 512]).expect("a file");
    let file = std::fs::File::options().read(true).write(true).open(&path).expect("a file").into();
    let threads = TaskThreads::start(Role::Blk, 1, &Confinement::none()).expect("a thread");
    let read_only = kind % 2 == 1;
    let config = BlkConfig { file, sectors: 64, block_size: 512, read_only, id: "x".into(), threads };
    Blk::new(config).expect("the blk device")
}

struct Machine {
    /// The files and sockets behind the device.
    _files: TempDir,
    event_loop: EventLoop,
    memory: GuestMemory,
    transport: MmioTransport,
}

/// Always ready, so that the loop never waits.
struct Ready(EventFd);

impl Handler for Ready {
    fn ready(&self, _ready: EventFlags) {}
}

impl Machine {
    fn new(input: &mut Input<'_>) -> Option<Self> {
        let event_loop = EventLoop::new().expect("epoll");
        let memory = MEMORY.clone();
        memory::discard(&memory, GuestAddress(0), MEMORY_MIB << 20).expect("empty memory");
        let files = tempfile::tempdir().expect("a directory");
        let (which, kind) = input.byte().map(|byte| (byte % 6, byte / 6))?;
        let device: Box<dyn VirtioDevice> = match which {
            0 => Box::new(Rng::new(event_loop.clone())),
            1 => Box::new(Balloon::new(event_loop.clone())),
            2 => Box::new(shared(files.path(), kind)),
            3 => Box::new(vsock(files.path())),
            4 => Box::new(net(files.path(), kind)),
            _ => Box::new(blk(files.path(), kind)),
        };
        let registers = RegisterMemory::new(1).expect("registers").file(0)?;
        let transport = MmioTransport::new(device, memory.clone(), registers).expect("eventfds");
        Some(Self { _files: files, event_loop, memory, transport })
    }

    fn step(&mut self, input: &mut Input<'_>) -> Option<()> {
        match input.byte()? % 5 {
            0 => self.write(u64::from(input.byte()?) * 4, input.number::<4>()?),
            1 => {
                let address = GuestAddress(input.number::<3>()?);
                // An address outside memory is not for this step to try.
                let _ = self.memory.write(input.block()?, address);
            }
            2 => {
                let queue = input.byte()?.into();
                self.set_up(queue..queue + 1, 0, input)?;
            }
            3 => self.notify(input.byte()?.into()),
            _ => {
                let apart = input.number::<3>()?;
                self.set_up(0..self.transport.notifications().len() as u64, apart, input)?;
            }
        }
        Some(())
    }

    fn write(&mut self, register: u64, value: u64) {
        let bytes = value.to_le_bytes();
        self.transport.write(register, bytes.get(..4).unwrap_or_default());
        let mut read = [0; 4];
        self.transport.read(register, &mut read);
    }

    /// Resets the device, agrees on all features, enables `queues`, whose rings are `apart`, and says that the driver is ready.
    fn set_up(&mut self, queues: Range<u64>, apart: u64, input: &mut Input<'_>) -> Option<()> {
        let size = input.number::<2>()?;
        let [table, available, used] = [input.number::<3>()?, input.number::<3>()?, input.number::<3>()?];
        let features = input.number::<4>()?;
        for (register, value) in
            [(0x70, 0), (0x70, 1), (0x70, 3), (0x24, 0), (0x20, features), (0x24, 1), (0x20, 1), (0x70, 11)]
        {
            self.write(register, value);
        }
        for (place, queue) in queues.enumerate() {
            let further = place as u64 * apart;
            for (register, value) in [
                (0x30, queue),
                (0x38, size),
                (0x80, table + further),
                (0x84, 0),
                (0x90, available + further),
                (0x94, 0),
                (0xA0, used + further),
                (0xA4, 0),
                (0x44, 1),
            ] {
                self.write(register, value);
            }
        }
        self.write(0x70, 15);
        Some(())
    }

    fn notify(&mut self, queue: usize) {
        let Some(notification) = self.transport.notifications().get(queue) else { return };
        let _ = notification.write(1);
        // A device with a thread of its own answers by an interrupt, or never.
        let interrupt = self.transport.interrupt().line();
        // SAFETY: the eventfd is the transport's and open as long as it.
        let interrupt = unsafe { BorrowedFd::borrow_raw(interrupt.as_raw_fd()) };
        let moment = Timespec { tv_sec: 0, tv_nsec: 500_000 };
        let _ = poll(&mut [PollFd::new(&interrupt, PollFlags::IN)], Some(&moment));
        let _ = rustix::io::read(interrupt, &mut [0; 8]);
        let ready = Arc::new(Ready(EventFd::new(EFD_NONBLOCK).expect("an eventfd")));
        let _ = ready.0.write(1);
        // SAFETY: the descriptor is open as long as `ready`, which outlives the registration.
        let descriptor = unsafe { BorrowedFd::borrow_raw(ready.0.as_raw_fd()) };
        let _registration = self.event_loop.add(descriptor, EventFlags::IN, ready.clone()).expect("epoll");
        let mut turns = 0;
        let served = self.event_loop.run(|| {
            turns += 1;
            turns > 2
        });
        served.expect("epoll");
    }
}
