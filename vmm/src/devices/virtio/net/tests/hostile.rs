//! Rings that no honest driver makes.

use std::os::fd::AsFd;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::{EVENT_IDX, MERGE, Machine, Network, frame};
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::net::receive::Receiver;
use crate::devices::virtio::net::transmit::Transmitter;
use crate::devices::virtio::ring::Ring;
use crate::devices::virtio::test_driver::{
    self, Descriptor, DriverQueue, INDIRECT, InterruptLine, NEXT, SEAM, WRITE,
};

const BUFFER: u64 = 0x10_0000;

/// Chains with which nothing can be done in the direction of `flag`.
fn malformed(flag: u16) -> Vec<(&'static str, Vec<Descriptor>)> {
    let wrong = WRITE - flag;
    vec![
        ("a loop", vec![(BUFFER, 100, NEXT | flag, 1), (BUFFER, 100, NEXT | flag, 0)]),
        ("a chain into itself", vec![(BUFFER, 100, NEXT | flag, 0)]),
        ("no room for a header", vec![(BUFFER, 11, flag, 0)]),
        ("the wrong direction", vec![(BUFFER, 2000, wrong, 0)]),
        ("outside memory", vec![(2 * SEAM, 2000, flag, 0)]),
        ("around the end of addresses", vec![(u64::MAX - 99, 2000, flag, 0)]),
        ("an indirect table of absurd length", vec![(BUFFER, !15, INDIRECT, 0)]),
        ("an indirect table that loops", vec![(BUFFER + 0x1000, 16 * 512, INDIRECT, 0)]),
        ("a next outside the table", vec![(BUFFER, 2000, NEXT | flag, 999)]),
    ]
}

fn describe(driver: &DriverQueue, chain: &[Descriptor]) {
    for index in 0..512 {
        let entry = (BUFFER, 1, NEXT, 0);
        test_driver::write_descriptor(&driver.memory, BUFFER + 0x1000 + 16 * index, entry);
    }
    for (index, (address, length, flags, next)) in (0..).zip(chain) {
        driver.describe(index, *address, *length, *flags, *next);
    }
}

#[test]
fn malformed_frames_from_the_guest_are_given_back_and_not_sent() {
    let mut machine = Machine::new().start(EVENT_IDX);
    for (what, chain) in malformed(0) {
        describe(&machine.tx, &chain);
        machine.send_chain(0);
        assert_eq!(machine.network.receive(), None, "{what}");
        assert!(!machine.interrupt.is_broken(), "{what}");
    }
    machine.assert_alive();
}

#[test]
fn buffers_that_the_device_may_not_write_are_given_back_untouched() {
    for (what, chain) in malformed(WRITE) {
        let mut machine = Machine::new().start(EVENT_IDX | MERGE);
        machine.memory.write_slice(&[0xee; 64], GuestAddress(BUFFER)).unwrap();
        describe(&machine.rx, &chain);
        machine.rx.offer(0);
        machine.network.send(&frame(1000, 1));
        machine.rx.notify();
        let used = machine.wait_for(|machine| machine.rx.take_used());
        assert_eq!(used, (0, 0), "{what}");
        let untouched: [u8; 32] = machine.memory.read_obj(GuestAddress(BUFFER)).unwrap();
        assert_eq!(untouched, [0xee; 32], "{what}");
        machine.rx_offered = 1;
        machine.offer(1);
        assert_eq!(machine.receive()[12..], frame(1000, 1)[12..], "{what}");
    }
}

#[test]
fn an_available_index_that_leaps_or_a_head_outside_the_table_is_the_end_until_the_reset() {
    for leap in [65, 0x8000] {
        let mut machine = Machine::new().start(EVENT_IDX);
        machine.rx.set_available(leap);
        machine.network.send(&frame(60, 1));
        machine.rx.notify();
        machine.wait_for_death();
        machine.net.reset();
    }
    let mut machine = Machine::new().start(EVENT_IDX);
    machine.tx.offer(999);
    machine.tx.notify();
    machine.wait_for_death();
    machine.net.reset();
}

#[test]
fn nothing_is_done_for_a_guest_without_buffers_however_many_frames_there_are() {
    let (tap, network) = Network::pair();
    let memory = test_driver::memory();
    let mut driver = DriverQueue::new(&memory, 0x1_0000, 16);
    let (interrupt, _line) = InterruptLine::new();
    let ring = Ring::new(driver.device_queue(), memory.clone(), true);
    let mut receiver = Receiver::new(ring, memory, true, 65_562);
    network.send(&frame(100, 1));
    // False is a thread that sleeps: once without frames to look for, once without room for them.
    assert!(!receiver.work(tap.as_fd(), &interrupt).unwrap());
    assert!(!receiver.work(tap.as_fd(), &interrupt).unwrap());
    for index in 0..16 {
        driver.describe_chain(index, &[(BUFFER + 0x1_0000 * u64::from(index), 0x2000, WRITE)]);
        driver.offer(index);
    }
    assert!(!receiver.work(tap.as_fd(), &interrupt).unwrap());
    assert_eq!(driver.take_used(), Some((0, 100)));
}

#[test]
fn buffers_cut_into_more_pieces_than_one_read_takes_do_not_hang_the_thread() {
    let (tap, network) = Network::pair();
    let memory = test_driver::memory();
    let mut driver = DriverQueue::new(&memory, 0x1_0000, 256);
    let (interrupt, _line) = InterruptLine::new();
    let ring = Ring::new(driver.device_queue(), memory.clone(), true);
    let mut receiver = Receiver::new(ring, memory.clone(), true, 65_562);
    // 256 buffers of 200 pieces of one byte each.
    for piece in 0..200_u16 {
        let next = if piece == 199 { 0 } else { NEXT };
        let entry = (BUFFER + u64::from(piece), 1, WRITE | next, piece + 1);
        test_driver::write_descriptor(&memory, 0x20_0000 + 16 * u64::from(piece), entry);
    }
    for head in 0..256 {
        driver.describe(head, 0x20_0000, 200 * 16, INDIRECT, 0);
        driver.offer(head);
    }
    network.send(&frame(60_000, 1));
    network.send(&frame(500, 2));
    assert!(!receiver.work(tap.as_fd(), &interrupt).unwrap());
    let used: Vec<(u16, u32)> = std::iter::from_fn(|| driver.take_used()).collect();
    assert_eq!(used, [(0, 200), (1, 200), (2, 100)], "the first frame fitted nowhere");
}

fn descriptor() -> impl Strategy<Value = Descriptor> {
    (
        prop_oneof![
            0x1_0000..0x1_4000_u64,
            BUFFER..BUFFER + 0x1_0000,
            SEAM - 9..SEAM + 9,
            2 * SEAM - 99..2 * SEAM,
            any::<u64>()
        ],
        prop_oneof![0..20_u32, 0..5000_u32, any::<u32>()],
        prop_oneof![0..8_u16, any::<u16>()],
        prop_oneof![0..20_u16, any::<u16>()],
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever is in the rings: no panic, an end of the work, and nothing used twice.
    #[test]
    fn random_rings_end_in_an_answer_or_a_dead_device(
        descriptors in proptest::collection::vec(descriptor(), 16),
        heads in proptest::collection::vec(prop_oneof![8 => 0..16_u16, 1 => any::<u16>()], 0..16),
        index in proptest::option::weighted(0.1, any::<u16>()),
        merges in any::<bool>(),
        largest in prop_oneof![Just(1530_usize), Just(65_562)],
        frames in proptest::collection::vec(12..3000_usize, 0..10),
    ) {
        for receives in [false, true] {
            let (tap, network) = Network::pair();
            let memory = test_driver::memory();
            let mut driver = DriverQueue::new(&memory, 0x1_0000, 16);
            for (at, (address, length, flags, next)) in (0..).zip(&descriptors) {
                driver.describe(at, *address, *length, *flags, *next);
            }
            for head in &heads {
                driver.offer(*head);
            }
            if let Some(index) = index {
                driver.set_available(index);
            }
            let (interrupt, _line) = InterruptLine::new();
            let ring = Ring::new(driver.device_queue(), memory.clone(), true);
            if receives {
                for length in &frames {
                    network.send(&frame(*length, 0));
                }
                let mut receiver = Receiver::new(ring, memory, merges, largest);
                let mut rounds = 0;
                while let Ok(true) = receiver.work(tap.as_fd(), &interrupt) {
                    rounds += 1;
                    prop_assert!(rounds < 10, "it never sleeps");
                }
            } else {
                let mut transmitter = Transmitter::new(ring, memory);
                let mut rounds = 0;
                while let Ok(true) = transmitter.work(tap.as_fd(), &interrupt) {
                    rounds += 1;
                    prop_assert!(rounds < 10, "it never sleeps");
                }
            }
        }
    }
}
