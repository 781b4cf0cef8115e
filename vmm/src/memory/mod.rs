//! Guest memory: one memfd, mapped below and above the device gap.

mod discard;
mod huge_pages;
mod sizing;

use std::fs::File;
use std::io;
use std::ptr;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous};
use vm_memory::mmap::{MmapRegion, MmapRegionBuilder};
use vm_memory::{FileOffset, GuestAddress, GuestRegionMmap};

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
    #[error("cannot get {mib} MiB of guest memory: {step}: {source}")]
    Host {
        /// What was asked for.
        mib: u64,
        /// The step that failed.
        step: &'static str,
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
    let host = |step| move |error: rustix::io::Errno| MemoryError::Host { mib, step, source: error.into() };
    let layout = |reason: &dyn std::fmt::Display| MemoryError::Layout { mib, reason: reason.to_string() };

    let memfd = memfd_create("guest-memory", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .map_err(host("memfd_create"))?;
    ftruncate(&memfd, bytes).map_err(host("ftruncate"))?;
    fcntl_add_seals(&memfd, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)
        .map_err(host("F_ADD_SEALS"))?;
    let memfd = Arc::new(File::from(memfd));

    let mut regions = Vec::new();
    for part in sizing::parts(bytes) {
        let mapping = map(FileOffset::from_arc(Arc::clone(&memfd), part.offset), part.length)
            .map_err(|source| MemoryError::Host { mib, step: "mmap", source })?;
        let region = GuestRegionMmap::new(mapping, GuestAddress(part.address))
            .ok_or_else(|| layout(&"a region exceeds the address space"))?;
        regions.push(region);
    }
    GuestMemory::from_regions(regions).map_err(|error| layout(&error))
}

/// Maps `length` bytes of the memfd at an address aligned to [`HUGE_PAGE`], without core dumps.
fn map(file: FileOffset, length: usize) -> io::Result<MmapRegion<()>> {
    let slack = usize::try_from(HUGE_PAGE).map_err(io::Error::other)?;
    let room = length.checked_add(slack).ok_or(io::ErrorKind::OutOfMemory)?;
    // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nobody's memory.
    let reservation = unsafe {
        mmap_anonymous(ptr::null_mut(), room, ProtFlags::empty(), MapFlags::PRIVATE | MapFlags::NORESERVE)
    }?;
    let aligned = reservation.map_addr(|address| address.next_multiple_of(slack));
    // SAFETY: `aligned..aligned + length` lies inside the reservation just made, which nobody else knows.
    let address = unsafe {
        mmap(
            aligned,
            length,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED | MapFlags::FIXED | MapFlags::NORESERVE,
            file.file(),
            file.start(),
        )
    }?;
    // SAFETY: advice not to dump does not change what the mapping holds.
    unsafe { madvise(address, length, Advice::LinuxDontDump) }?;
    // Where the host gives shared memory large pages on advice (`shmem_enabled` is `advise`). A host without large pages
    // does not know the advice.
    // SAFETY: advice on the size of pages does not change what the mapping holds.
    let _ = unsafe { madvise(address, length, Advice::LinuxHugepage) };
    let builder = MmapRegionBuilder::new(length)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
        .with_file_offset(file);
    // SAFETY: the mapping covers `length` bytes from `address` and is never unmapped.
    let builder = unsafe { builder.with_raw_mmap_pointer(address.cast()) };
    builder.build().map_err(io::Error::other)
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
    fn the_size_of_guest_memory_cannot_change_afterwards() {
        let memory = allocate(32).unwrap();
        let file = memory.iter().next().unwrap().file_offset().unwrap().arc().clone();
        assert!(file.set_len(1).is_err());
    }
}
