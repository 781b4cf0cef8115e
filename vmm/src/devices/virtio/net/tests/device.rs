//! Frames both ways, and the life of a device.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_MQ,
};

use super::{EVENT_IDX, MAC, MERGE, Machine, Network, frame, merged};
use crate::devices::virtio::net::device::NetError;
use crate::devices::virtio::net::{Net, NetConfig, Offloads};
use crate::devices::virtio::task_threads::TaskThreads;
use crate::devices::virtio::test_driver::{self, DriverQueue};
use crate::devices::virtio::{ActivationError, VirtioDevice};
use crate::jail::{Confinement, Role};

const SEGMENTS: u64 = 1 << VIRTIO_NET_F_GUEST_CSUM | 1 << VIRTIO_NET_F_GUEST_TSO4;

#[test]
fn frames_pass_both_ways_with_and_without_event_indices_and_merging() {
    for features in [0, EVENT_IDX, MERGE, EVENT_IDX | MERGE, EVENT_IDX | MERGE | SEGMENTS] {
        let mut machine = Machine::new().start(features);
        machine.offer(48);
        machine.assert_alive();
    }
}

#[test]
fn a_large_frame_to_the_guest_takes_several_buffers_and_says_how_many() {
    let mut machine = Machine::new().start(EVENT_IDX | MERGE | SEGMENTS);
    machine.offer(40);
    machine.network.send(&frame(65_000, 1));
    machine.network.send(&frame(2049, 2));
    assert_eq!(machine.receive(), merged(frame(65_000, 1), 32));
    // The second waits until there is room for whatever it may turn out to be.
    machine.offer(32);
    assert_eq!(machine.receive(), merged(frame(2049, 2), 2));
}

#[test]
fn a_large_frame_from_the_guest_arrives_whole() {
    let mut machine = Machine::new().start(EVENT_IDX);
    machine.send(&frame(65_562, 3));
    assert_eq!(machine.network.receive(), Some(frame(65_562, 3)));
}

#[test]
fn frames_wait_in_the_tap_until_the_guest_has_room() {
    let mut machine = Machine::new().start(EVENT_IDX | MERGE);
    for seed in 0..5 {
        machine.network.send(&frame(100, seed));
    }
    machine.send(&frame(60, 0));
    assert_eq!(machine.rx.take_used(), None);
    for seed in 0..5 {
        machine.offer(1);
        assert_eq!(machine.receive(), merged(frame(100, seed), 1));
    }
}

#[test]
fn a_frame_larger_than_the_whole_ring_is_lost_and_the_next_is_not() {
    let mut machine = Machine::new();
    machine.rx_buffer = 512;
    let mut machine = machine.start(EVENT_IDX | MERGE | SEGMENTS);
    machine.offer(64);
    machine.network.send(&frame(64 * 512 + 1, 1));
    machine.network.send(&frame(64 * 512, 2));
    assert_eq!(machine.receive(), merged(frame(64 * 512, 2), 64));
}

#[test]
fn without_merging_a_frame_that_does_not_fit_its_buffer_is_lost_and_the_next_is_not() {
    let mut machine = Machine::new();
    machine.rx_buffer = 512;
    let mut machine = machine.start(EVENT_IDX);
    machine.offer(4);
    machine.network.send(&frame(513, 1));
    machine.network.send(&frame(512, 2));
    assert_eq!(machine.receive(), merged(frame(512, 2), 1));
}

#[test]
fn the_configuration_is_what_the_interface_was_made_of() {
    let machine = Machine::new();
    let mut bytes = [0xff; 14];
    machine.net.read_config(0, &mut bytes);
    assert_eq!(bytes, [2, 0, 0, 0, 0, 1, 1, 0, 1, 0, 0xdc, 5, 0, 0]);
    assert_eq!(machine.net.queue_sizes(), [256, 256]);
    assert_eq!(machine.net.device_type(), 1);
}

#[test]
fn a_driver_gets_the_offloads_that_it_has_agreed_to_and_no_others() {
    let machine = Machine::new().start(EVENT_IDX | SEGMENTS);
    assert_eq!(machine.network.told.offloads(), Some(Offloads::CHECKSUM | Offloads::TCP4));
}

#[test]
fn a_reset_lets_go_of_the_rings_and_the_next_driver_goes_on() {
    let mut machine = Machine::new().start(EVENT_IDX);
    machine.offer(2);
    machine.assert_alive();
    machine.net.reset();
    machine.network.send(&frame(90, 1));
    machine.rx = DriverQueue::new(&machine.memory, 0x3_0000, 32);
    machine.tx = DriverQueue::new(&machine.memory, 0x4_0000, 32);
    machine.rx_offered = 0;
    machine.offer(1);
    machine.activate(EVENT_IDX | MERGE);
    assert_eq!(machine.receive(), merged(frame(90, 1), 1), "it has waited in the tap");
    machine.assert_alive();
    machine.net.reset();
    machine.net.reset();
}

#[test]
fn interfaces_share_a_thread_and_a_broken_one_stops_no_other() {
    let threads = TaskThreads::start(Role::Net, 1, &Confinement::none()).unwrap();
    let mut broken = Machine::on(&threads).start(EVENT_IDX);
    let mut other = Machine::on(&threads).start(EVENT_IDX);
    broken.tx.set_available(1000);
    broken.tx.notify();
    broken.wait_for_death();
    other.assert_alive();
    drop(broken);
    other.assert_alive();
    let mut late = Machine::on(&threads).start(EVENT_IDX);
    drop(threads);
    drop(other);
    late.assert_alive();
}

#[test]
fn a_driver_without_the_first_pair_is_told_so() {
    for missing in [0, 1] {
        let mut machine = Machine::new();
        let queues = [&machine.rx, &machine.tx];
        let interrupt = machine.interrupt.clone();
        let mut activation = test_driver::activation(&machine.memory, &queues, interrupt, EVENT_IDX);
        activation.queues[missing] = None;
        let error = machine.net.activate(activation).unwrap_err();
        assert!(matches!(error, ActivationError::QueueDisabled(queue) if queue == missing));
        machine.start(EVENT_IDX).assert_alive();
    }
}

#[test]
fn what_makes_no_interface_is_an_error_that_says_why() {
    let make = |mac, mtu, taps: usize| {
        let taps = (0..taps).map(|_| Network::pair().0).collect();
        Net::new(NetConfig {
            mac,
            mtu,
            taps,
            threads: TaskThreads::start(Role::Net, 1, &Confinement::none()).unwrap(),
        })
        .map(|_| ())
    };
    assert!(make(MAC, 1500, 1).is_ok());
    assert!(matches!(make(MAC, 1500, 0), Err(NetError::Queues(0))));
    assert!(matches!(make(MAC, 1500, 65), Err(NetError::Queues(65))));
    assert!(matches!(make(MAC, 67, 1), Err(NetError::Mtu(67))));
    assert!(matches!(make([0; 6], 1500, 1), Err(NetError::Mac(_))));
    assert!(matches!(make([1, 0, 0, 0, 0, 0], 1500, 1), Err(NetError::Mac(_))));
}

#[test]
fn a_control_queue_is_offered_with_several_pairs_only() {
    let pairs = |count: usize| {
        let taps = (0..count).map(|_| Network::pair().0).collect();
        Net::new(NetConfig {
            mac: MAC,
            mtu: 1500,
            taps,
            threads: TaskThreads::start(Role::Net, 2, &Confinement::none()).unwrap(),
        })
        .unwrap()
    };
    let control = 1 << VIRTIO_NET_F_CTRL_VQ | 1 << VIRTIO_NET_F_MQ;
    assert_eq!((pairs(1).features() & control, pairs(1).queue_sizes().len()), (0, 2));
    assert_eq!((pairs(3).features() & control, pairs(3).queue_sizes().len()), (control, 7));
}
