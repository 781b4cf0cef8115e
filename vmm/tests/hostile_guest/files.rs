//! FUSE requests of any kind, by the device's own queue.

use std::path::Path;

use saya_vmm::control::StopReason;

use crate::assembler::Code;
use crate::driver::{FS, OWN_FS, Rings, begin, negotiate, notify, set_up_queue, wait_for_answers};
use crate::machine::{Bounds, run};
use crate::random::Random;

/// Where the queue, requests and replies are.
const QUEUE: u32 = 0x100_0000;
const REQUESTS: u32 = 0x110_0000;
const REPLIES: u32 = 0x120_0000;
/// Room of one request, and of one reply.
const ROOM: u32 = 0x400;
/// The queue's size, and how many requests are under way at once.
const SIZE: u32 = 64;
/// `fuse_in_header`'s size (linux/fuse.h).
const HEADER: u32 = 40;

/// What the guest calls files.
const NAMES: [&[u8]; 12] = [
    b"file\0",
    b"directory\0",
    b"link\0",
    b"..\0",
    b".\0",
    b"../../../etc/passwd\0",
    b"/etc/passwd\0",
    b"directory/inner\0",
    b"without end",
    b"\0",
    b"new\0other\0",
    b"a\0..\0",
];

/// Opcodes of linux/fuse.h, how many bytes their requests have before the names, and how many names.
const REQUESTS_OF_A_KERNEL: [(u32, u32, u32); 19] = [
    (1, 0, 1),   // LOOKUP
    (4, 88, 0),  // SETATTR
    (6, 0, 2),   // SYMLINK
    (8, 16, 1),  // MKNOD
    (9, 8, 1),   // MKDIR
    (10, 0, 1),  // UNLINK
    (11, 0, 1),  // RMDIR
    (12, 8, 2),  // RENAME
    (13, 8, 1),  // LINK
    (14, 8, 0),  // OPEN
    (15, 40, 0), // READ
    (16, 40, 1), // WRITE
    (21, 8, 2),  // SETXATTR
    (22, 8, 1),  // GETXATTR
    (27, 8, 0),  // OPENDIR
    (28, 40, 0), // READDIR
    (35, 16, 1), // CREATE
    (44, 40, 0), // READDIRPLUS
    (45, 16, 2), // RENAME2
];

/// An opcode with a body as its kind has, or any opcode with any.
fn body(random: &mut Random) -> (u32, Vec<u8>) {
    let (opcode, fixed, names) = if random.once_in(3) {
        let opcode = if random.once_in(3) { random.word() } else { random.below(54) };
        (opcode, 8 * random.below(8), random.below(3))
    } else {
        random.of(&REQUESTS_OF_A_KERNEL)
    };
    let mut body = Vec::new();
    for _ in 0..fixed / 8 {
        // Handles, node ids, flags, offsets, sizes.
        body.extend(random.of(&[0u64, 1, 2, 3, 0x1FF, 4096, u64::MAX, 0x1_0000_0002]).to_le_bytes());
    }
    for _ in 0..names {
        body.extend(random.of(&NAMES));
    }
    (opcode, body)
}

fn request(random: &mut Random, unique: u32) -> Vec<u8> {
    let (opcode, body) = body(random);
    let honest = HEADER + u32::try_from(body.len()).unwrap();
    let length = if random.once_in(6) { random.of(&[0, 39, 40, honest + 1, u32::MAX]) } else { honest };
    let node = if random.once_in(8) { random.next() } else { u64::from(random.below(6)) };
    let mut bytes = Vec::new();
    for word in [length, opcode, unique, 0] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(node.to_le_bytes());
    for word in [random.of(&[0u32, 1000, u32::MAX]), random.of(&[0u32, 1000, u32::MAX]), 1, 0] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(body);
    bytes
}

/// A conversation's beginning: FUSE_INIT of version 7.36.
fn init() -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [HEADER + 16, 26, 1, 0, 1, 0, 0, 0, 0, 0, 7, 36, 65_536, u32::MAX] {
        bytes.extend(u32::to_le_bytes(word));
    }
    bytes
}

fn guest(device: u32, seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut code = Code::default();
    let rings = Rings::at(QUEUE, SIZE);
    negotiate(&mut code, device);
    set_up_queue(&mut code, device, 0, Rings::at(QUEUE + 0x1_0000, SIZE));
    set_up_queue(&mut code, device, 1, rings);
    begin(&mut code, device);
    let mut available = 0u16;
    for round in 0..40 {
        for slot in 0..SIZE / 2 {
            let bytes = if round + slot == 0 { init() } else { request(&mut random, 2 * slot + 2) };
            let (from, to) = (REQUESTS + ROOM * slot, REPLIES + ROOM * slot);
            code.store_bytes(from, &bytes);
            let length = u32::try_from(bytes.len()).unwrap();
            let room = random.of(&[16, 80, ROOM, ROOM, 0, 15]);
            rings.describe(&mut code, 2 * slot, from.into(), length, 1, (2 * slot + 1) as u16);
            rings.describe(&mut code, 2 * slot + 1, to.into(), if round == 0 { ROOM } else { room }, 2, 0);
            rings.offer(&mut code, u32::from(available), (2 * slot) as u16);
            available = available.wrapping_add(1);
            rings.set_available(&mut code, available);
        }
        notify(&mut code, device, 1);
        wait_for_answers(&mut code, rings);
    }
    code.finish()
}

#[test]
fn requests_for_files_of_any_kind_are_answered_and_nothing_outside_the_share_changes() {
    for (device, seed) in [(FS, 0), (OWN_FS, 1), (FS, 2), (OWN_FS, 3)] {
        let outside = tempfile::tempdir().unwrap();
        let secret = outside.path().join("secret");
        std::fs::write(&secret, "secret").unwrap();
        let fill = |share: &Path| {
            std::fs::create_dir(share.join("directory")).unwrap();
            std::fs::write(share.join("directory/inner"), "inner").unwrap();
            std::fs::write(share.join("file"), "content").unwrap();
            std::os::unix::fs::symlink(&secret, share.join("link")).unwrap();
        };
        let bounds = Bounds { descriptors: 96 + 64, ..Bounds::default() };
        let end = run(&guest(device, seed), bounds, fill);
        if let Some(end) = end {
            assert_eq!(end.reason, StopReason::PoweredOff, "seed {seed}");
        }
        assert_eq!(std::fs::read_to_string(&secret).unwrap(), "secret", "seed {seed}");
    }
}
