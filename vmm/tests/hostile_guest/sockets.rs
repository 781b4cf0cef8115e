//! vsock packets of any kind, by the device's own queues.

use saya_vmm::control::StopReason;

use crate::assembler::Code;
use crate::driver::{Rings, VSOCK, begin, negotiate, notify, set_up_queue, wait_for_answers};
use crate::machine::{Bounds, run};
use crate::random::Random;

const RECEIVE: u32 = 0x100_0000;
const TRANSMIT: u32 = 0x101_0000;
const PACKETS: u32 = 0x110_0000;
const BUFFERS: u32 = 0x120_0000;
/// The size of both queues.
const SIZE: u32 = 32;
/// `virtio_vsock_hdr`'s size (virtio 1.2, 5.10.6).
const HEADER: u32 = 44;
/// Room of one packet.
const ROOM: u32 = 0x200;
/// `VIRTIO_VSOCK_OP_REQUEST`
const REQUEST: u16 = 1;
/// The port that the agent reports itself to.
const READY_PORT: u32 = 1024;
/// The most connections of a machine, with two descriptors each on their way to the host, and the rest.
const DESCRIPTORS: usize = 2 * 1024 + 96;

fn bounds() -> Bounds {
    Bounds { descriptors: DESCRIPTORS, ..Bounds::default() }
}

struct Header {
    source_cid: u64,
    destination_cid: u64,
    source_port: u32,
    destination_port: u32,
    length: u32,
    kind: u16,
    operation: u16,
    flags: u32,
    buffer: u32,
    forwarded: u32,
}

impl Header {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = [self.source_cid.to_le_bytes(), self.destination_cid.to_le_bytes()].concat();
        for word in [self.source_port, self.destination_port, self.length] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(self.kind.to_le_bytes());
        bytes.extend(self.operation.to_le_bytes());
        for word in [self.flags, self.buffer, self.forwarded] {
            bytes.extend(word.to_le_bytes());
        }
        bytes
    }

    fn random(random: &mut Random) -> Self {
        Self {
            source_cid: random.of(&[3, 3, 3, 3, 2, 0, u64::MAX]),
            destination_cid: random.of(&[2, 2, 2, 2, 3, 1, u64::MAX]),
            source_port: random.below(8),
            destination_port: random.of(&[READY_PORT, READY_PORT, 1025, 0, u32::MAX]),
            length: random.of(&[0, 0, 1, 64, 256, 65_537, u32::MAX]),
            kind: random.of(&[1, 1, 1, 1, 2, 0, u16::MAX]),
            operation: random.of(&[1, 1, 1, 2, 3, 4, 5, 5, 5, 6, 7, 0, u16::MAX]),
            flags: random.of(&[0, 1, 2, 3, u32::MAX]),
            buffer: random.of(&[0, 1, 4096, 1 << 20, u32::MAX]),
            forwarded: random.of(&[0, 1, 64, u32::MAX]),
        }
    }
}

fn set_up(code: &mut Code) -> (Rings, Rings) {
    let (receive, transmit) = (Rings::at(RECEIVE, SIZE), Rings::at(TRANSMIT, SIZE));
    negotiate(code, VSOCK);
    set_up_queue(code, VSOCK, 0, receive);
    set_up_queue(code, VSOCK, 1, transmit);
    set_up_queue(code, VSOCK, 2, Rings::at(RECEIVE + 0x8000, SIZE));
    for buffer in 0..SIZE {
        receive.describe(code, buffer, u64::from(BUFFERS + 0x1000 * buffer), 0x1000, 2, 0);
        receive.offer(code, buffer, buffer as u16);
    }
    receive.set_available(code, SIZE as u16);
    begin(code, VSOCK);
    notify(code, VSOCK, 0);
    (receive, transmit)
}

/// All buffers are the device's again: mov ax, [used]; add ax, SIZE; mov [available], ax
fn give_back(code: &mut Code, rings: Rings) {
    code.bytes(&[0x66, 0xA1]);
    code.bytes(&(rings.used + 2).to_le_bytes());
    code.bytes(&[0x66, 0x83, 0xC0, SIZE as u8, 0x66, 0xA3]);
    code.bytes(&(rings.available + 2).to_le_bytes());
}

#[test]
fn packets_of_any_kind_cost_their_connections_and_no_more() {
    for seed in 0..3 {
        let mut random = Random::new(seed);
        let mut code = Code::default();
        let (receive, transmit) = set_up(&mut code);
        let mut available = 0u16;
        for _ in 0..40 {
            for slot in 0..SIZE {
                let packet = PACKETS + ROOM * slot;
                code.store_bytes(packet, &Header::random(&mut random).bytes());
                // A header that is cut short, and data that is not there.
                let length = random.of(&[HEADER, HEADER + 64, HEADER + 256, HEADER - 1, 0, ROOM]);
                transmit.describe(&mut code, slot, packet.into(), length, 0, 0);
                transmit.offer(&mut code, slot, slot as u16);
                available = available.wrapping_add(1);
                transmit.set_available(&mut code, available);
                // There is room for an answer, which the guest does not read.
                give_back(&mut code, receive);
                notify(&mut code, VSOCK, 0);
                notify(&mut code, VSOCK, 1);
                wait_for_answers(&mut code, transmit);
            }
        }
        if let Some(end) = run(&code.finish(), bounds(), |_| {}) {
            assert_eq!(end.reason, StopReason::PoweredOff, "seed {seed}");
        }
    }
}

#[test]
fn a_flood_of_connections_is_bounded_and_the_host_is_not_held_up() {
    let mut code = Code::default();
    let (receive, transmit) = set_up(&mut code);
    let request = Header {
        source_cid: 3,
        destination_cid: 2,
        source_port: 1,
        destination_port: READY_PORT,
        length: 0,
        kind: 1,
        operation: REQUEST,
        flags: 0,
        buffer: 1 << 20,
        forwarded: 0,
    };
    code.store_bytes(PACKETS, &request.bytes());
    for slot in 0..SIZE {
        transmit.describe(&mut code, slot, PACKETS.into(), HEADER, 0, 0);
        transmit.offer(&mut code, slot, slot as u16);
    }
    code.repeat(5000, |code| {
        code.increment(PACKETS + 16);
        // add word [available index], 1
        code.bytes(&[0x66, 0x83, 0x05]);
        code.bytes(&(transmit.available + 2).to_le_bytes());
        code.bytes(&[1]);
        give_back(code, receive);
        notify(code, VSOCK, 1);
        notify(code, VSOCK, 0);
        wait_for_answers(code, transmit);
    });
    if let Some(end) = run(&code.finish(), bounds(), |_| {}) {
        assert_eq!(end.reason, StopReason::PoweredOff);
        assert!(end.connections > 0, "{end:?}");
    }
}
