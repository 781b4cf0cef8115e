//! Tests of the device as a whole; a socket that keeps message boundaries stands in for the tap.

mod control;
mod device;
mod hostile;
mod kernel_tap;
mod receive_model;

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use vm_memory::{Bytes, GuestAddress};

use super::{Net, NetConfig, Offloads, Tap};
use crate::devices::virtio::task_threads::TaskThreads;
use crate::devices::virtio::test_driver::{self, DriverQueue, InterruptLine, WRITE};
use crate::devices::virtio::{Interrupt, VirtioDevice};
use crate::jail::{Confinement, Role};
use crate::memory::GuestMemory;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
const MERGE: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;

/// What a tap was told.
#[derive(Debug, Default, Clone)]
struct Told(Arc<Mutex<(Option<Offloads>, Option<bool>)>>);

impl Told {
    fn offloads(&self) -> Option<Offloads> {
        self.0.lock().unwrap().0
    }

    fn attached(&self) -> Option<bool> {
        self.0.lock().unwrap().1
    }
}

/// A tap that is a socket.
struct SocketTap {
    socket: OwnedFd,
    told: Told,
}

impl AsFd for SocketTap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Tap for SocketTap {
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        self.told.0.lock().unwrap().0 = Some(offloads);
        Ok(())
    }

    fn set_attached(&self, attached: bool) -> io::Result<()> {
        self.told.0.lock().unwrap().1 = Some(attached);
        Ok(())
    }
}

/// What is behind the tap.
struct Network {
    socket: OwnedFd,
    told: Told,
}

impl Network {
    fn pair() -> (Box<dyn Tap>, Self) {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (tap, network) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let told = Told::default();
        (Box::new(SocketTap { socket: tap, told: told.clone() }), Self { socket: network, told })
    }

    /// Sends a frame, with its header, to the guest.
    fn send(&self, frame: &[u8]) {
        assert_eq!(rustix::io::writev(&self.socket, &[IoSlice::new(frame)]).unwrap(), frame.len());
    }

    /// A frame from the guest, if there is one.
    fn receive(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 70_000];
        let length = rustix::io::readv(&self.socket, &mut [IoSliceMut::new(&mut frame)]).ok()?;
        frame.truncate(length);
        Some(frame)
    }
}

/// A frame of this length, whose bytes can be told from each other and from other frames'. Its header is zero.
fn frame(length: usize, seed: usize) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..length).map(|index| ((index + seed) % 251) as u8).collect();
    frame[..12].fill(0);
    frame
}

/// The same as the guest sees it, in so many buffers.
fn merged(mut frame: Vec<u8>, buffers: u8) -> Vec<u8> {
    frame[10] = buffers;
    frame
}

/// One interface with its driver.
struct Machine {
    net: Net,
    memory: GuestMemory,
    rx: DriverQueue,
    tx: DriverQueue,
    interrupt: Interrupt,
    line: InterruptLine,
    network: Network,
    rx_offered: u16,
    rx_buffer: u32,
}

impl Machine {
    fn new() -> Self {
        Self::on(&TaskThreads::start(Role::Net, 1, &Confinement::none()).unwrap())
    }

    fn on(threads: &TaskThreads) -> Self {
        let (tap, network) = Network::pair();
        let config = NetConfig { mac: MAC, mtu: 1500, taps: vec![tap], threads: threads.clone() };
        let memory = test_driver::memory();
        let (rx, tx) = (DriverQueue::new(&memory, 0x1_0000, 64), DriverQueue::new(&memory, 0x2_0000, 16));
        let (interrupt, line) = InterruptLine::new();
        let net = Net::new(config).unwrap();
        Self { net, rx, tx, interrupt, line, network, rx_offered: 0, rx_buffer: 2048, memory }
    }

    fn start(mut self, features: u64) -> Self {
        self.activate(features);
        self
    }

    fn activate(&mut self, features: u64) {
        let queues = [&self.rx, &self.tx];
        let activation = test_driver::activation(&self.memory, &queues, self.interrupt.clone(), features);
        self.net.activate(activation).unwrap();
    }

    fn rx_address(index: u16) -> u64 {
        0x10_0000 + 0x2000 * u64::from(index)
    }

    /// Offers so many buffers for frames to the guest.
    fn offer(&mut self, count: u16) {
        for _ in 0..count {
            let index = self.rx_offered % self.rx.size;
            self.rx.describe_chain(index, &[(Self::rx_address(index), self.rx_buffer, WRITE)]);
            self.rx.offer(index);
            self.rx_offered += 1;
        }
        self.rx.notify();
    }

    /// The next frame to the guest, out of as many buffers as it says.
    fn receive(&mut self) -> Vec<u8> {
        let mut frame = self.receive_buffer();
        for _ in 1..u16::from_le_bytes([frame[10], frame[11]]) {
            frame.extend(self.receive_buffer());
        }
        frame
    }

    fn receive_buffer(&mut self) -> Vec<u8> {
        let (head, length) = self.wait_for(|machine| machine.rx.take_used());
        let mut bytes = vec![0; length as usize];
        self.memory.read_slice(&mut bytes, GuestAddress(Self::rx_address(head))).unwrap();
        bytes
    }

    /// Sends a frame in three pieces, and waits until its buffers come back.
    fn send(&mut self, frame: &[u8]) {
        let at = 0x80_0000 - 20;
        self.memory.write_slice(frame, GuestAddress(at)).unwrap();
        let rest = u32::try_from(frame.len()).unwrap() - 14;
        self.tx.describe_chain(0, &[(at, 12, 0), (at + 12, 2, 0), (at + 14, rest, 0)]);
        self.send_chain(0);
    }

    fn send_chain(&mut self, head: u16) {
        self.tx.offer(head);
        self.tx.notify();
        let used = self.wait_for(|machine| machine.tx.take_used());
        assert_eq!(used, (head, 0));
    }

    fn wait_for<T>(&mut self, mut what: impl FnMut(&mut Self) -> Option<T>) -> T {
        loop {
            match what(self) {
                Some(found) => return found,
                None => _ = self.line.wait(),
            }
        }
    }

    /// Waits until the device says that it needs a reset.
    fn wait_for_death(&self) {
        while !self.interrupt.is_broken() {
            self.line.wait();
        }
    }

    /// The interface still does what it is for.
    fn assert_alive(&mut self) {
        self.send(&frame(60, 7));
        assert_eq!(self.network.receive(), Some(frame(60, 7)));
        self.offer(1);
        self.network.send(&frame(80, 9));
        assert_eq!(self.receive(), merged(frame(80, 9), 1));
    }
}
