//! Frames to the guest against the simplest model of them: those that fit come in order, whole, each in the buffers
//! that it says.

use std::collections::VecDeque;
use std::os::fd::AsFd;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::{Network, frame};
use crate::devices::virtio::net::receive::Receiver;
use crate::devices::virtio::ring::Ring;
use crate::devices::virtio::test_driver::{self, DriverQueue, InterruptLine, WRITE};

const LARGEST: usize = 5000;

#[derive(Debug, Clone)]
enum Step {
    /// The driver offers a buffer of this size, in two pieces.
    Offer(u32),
    /// The network sends a frame of this length.
    Frame(usize),
    Work,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => prop_oneof![12..100_u32, 12..6000_u32].prop_map(Step::Offer),
        2 => prop_oneof![14..200_usize, 14..LARGEST].prop_map(Step::Frame),
        2 => Just(Step::Work),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn frames_arrive_whole_and_in_order(
        merges in any::<bool>(),
        steps in proptest::collection::vec(step(), 0..150),
    ) {
        let (tap, network) = Network::pair();
        let memory = test_driver::memory();
        let mut driver = DriverQueue::new(&memory, 0x1_0000, 64);
        let (interrupt, _line) = InterruptLine::new();
        let ring = Ring::new(driver.device_queue(), memory.clone(), true);
        let mut receiver = Receiver::new(ring, memory.clone(), merges, LARGEST);
        // Heads in use, with their sizes, and frames on the way.
        let mut offered: VecDeque<(u16, u32)> = VecDeque::new();
        let mut frames: VecDeque<Vec<u8>> = VecDeque::new();
        let mut next_head = 0;
        for (seed, step) in steps.into_iter().enumerate() {
            match step {
                Step::Offer(size) if offered.len() < 32 => {
                    let at = 0x10_0000 + 0x2000 * u64::from(next_head);
                    let front = size / 2;
                    driver.describe_chain(2 * next_head, &[(at, front, WRITE), (at + u64::from(front), size - front, WRITE)]);
                    driver.offer(2 * next_head);
                    offered.push_back((2 * next_head, size));
                    next_head = (next_head + 1) % 32;
                }
                Step::Frame(length) if frames.len() < 20 => {
                    let frame = frame(length, seed);
                    network.send(&frame);
                    frames.push_back(frame);
                    receiver.on_readable();
                }
                _ => while receiver.work(tap.as_fd(), &interrupt).unwrap() {},
            }
            while let Some((head, length)) = driver.take_used() {
                let mut bytes = Vec::new();
                let mut append = |head: u16, length: u32| {
                    let (expected, size) = offered.pop_front().unwrap();
                    assert_eq!(head, expected, "buffers are used in the order in which they were offered");
                    assert!(length <= size);
                    let at = 0x10_0000 + 0x1000 * u64::from(head);
                    let mut part = vec![0; length as usize];
                    memory.read_slice(&mut part, GuestAddress(at)).unwrap();
                    bytes.extend(part);
                    (bytes[10], size)
                };
                let (count, size) = append(head, length);
                for _ in 1..count {
                    let (head, length) = driver.take_used().unwrap();
                    append(head, length);
                }
                prop_assert!(merges || count == 1);
                bytes[10] = 0;
                // Without merging, what does not fit the buffer whose turn it is is lost.
                let sent = loop {
                    let sent = frames.pop_front().unwrap();
                    if merges || sent.len() <= size as usize {
                        break sent;
                    }
                };
                prop_assert!(bytes == sent, "{} bytes instead of {}", bytes.len(), sent.len());
            }
        }
        // Nothing is lost, with merging, while the ring has room for the largest frame.
        if merges && offered.iter().map(|(_, size)| *size as usize).sum::<usize>() >= LARGEST {
            while receiver.work(tap.as_fd(), &interrupt).unwrap() {}
            prop_assert!(frames.is_empty() || driver.take_used().is_some());
        }
    }
}
