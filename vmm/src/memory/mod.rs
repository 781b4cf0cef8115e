//! Guest memory: anonymous memory of this process, below and above the device gap.
//!
//! Nobody else maps it, and private anonymous memory is what hosts give large pages.

mod discard;
mod huge_pages;
mod sizing;

use std::io;
use std::ptr;

use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags, madvise, mmap_anonymous, mprotect};
use vm_memory::mmap::{MmapRegion, MmapRegionBuilder};
use vm_memory::{GuestAddress, GuestRegionMmap};

pub use discard::{DiscardError, discard};
pub use huge_pages::back_by_huge_pages;
pub use sizing::{MINIMUM_MIB, SizeError};

/// The guest's physical memory, as every device sees it.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;

/// The size of the pages by which guest memory is aligned, so that host and processor can use them.
pub const HUGE_PAGE: u64 = 2 << 20;

/// Why there is no guest memory.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The size is impossible.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// The host refused.
    #[error("cannot get {mib} MiB of guest memory: {source}")]
    Host {
        /// What was asked for.
        mib: u64,
        /// The host's answer.
        source: io::Error,
    },
    /// The regions do not fit together.
    #[error("cannot lay out {mib} MiB of guest memory: {reason}")]
    Layout {
        /// What was asked for.
        mib: u64,
        /// What the memory library has to say.
        reason: String,
    },
}

/// Makes `mib` MiB of zeroed guest memory. Nothing of it is backed by host memory before it is touched.
///
/// Guest memory lives as long as the process: it is never unmapped, so that no device, however late, can hold a
/// dangling pointer to it.
///
/// # Errors
/// An impossible size, or the host's refusal.
pub fn allocate(mib: u64) -> Result<GuestMemory, MemoryError> {
    let bytes = sizing::checked_bytes(mib)?;
    let layout = |reason: &dyn std::fmt::Display| MemoryError::Layout { mib, reason: reason.to_string() };

    let mut regions = Vec::new();
    for part in sizing::parts(bytes) {
        let mapping = map(part.length).map_err(|source| MemoryError::Host { mib, source })?;
        let region = GuestRegionMmap::new(mapping, GuestAddress(part.address))
            .ok_or_else(|| layout(&"a region exceeds the address space"))?;
        regions.push(region);
    }
    GuestMemory::from_regions(regions).map_err(|error| layout(&error))
}

/// Maps `length` bytes at an address aligned to [`HUGE_PAGE`], neither for core dumps nor for children, between pages that
/// nobody can access.
fn map(length: usize) -> io::Result<MmapRegion<()>> {
    let slack = usize::try_from(HUGE_PAGE).map_err(io::Error::other)?;
    let room = length.checked_add(slack).ok_or(io::ErrorKind::OutOfMemory)?;
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nobody's memory.
    let reservation = unsafe { mmap_anonymous(ptr::null_mut(), room, ProtFlags::empty(), flags) }?;
    let address = reservation.map_addr(|address| address.next_multiple_of(slack));
    // SAFETY: `address..address + length` lies inside the reservation just made, which nobody else knows.
    unsafe { mprotect(address, length, MprotectFlags::READ | MprotectFlags::WRITE) }?;
    for advice in [Advice::LinuxDontDump, Advice::LinuxDontFork] {
        // SAFETY: neither changes what the mapping holds for this process, which makes no children.
        unsafe { madvise(address, length, advice) }?;
    }
    // For hosts that give large pages on advice (`transparent_hugepage/enabled` is `madvise`). A kernel without them does
    // not know the advice.
    // SAFETY: advice on the size of pages does not change what the mapping holds.
    let _ = unsafe { madvise(address, length, Advice::LinuxHugepage) };
    let builder = MmapRegionBuilder::new(length)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
    // SAFETY: the mapping covers `length` bytes from `address` and is never unmapped.
    let builder = unsafe { builder.with_raw_mmap_pointer(address.cast()) };
    builder.build().map_err(io::Error::other)
}

/// Plain memory with the layout of `mib` MiB, for the tests of what reads and writes it: Miri has no other.
#[cfg(test)]
pub(crate) fn plain(mib: u64) -> GuestMemory {
    let parts = sizing::parts(mib << 20);
    let ranges: Vec<_> = parts.iter().map(|part| (GuestAddress(part.address), part.length)).collect();
    GuestMemory::from_ranges(&ranges).unwrap()
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion};

    use super::*;
    use crate::layout::GAP_END;

    #[test]
    fn memory_is_zeroed_and_aligned_for_huge_pages() {
        let memory = allocate(33).unwrap();
        let region = memory.iter().next().unwrap();
        assert_eq!(region.len(), 33 << 20);
        assert_eq!(region.as_ptr() as u64 % HUGE_PAGE, 0);
        assert_eq!(memory.read_obj::<u64>(GuestAddress((33 << 20) - 8)).unwrap(), 0);
        assert!(memory.read_obj::<u64>(GuestAddress((33 << 20) - 7)).is_err());
    }

    #[test]
    fn memory_beyond_the_gap_continues_above_4_gib() {
        let memory = allocate(3 * 1024 + 64).unwrap();
        assert_eq!(memory.iter().count(), 2);
        memory.write_obj(7u32, GuestAddress(GAP_END + (64 << 20) - 4)).unwrap();
        assert!(memory.write_obj(7u32, GuestAddress(GAP_END - 4)).is_err());
    }

    #[test]
    fn what_is_beside_guest_memory_cannot_be_accessed() {
        let memory = allocate(32).unwrap();
        let region = memory.iter().next().unwrap();
        let begin = region.as_ptr() as u64;
        let end = begin + region.len();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let access_at = |address: u64| {
            maps.lines().find_map(|line| {
                let (range, rest) = line.split_once(' ')?;
                let (first, last) = range.split_once('-')?;
                let range = u64::from_str_radix(first, 16).ok()?..u64::from_str_radix(last, 16).ok()?;
                range.contains(&address).then(|| rest[..4].to_owned())
            })
        };
        assert_eq!([begin, end - 1].map(access_at), [Some("rw-p".into()), Some("rw-p".into())]);
        // The room that is left over by the alignment lies before, behind, or on both sides.
        let beside = [begin - 1, end].map(access_at);
        assert!(beside.contains(&Some("---p".into())), "{beside:?}");
    }
}
