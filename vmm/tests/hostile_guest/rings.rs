//! Queues of any content, in any place, of every device; registers in every state; resets and notifications without end.

use crate::assembler::Code;
use crate::driver::{
    DEVICES, DRIVER_OK, Rings, begin, negotiate, notify, register, set_up_queue, wait_for_disk,
};
use crate::machine::assert_survived;
use crate::random::Random;

/// The guest's memory ends here: 32 MiB.
const MEMORY_END: u64 = 32 << 20;
/// Where rings may be.
const RINGS: u32 = 0x100_0000;
/// Where those of one queue are.
fn rings_of(device: u32, queue: u32) -> u32 {
    RINGS + 0x2_0000 * device + 0x4000 * queue
}

/// How many descriptors of a table are written.
const WRITTEN: u32 = 16;

/// Addresses at which there is no memory, or not what a driver would have there.
const ODD_ADDRESSES: [u64; 10] = [
    0,
    0xD000_0000,
    0xD000_0050,
    0xFEC0_0000,
    0xFEE0_0000,
    MEMORY_END,
    MEMORY_END - 1,
    0xFFFF_FFFF,
    1 << 62,
    u64::MAX,
];

fn address(random: &mut Random) -> u64 {
    match random.below(8) {
        0 => random.of(&ODD_ADDRESSES),
        1 => random.next(),
        // A ring or a table: the device writes over its own work.
        2 => u64::from(RINGS + random.below(0xC_0000)),
        _ => 0x140_0000 + u64::from(random.below(0x1_0000)),
    }
}

fn length(random: &mut Random) -> u32 {
    match random.below(4) {
        0 => random.of(&[0, 1, 15, 16, 17, 44, 4096, 65_536, u32::MAX, u32::MAX - 15, 1 << 31]),
        1 => random.word(),
        2 => 16 * random.below(64),
        _ => random.below(512),
    }
}

fn place(random: &mut Random, good: u32) -> u32 {
    if random.once_in(40) { random.of(&ODD_ADDRESSES) as u32 } else { good }
}

/// One queue with descriptors and an available ring of any kind.
fn spoil(code: &mut Code, random: &mut Random, base: u32) -> Rings {
    let good = Rings::at(base, 0);
    let rings = Rings {
        table: place(random, good.table),
        available: place(random, good.available),
        used: place(random, good.used),
        // Otherwise the device would not begin: no power of two, or more than it has.
        size: if random.once_in(30) { random.of(&[0, 3, 1024, 65_535]) } else { random.of(&[16, 32, 64]) },
    };
    for index in 0..WRITTEN {
        // VIRTQ_DESC_F_NEXT, WRITE, INDIRECT and what they make together.
        let flags = if random.once_in(8) { random.word() as u16 } else { random.below(8) as u16 };
        let next = if random.once_in(8) { random.word() as u16 } else { random.below(WRITTEN) as u16 };
        let (address, length) = (address(random), length(random));
        good.describe(code, index, address, length, flags, next);
    }
    let heads = Rings { size: WRITTEN, ..good };
    for entry in 0..WRITTEN {
        let head = if random.once_in(8) { random.word() as u16 } else { random.below(WRITTEN) as u16 };
        heads.offer(code, entry, head);
    }
    // Far beyond what the ring holds, now and then.
    let available = if random.once_in(10) { random.word() as u16 } else { random.below(WRITTEN + 1) as u16 };
    good.set_available(code, available);
    rings
}

/// A guest that has waited for its last device.
fn with_all_devices() -> Code {
    let mut code = Code::default();
    wait_for_disk(&mut code);
    code
}

#[test]
fn rings_of_any_kind_on_every_queue_of_every_device_cost_requests_and_devices_not_the_vmm() {
    for seed in 0..6 {
        let mut random = Random::new(seed);
        let mut code = with_all_devices();
        for _ in 0..20 {
            for (device, (_, queues)) in (0..).zip(DEVICES) {
                negotiate(&mut code, device);
                for queue in 0..queues {
                    let rings = spoil(&mut code, &mut random, rings_of(device, queue));
                    set_up_queue(&mut code, device, queue, rings);
                }
                begin(&mut code, device);
                for _ in 0..4 {
                    let queue = random.below(queues);
                    notify(&mut code, device, queue);
                    // More is there, or the ring changes while the device reads it.
                    let index =
                        if random.once_in(8) { random.word() as u16 } else { random.below(32) as u16 };
                    code.store_word(rings_of(device, queue) + 0x1002, index);
                }
                notify(&mut code, device, random.word());
            }
        }
        eprintln!("seed {seed}");
        assert_survived(&code.finish());
    }
}

#[test]
fn writes_of_any_width_to_all_registers_in_all_states_are_taken() {
    let mut random = Random::new(1);
    let mut code = with_all_devices();
    for device in 0..DEVICES.len() as u32 {
        for status in [0, 1, 3, 11, DRIVER_OK, 0x40 | DRIVER_OK, 0x80, u32::MAX] {
            for offset in (0..0x200).step_by(4) {
                code.store(register(device, 0x70), status);
                let value = random.of(&[0, 1, 2, 0xFFFF, 0x8000_0000, u32::MAX]);
                code.store(register(device, offset), value);
                match random.below(3) {
                    0 => code.store_byte(register(device, offset + random.below(4)), value as u8),
                    1 => code.store_word(register(device, offset + random.below(3)), value as u16),
                    _ => code.load(register(device, offset)),
                }
            }
        }
    }
    assert_survived(&code.finish());
}

#[test]
fn devices_that_are_reset_without_end_leave_no_thread_and_no_descriptor() {
    let mut code = with_all_devices();
    code.repeat(150, |code| {
        for (device, (_, queues)) in (0..).zip(DEVICES) {
            negotiate(code, device);
            for queue in 0..queues {
                set_up_queue(code, device, queue, Rings::at(rings_of(device, queue), 8));
            }
            begin(code, device);
            notify(code, device, 0);
        }
    });
    assert_survived(&code.finish());
}

#[test]
fn notifications_without_end_do_not_keep_the_machine_from_its_end() {
    let mut code = with_all_devices();
    for (device, (_, queues)) in (0..).zip(DEVICES) {
        negotiate(&mut code, device);
        for queue in 0..queues {
            set_up_queue(&mut code, device, queue, Rings::at(rings_of(device, queue), 8));
        }
        begin(&mut code, device);
    }
    code.repeat(4000, |code| {
        for (device, (_, queues)) in (0..).zip(DEVICES) {
            (0..queues).for_each(|queue| notify(code, device, queue));
        }
    });
    assert_survived(&code.finish());
}
