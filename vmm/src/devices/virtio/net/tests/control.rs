//! Several queue pairs and the queue that controls them.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_MQ,
};
use vm_memory::{Bytes, GuestAddress};

use super::{EVENT_IDX, MAC, Network, frame};
use crate::devices::virtio::net::{Net, NetConfig, Offloads};
use crate::devices::virtio::task_threads::TaskThreads;
use crate::devices::virtio::test_driver::{self, DriverQueue, InterruptLine, WRITE};
use crate::devices::virtio::{Interrupt, VirtioDevice};
use crate::jail::{Confinement, Role};
use crate::memory::GuestMemory;

const CHECKSUM: u64 = 1 << VIRTIO_NET_F_GUEST_CSUM;
const TCP4: u64 = 1 << VIRTIO_NET_F_GUEST_TSO4;
const FEATURES: u64 = EVENT_IDX | 1 << VIRTIO_NET_F_CTRL_VQ | 1 << VIRTIO_NET_F_MQ | CHECKSUM;

/// An interface with three pairs, the driver of the last pair and of the control queue.
struct Machine {
    net: Net,
    memory: GuestMemory,
    queues: Vec<DriverQueue>,
    networks: Vec<Network>,
    interrupt: Interrupt,
    line: InterruptLine,
}

impl Machine {
    /// With `features`, and the control queue where they put it.
    fn new(features: u64) -> Self {
        let (taps, networks) = (0..3).map(|_| Network::pair()).unzip();
        let config = NetConfig {
            mac: MAC,
            mtu: 1500,
            taps,
            threads: TaskThreads::start(Role::Net, 2, &Confinement::none()).unwrap(),
        };
        let memory = test_driver::memory();
        let queues = (1..=7).map(|index| DriverQueue::new(&memory, 0x1_0000 * index, 16)).collect();
        let (interrupt, line) = InterruptLine::new();
        let mut machine = Self { net: Net::new(config).unwrap(), memory, queues, networks, interrupt, line };
        let queues: Vec<&DriverQueue> = machine.queues.iter().collect();
        let activation =
            test_driver::activation(&machine.memory, &queues, machine.interrupt.clone(), features);
        machine.net.activate(activation).unwrap();
        machine
    }

    fn attached(&self) -> Vec<Option<bool>> {
        self.networks.iter().map(|network| network.told.attached()).collect()
    }

    /// Gives a command on queue `queue` and returns the answer.
    fn command(&mut self, queue: usize, command: &[u8]) -> u8 {
        self.memory.write_slice(command, GuestAddress(0x20_0000)).unwrap();
        self.memory.write_obj(0xee_u8, GuestAddress(0x20_1000)).unwrap();
        let length = u32::try_from(command.len()).unwrap();
        let driver = &mut self.queues[queue];
        driver.describe_chain(0, &[(0x20_0000, length, 0), (0x20_1000, 1, WRITE)]);
        driver.offer(0);
        driver.notify();
        while driver.take_used().is_none() {
            self.line.wait();
        }
        self.memory.read_obj(GuestAddress(0x20_1000)).unwrap()
    }
}

#[test]
fn the_kernel_uses_as_many_queues_as_the_guest() {
    let mut machine = Machine::new(FEATURES);
    assert_eq!(machine.attached(), [Some(true), Some(false), Some(false)]);
    assert_eq!(machine.command(6, &[4, 0, 2, 0]), 0);
    assert_eq!(machine.attached(), [Some(true), Some(true), Some(false)]);
    assert_eq!(machine.command(6, &[4, 0, 3, 0]), 0);
    assert_eq!(machine.attached(), [Some(true); 3]);
    assert_eq!(machine.command(6, &[4, 0, 1, 0]), 0);
    assert_eq!(machine.attached(), [Some(true), Some(false), Some(false)]);
    machine.net.reset();
}

#[test]
fn every_pair_carries_frames() {
    let mut machine = Machine::new(FEATURES);
    assert_eq!(machine.command(6, &[4, 0, 3, 0]), 0);
    for pair in 0..3 {
        let bytes = frame(60, pair);
        machine.memory.write_slice(&bytes, GuestAddress(0x30_0000)).unwrap();
        let driver = &mut machine.queues[2 * pair + 1];
        driver.describe_chain(0, &[(0x30_0000, 60, 0)]);
        driver.offer(0);
        driver.notify();
        while driver.take_used().is_none() {
            machine.line.wait();
        }
        assert_eq!(machine.networks[pair].receive(), Some(bytes));
    }
}

#[test]
fn offloads_change_within_what_was_agreed_on() {
    let mut machine = Machine::new(FEATURES | TCP4);
    let command = |features: u64| [&[5, 0][..], &features.to_le_bytes()].concat();
    assert_eq!(machine.command(6, &command(CHECKSUM)), 0);
    assert_eq!(machine.networks[0].told.offloads(), Some(Offloads::CHECKSUM));
    assert_eq!(machine.command(6, &command(CHECKSUM | TCP4)), 0);
    assert_eq!(machine.networks[0].told.offloads(), Some(Offloads::CHECKSUM | Offloads::TCP4));
    assert_eq!(machine.command(6, &command(CHECKSUM | TCP4 << 1)), 1);
    assert_eq!(machine.networks[0].told.offloads(), Some(Offloads::CHECKSUM | Offloads::TCP4));
}

#[test]
fn commands_that_make_no_sense_are_refused_and_change_nothing() {
    let mut machine = Machine::new(FEATURES);
    let commands: [&[u8]; 9] = [
        &[],
        &[4],
        &[4, 0],
        &[4, 0, 1],
        &[4, 0, 0, 0],
        &[4, 0, 4, 0],
        &[4, 1, 2, 0],
        &[5, 0, 1],
        &[0xff, 0xff, 0, 0],
    ];
    for command in commands {
        assert_eq!(machine.command(6, command), 1, "{command:?}");
    }
    assert_eq!(machine.attached(), [Some(true), Some(false), Some(false)]);
}

#[test]
fn without_several_pairs_agreed_on_the_control_queue_is_the_third() {
    let mut machine = Machine::new(FEATURES & !(1 << VIRTIO_NET_F_MQ));
    assert_eq!(machine.command(2, &[4, 0, 9, 0]), 1);
    assert_eq!(machine.attached(), [Some(true), Some(false), Some(false)]);
}
