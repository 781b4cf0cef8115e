//! All descriptor tables of three entries, over a few addresses, lengths, flags and successors: which of them are chains, and
//! of which memory, is told by a walk that knows nothing of the one under test.

use virtio_queue::QueueT;
use vm_memory::{GuestAddress, GuestMemoryBackend as _};

use super::Chain;
use crate::devices::virtio::test_driver::{self, Descriptor, DriverQueue, INDIRECT, NEXT, SEAM, WRITE};
use crate::memory::GuestMemory;

/// The size of the queue: the smallest that has room for the entries. The fourth is never pointed to.
const QUEUE: u16 = 4;
/// How many entries are filled.
const ENTRIES: u16 = 3;
/// An indirect table that is the second and the third entry of the queue's own.
const TABLE: (u64, u32) = (16, 32);
/// Buffers: of some bytes, of none, across two regions, beyond the last; and of bytes that are descriptors.
const BUFFERS: [(u64, u32); 5] = [(0x8000, 3), (0x8000, 0), (SEAM - 1, 2), (2 * SEAM - 1, 2), TABLE];
/// Successors: each entry, and one behind the end of every table.
const NEXTS: [u16; 4] = [0, 1, 2, QUEUE];

/// Readable and writable buffers.
type Buffers = [Vec<(u64, u32)>; 2];

/// All values that an entry takes: a successor matters where there is one.
fn descriptors() -> Vec<Descriptor> {
    let kinds = [0, WRITE, INDIRECT].into_iter().flat_map(|kind| {
        std::iter::once((kind, 0)).chain(NEXTS.into_iter().map(move |next| (kind | NEXT, next)))
    });
    kinds.flat_map(|(flags, next)| BUFFERS.map(|(address, length)| (address, length, flags, next))).collect()
}

/// What the chain that begins with the first entry consists of; nothing if the driver broke a rule (virtio 1.2, 2.7.5).
fn walk(table: &[Descriptor]) -> Option<Buffers> {
    let mut buffers = Buffers::default();
    let (mut entries, mut inside, mut index) = (table, false, 0);
    // No chain visits an entry twice, and there are three.
    for _ in 0..2 * ENTRIES {
        let &(address, length, flags, next) = entries.get(usize::from(index))?;
        if flags & INDIRECT != 0 {
            if inside || (address, length) != TABLE {
                // A table in a table; a length that is no table's.
                return None;
            }
            (entries, inside, index) = (&table[1..], true, 0);
            continue;
        }
        let [readable, writable] = &mut buffers;
        if u64::from(length) > 2 * SEAM - address || flags & WRITE == 0 && !writable.is_empty() {
            return None;
        }
        let list = if flags & WRITE == 0 { readable } else { writable };
        list.extend((length > 0).then_some((address, length)));
        if flags & NEXT == 0 {
            return Some(buffers);
        }
        index = next;
    }
    None
}

/// Where the bytes of buffers are, cut where a region ends.
fn places(memory: &GuestMemory, buffers: &[(u64, u32)]) -> Vec<(usize, usize)> {
    let pieces = buffers.iter().flat_map(|&(address, length)| {
        let end = address + u64::from(length);
        let cut = SEAM.clamp(address, end);
        [(address, cut), (cut, end)].into_iter().filter(|(from, to)| from < to)
    });
    let place =
        |(from, to)| (memory.get_host_address(GuestAddress(from)).unwrap() as usize, (to - from) as usize);
    pieces.map(place).collect()
}

#[test]
#[cfg_attr(miri, ignore = "a quarter of a million tables")]
fn of_all_tables_of_three_descriptors_those_are_chains_that_keep_the_rules_and_of_no_other_memory() {
    let memory = test_driver::memory();
    let mut driver = DriverQueue::new(&memory, 0, QUEUE);
    let mut queue = driver.device_queue().queue;
    let all = descriptors();
    let mut chains = 0;
    for &first in &all {
        test_driver::write_descriptor(&memory, 0, first);
        for &second in &all {
            test_driver::write_descriptor(&memory, 16, second);
            for &third in &all {
                test_driver::write_descriptor(&memory, 32, third);
                driver.offer(0);
                let chain = queue.pop_descriptor_chain(&memory).unwrap();
                let table = [first, second, third];
                match (Chain::parse(&memory, chain, QUEUE), walk(&table)) {
                    (Ok(chain), Some(buffers)) => {
                        chains += 1;
                        for (slices, buffers) in [chain.readable, chain.writable].iter().zip(buffers) {
                            let found = slices
                                .iovecs()
                                .into_iter()
                                .map(|piece| (piece.iov_base as usize, piece.iov_len));
                            assert!(found.eq(places(&memory, &buffers)), "{table:x?}");
                        }
                    }
                    (Err(_), None) => {}
                    (parsed, expected) => panic!("{table:x?}: {parsed:?} instead of {expected:?}"),
                }
            }
        }
    }
    // Both kinds are there.
    assert!(chains > all.len() && chains < all.len().pow(3) / 2, "{chains} of {}", all.len().pow(3));
}
