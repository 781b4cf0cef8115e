//! Giving memory that the guest does not use back to the host.

use std::io;

use rustix::mm::{Advice, madvise};
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
    let (Ok(offset), Ok(bytes)) = (usize::try_from(first), usize::try_from(last - first)) else {
        return Err(outside());
    };
    // SAFETY: the pages lie within the region, which is never unmapped. The guest alone says what they hold, and it has
    // given them up: to every reader, bytes of guest memory may change at any time.
    unsafe { madvise(region.as_ptr().wrapping_add(offset).cast(), bytes, Advice::LinuxDontNeed) }
        .map_err(|error| DiscardError::Host { address: address.0, length, source: error.into() })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use vm_memory::Bytes;

    use super::*;
    use crate::memory::allocate;

    /// Which of the first pages from 1 MiB on the host has backed (Linux, Documentation/admin-guide/mm/pagemap.rst).
    fn resident(memory: &GuestMemory) -> [bool; 16] {
        let start = memory.get_host_address(GuestAddress(1 << 20)).unwrap() as u64;
        let mut entries = [0; 16 * 8];
        File::open("/proc/self/pagemap").unwrap().read_exact_at(&mut entries, start / PAGE * 8).unwrap();
        // The highest bit of an entry's eight bytes: the page is present.
        std::array::from_fn(|page| entries[page * 8 + 7] & 0x80 != 0)
    }

    #[test]
    fn discarded_pages_go_back_to_the_host_and_read_as_zero() {
        let memory = allocate(32).unwrap();
        memory.write_slice(&[0xAA; 64 << 10], GuestAddress(1 << 20)).unwrap();
        assert_eq!(resident(&memory), [true; 16]);

        discard(&memory, GuestAddress((1 << 20) + 100), (64 << 10) - 100).unwrap();

        assert_eq!(
            resident(&memory),
            std::array::from_fn(|page| page == 0),
            "all but the first, partial page"
        );
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
