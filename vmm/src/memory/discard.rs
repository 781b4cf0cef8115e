//! Giving memory that the guest does not use back to the host.

use std::io;

use rustix::fs::{FallocateFlags, fallocate};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::GuestMemory;

/// The guest's page size, and the host's.
const PAGE: u64 = 4096;

/// Why memory was not given back.
#[derive(Debug, thiserror::Error)]
pub enum DiscardError {
    /// The range is not one of the guest's memory.
    #[error("{length} bytes at {address:#x} are not guest memory")]
    NotMemory {
        /// The guest physical address.
        address: u64,
        /// The length in bytes.
        length: u64,
    },
    /// The host refused.
    #[error("cannot discard {length} bytes of guest memory at {address:#x}: {source}")]
    Host {
        /// The guest physical address.
        address: u64,
        /// The length in bytes.
        length: u64,
        /// The host's answer.
        source: io::Error,
    },
}

/// Gives the whole pages within the range back to the host; they read as zero from then on. Parts of pages at its
/// ends stay as they are. The range lies in one region of guest memory.
///
/// # Errors
/// A range that is not guest memory, or the host's refusal.
pub fn discard(memory: &GuestMemory, address: GuestAddress, length: u64) -> Result<(), DiscardError> {
    let outside = || DiscardError::NotMemory { address: address.0, length };
    let region = memory.find_region(address).ok_or_else(outside)?;
    let start = region.to_region_addr(address).ok_or_else(outside)?.0;
    let end = start.checked_add(length).filter(|&end| end <= region.len()).ok_or_else(outside)?;
    let first = start.next_multiple_of(PAGE);
    let last = end - end % PAGE;
    if last <= first {
        return Ok(());
    }
    // A hole in the memfd, not MADV_DONTNEED: in a shared mapping that would drop the page tables alone.
    let file = region.file_offset().ok_or_else(outside)?;
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(file.file(), punch, file.start() + first, last - first).map_err(|error| DiscardError::Host {
        address: address.0,
        length,
        source: error.into(),
    })
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;
    use crate::memory::allocate;

    fn resident_kib(memory: &GuestMemory) -> u64 {
        let region = memory.iter().next().unwrap();
        let blocks = rustix::fs::fstat(region.file_offset().unwrap().file()).unwrap().st_blocks;
        u64::try_from(blocks).unwrap() / 2
    }

    #[test]
    fn discarded_pages_go_back_to_the_host_and_read_as_zero() {
        let memory = allocate(32).unwrap();
        memory.write_slice(&[0xAA; 64 << 10], GuestAddress(1 << 20)).unwrap();
        let before = resident_kib(&memory);

        discard(&memory, GuestAddress((1 << 20) + 100), (64 << 10) - 100).unwrap();

        assert_eq!(before - resident_kib(&memory), 60, "all but the first, partial page");
        assert_eq!(memory.read_obj::<u8>(GuestAddress((1 << 20) + 4096)).unwrap(), 0);
        assert_eq!(memory.read_obj::<u8>(GuestAddress((1 << 20) + 4095)).unwrap(), 0xAA);
    }

    #[test]
    fn a_range_outside_memory_is_an_error_and_changes_nothing() {
        let memory = allocate(32).unwrap();
        memory.write_slice(&[0xAA; 4096], GuestAddress((32 << 20) - 4096)).unwrap();
        for (address, length) in [
            ((32 << 20) - 4096, 8192),
            (32 << 20, 4096),
            (u64::MAX, 1),
            (0, u64::MAX),
            ((32 << 20) - 4096, u64::MAX),
        ] {
            assert!(discard(&memory, GuestAddress(address), length).is_err(), "{address:#x}+{length:#x}");
        }
        assert_eq!(memory.read_obj::<u8>(GuestAddress((32 << 20) - 1)).unwrap(), 0xAA);
    }
}
