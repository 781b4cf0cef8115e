//! Requests on plain memory, as a driver may make them, well or badly.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::sync::Arc;

use proptest::prelude::*;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use vm_memory::{Bytes, GuestAddress};

use super::host_file::HostFile;
use super::queue::RequestQueue;
use super::request::Disk;
use super::*;
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::ring::Ring;
use crate::devices::virtio::task_threads::{Ready, Task, TaskThreads};
use crate::devices::virtio::test_driver::{
    self, DriverQueue, INDIRECT, InterruptLine, SEAM, WRITE, write_descriptor,
};
use crate::jail::{Confinement, Role};
use crate::memory::GuestMemory;

/// Where headers, status bytes and data are; the rings end below.
const HEADER: u64 = 0x8000;
const STATUS: u64 = 0x8800;
const DATA: u64 = 0x9000;
/// What a status byte is before the device has written it.
const NO_ANSWER: u8 = 0xAA;
/// Sectors of the device in these tests.
const SECTORS: u64 = 64;

/// A driver and its device, on a file in which each byte is the number of its sector.
struct Guest {
    memory: GuestMemory,
    driver: DriverQueue,
    queue: RequestQueue,
    line: InterruptLine,
    file: File,
}

impl Guest {
    fn new(read_only: bool) -> Self {
        let mut file = tempfile::tempfile().unwrap();
        for sector in 0..SECTORS {
            file.write_all(&[sector as u8; SECTOR as usize]).unwrap();
        }
        let memory = test_driver::memory();
        let driver = DriverQueue::new(&memory, 0x1000, 16);
        let (interrupt, line) = InterruptLine::new();
        let id = "a-serial-number-of-more-than-20-bytes".to_owned();
        let disk = Disk { file: HostFile(file.try_clone().unwrap().into()), sectors: SECTORS, read_only, id };
        let ring = Ring::new(driver.device_queue(), memory.clone(), true);
        let queue = RequestQueue { disk: Arc::new(disk), ring, memory: memory.clone(), interrupt };
        Self { memory, driver, queue, line, file }
    }

    /// Writes the header, offers a chain of header, `data` and status, and has it served. Returns the status.
    fn request(&mut self, kind: u32, sector: u64, data: &[(u64, u32, u16)]) -> u8 {
        self.memory.write_obj([kind, 0], GuestAddress(HEADER)).unwrap();
        self.memory.write_obj(sector, GuestAddress(HEADER + 8)).unwrap();
        let parts = [&[(HEADER, 16, 0)], data, &[(STATUS, 1, WRITE)]].concat();
        self.driver.describe_chain(0, &parts);
        self.serve(0)
    }

    /// Offers a chain and has it served. Returns the status byte.
    fn serve(&mut self, head: u16) -> u8 {
        self.memory.write_obj(NO_ANSWER, GuestAddress(STATUS)).unwrap();
        self.driver.offer(head);
        while self.queue.work(Ready::default()).unwrap() {}
        self.memory.read_obj(GuestAddress(STATUS)).unwrap()
    }

    fn content(&mut self, sector: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.file.seek(SeekFrom::Start(sector * SECTOR)).unwrap();
        self.file.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn used(&mut self) -> Option<(u16, u32)> {
        self.driver.take_used()
    }
}

fn is(status: u8, expected: u32) -> bool {
    u32::from(status) == expected
}

#[test]
fn sectors_are_read_into_pieces_of_any_size_across_memory_regions() {
    let mut guest = Guest::new(true);
    let pieces = [(DATA, 100, WRITE), (SEAM - 200, 512, WRITE), (DATA + 0x1000, 412, WRITE)];
    let status = guest.request(VIRTIO_BLK_T_IN, 5, &pieces);
    assert!(is(status, VIRTIO_BLK_S_OK));
    assert_eq!(guest.used(), Some((0, 1025)));
    assert_eq!(guest.line.count(), 1);
    let mut read = Vec::new();
    for (address, length, _) in pieces {
        let mut piece = vec![0; length as usize];
        guest.memory.read_slice(&mut piece, GuestAddress(address)).unwrap();
        read.extend(piece);
    }
    assert_eq!(read, [[5; 512], [6; 512]].concat());
}

#[test]
fn what_is_written_is_in_the_file_and_nothing_beside_it() {
    let mut guest = Guest::new(false);
    guest.memory.write_slice(&[0xEE; 1024], GuestAddress(DATA)).unwrap();
    assert!(is(guest.request(VIRTIO_BLK_T_OUT, 3, &[(DATA, 512, 0), (DATA + 512, 512, 0)]), VIRTIO_BLK_S_OK));
    assert_eq!(guest.used(), Some((0, 1)));
    assert!(is(guest.request(VIRTIO_BLK_T_FLUSH, 0, &[]), VIRTIO_BLK_S_OK));
    assert_eq!(guest.content(2, 2048), [[2; 512], [0xEE; 512], [0xEE; 512], [5; 512]].concat());
}

#[test]
fn a_read_only_device_is_never_changed() {
    let mut guest = Guest::new(true);
    let before = guest.content(0, (SECTORS * SECTOR) as usize);
    assert!(is(guest.request(VIRTIO_BLK_T_OUT, 0, &[(DATA, 512, 0)]), VIRTIO_BLK_S_IOERR));
    for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        guest.memory.write_obj([0_u64, 8], GuestAddress(DATA)).unwrap();
        assert!(is(guest.request(kind, 0, &[(DATA, 16, 0)]), VIRTIO_BLK_S_IOERR));
    }
    assert_eq!(guest.content(0, before.len()), before);
}

#[test]
fn sectors_are_made_zero_and_those_beside_them_are_not() {
    let mut guest = Guest::new(false);
    // Aligned to pages, so that the file system under the test's file can do either.
    for (kind, sector) in [(VIRTIO_BLK_T_DISCARD, 8), (VIRTIO_BLK_T_WRITE_ZEROES, 24)] {
        guest.memory.write_obj([sector, 8], GuestAddress(DATA)).unwrap();
        let status = guest.request(kind, 0, &[(DATA, 16, 0)]);
        // Not every file system has a command for zeroes.
        if !is(status, VIRTIO_BLK_S_UNSUPP) {
            assert!(is(status, VIRTIO_BLK_S_OK), "{kind}: {status}");
            let expected = [[sector as u8 - 1; 512], [0; 512]].concat();
            assert_eq!(guest.content(sector - 1, 1024), expected);
            assert_eq!(guest.content(sector + 7, 1024), [[0; 512], [sector as u8 + 8; 512]].concat());
        }
    }
}

#[test]
fn segments_to_clear_that_make_no_sense_are_refused() {
    let mut guest = Guest::new(false);
    let before = guest.content(0, (SECTORS * SECTOR) as usize);
    let beyond = u64::from(u32::MAX);
    let flagged = 8 | 1 << 33;
    for (sector, count, length) in [
        (60, 8, 16),
        (u64::MAX, 1, 16),
        (0, 0, 16),
        (0, beyond, 16),
        (0, 8, 15),
        (0, 8, 32),
        (0, flagged, 16),
    ] {
        guest.memory.write_obj([sector, count], GuestAddress(DATA)).unwrap();
        let status = guest.request(VIRTIO_BLK_T_WRITE_ZEROES, 0, &[(DATA, length, 0)]);
        assert!(!is(status, VIRTIO_BLK_S_OK), "{sector} {count} {length}");
    }
    assert_eq!(guest.content(0, before.len()), before);
}

#[test]
fn the_serial_number_is_cut_to_what_there_is_room_for() {
    let mut guest = Guest::new(true);
    assert!(is(guest.request(VIRTIO_BLK_T_GET_ID, 0, &[(DATA, 64, WRITE)]), VIRTIO_BLK_S_OK));
    let mut id = [0; 21];
    guest.memory.read_slice(&mut id, GuestAddress(DATA)).unwrap();
    assert_eq!(&id, b"a-serial-number-of-m\0");
    assert!(is(guest.request(VIRTIO_BLK_T_GET_ID, 0, &[(DATA, 3, WRITE)]), VIRTIO_BLK_S_OK));
}

#[test]
fn what_lies_beyond_the_end_or_is_no_whole_sector_is_refused_and_the_device_goes_on() {
    let mut guest = Guest::new(false);
    for (sector, length) in [(SECTORS, 512), (SECTORS - 1, 1024), (u64::MAX, 512), (1 << 55, 512), (0, 511)] {
        assert!(is(guest.request(VIRTIO_BLK_T_IN, sector, &[(DATA, length, WRITE)]), VIRTIO_BLK_S_IOERR));
        assert!(is(guest.request(VIRTIO_BLK_T_OUT, sector, &[(DATA, length, 0)]), VIRTIO_BLK_S_IOERR));
    }
    assert!(is(guest.request(0xFFFF, 0, &[]), VIRTIO_BLK_S_UNSUPP));
    assert!(is(guest.request(VIRTIO_BLK_T_IN, SECTORS - 1, &[(DATA, 512, WRITE)]), VIRTIO_BLK_S_OK));
}

#[test]
fn a_device_that_has_become_shorter_fails_the_request() {
    let mut guest = Guest::new(true);
    guest.file.set_len(SECTOR).unwrap();
    assert!(is(guest.request(VIRTIO_BLK_T_IN, 0, &[(DATA, 1024, WRITE)]), VIRTIO_BLK_S_IOERR));
}

#[test]
fn data_in_the_wrong_direction_is_not_touched() {
    let mut guest = Guest::new(false);
    guest.memory.write_slice(&[0xEE; 512], GuestAddress(DATA)).unwrap();
    // A read with nothing to read into, and a write with nothing to write, move nothing.
    assert!(is(guest.request(VIRTIO_BLK_T_IN, 0, &[(DATA, 512, 0)]), VIRTIO_BLK_S_OK));
    assert_eq!(guest.memory.read_obj::<[u8; 32]>(GuestAddress(DATA)).unwrap(), [0xEE; 32]);
    assert!(is(guest.request(VIRTIO_BLK_T_OUT, 0, &[(DATA, 512, WRITE)]), VIRTIO_BLK_S_OK));
    assert_eq!(guest.content(0, 512), [0; 512]);
}

#[test]
fn chains_that_cannot_be_followed_end_the_request_not_the_device() {
    let mut guest = Guest::new(false);
    // A loop; a header that is too short; no place for the status; outside memory; an absurd indirect table.
    guest.driver.describe(0, HEADER, 16, 1, 0);
    assert_eq!(guest.serve(0), NO_ANSWER);
    guest.driver.describe_chain(0, &[(HEADER, 8, 0), (STATUS, 1, WRITE)]);
    assert!(is(guest.serve(0), VIRTIO_BLK_S_IOERR));
    guest.driver.describe_chain(0, &[(HEADER, 16, 0)]);
    assert_eq!(guest.serve(0), NO_ANSWER);
    guest.driver.describe_chain(0, &[(HEADER, 16, 0), (u64::MAX - 8, 512, WRITE), (STATUS, 1, WRITE)]);
    assert_eq!(guest.serve(0), NO_ANSWER);
    guest.driver.describe(0, DATA, 0xFFFF_FFF0, INDIRECT, 0);
    assert_eq!(guest.serve(0), NO_ANSWER);
    for _ in 0..5 {
        assert!(guest.used().is_some(), "every chain is given back");
    }
    assert!(is(guest.request(VIRTIO_BLK_T_FLUSH, 0, &[]), VIRTIO_BLK_S_OK));
}

#[test]
fn a_request_in_an_indirect_table_is_served() {
    let mut guest = Guest::new(true);
    guest.memory.write_obj([VIRTIO_BLK_T_IN, 0, 7, 0], GuestAddress(HEADER)).unwrap();
    write_descriptor(&guest.memory, 0xF000, (HEADER, 16, 1, 1));
    write_descriptor(&guest.memory, 0xF010, (DATA, 512, 1 | WRITE, 2));
    write_descriptor(&guest.memory, 0xF020, (STATUS, 1, WRITE, 0));
    guest.driver.describe(0, 0xF000, 48, INDIRECT, 0);
    assert!(is(guest.serve(0), VIRTIO_BLK_S_OK));
    assert_eq!(guest.memory.read_obj::<[u8; 32]>(GuestAddress(DATA)).unwrap(), [7; 32]);
}

#[test]
fn a_driver_that_breaks_the_ring_breaks_its_device_alone() {
    let mut guest = Guest::new(true);
    guest.driver.set_available(500);
    assert!(guest.queue.work(Ready::default()).is_err());
}

#[test]
fn the_driver_is_told_of_size_block_size_and_access() {
    let device = |read_only, block_size, sectors| {
        let file = tempfile::tempfile().unwrap().into();
        let threads = TaskThreads::start(Role::Blk, 1, &Confinement::none()).unwrap();
        Blk::new(BlkConfig { file, sectors, block_size, read_only, id: String::new(), threads })
    };
    let disk = device(true, 4096, 80).unwrap();
    let mut space = [0xFF; 80];
    disk.read_config(0, &mut space);
    assert_eq!(space[..8], 80_u64.to_le_bytes());
    assert_eq!(space[20..24], 4096_u32.to_le_bytes());
    assert_eq!(space[60..], [0; 20], "behind the end");
    assert_ne!(disk.features() & 1 << 5, 0);
    assert_eq!(device(false, 512, 1).unwrap().features() & 1 << 5, 0);
    for (block_size, sectors) in [(0, 1), (256, 1), (520, 1), (8192, 1), (512, u64::MAX), (512, 1 << 54)] {
        assert!(device(false, block_size, sectors).is_err(), "{block_size} {sectors}");
    }
}

proptest! {
    #[test]
    fn no_chain_makes_the_device_panic_or_change_a_read_only_disk(
        kind in prop_oneof![0u32..16, any::<u32>()],
        sector in prop_oneof![0u64..70, any::<u64>()],
        parts in prop::collection::vec(
            (
                prop_oneof![Just(HEADER), Just(STATUS), 0x8000u64..0xF000, 0xFF_F000u64..0x100_1000, any::<u64>()],
                prop_oneof![Just(16u32), Just(512), Just(1), 0u32..0x2000, any::<u32>()],
                0u16..8,
                0u16..16,
            ),
            16,
        ),
    ) {
        let mut guest = Guest::new(true);
        guest.memory.write_obj([kind, 0], GuestAddress(HEADER)).unwrap();
        guest.memory.write_obj(sector, GuestAddress(HEADER + 8)).unwrap();
        for (index, (address, length, flags, next)) in parts.iter().enumerate() {
            guest.driver.describe(index as u16, *address, *length, *flags, *next);
        }
        for head in 0..16 {
            guest.driver.offer(head);
        }
        while guest.queue.work(Ready::default()).unwrap_or(false) {}
        prop_assert_eq!(guest.content(9, 512), [9; 512]);
    }
}
