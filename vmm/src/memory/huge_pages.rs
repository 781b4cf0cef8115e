//! Backing parts of guest memory by 2 MiB pages before the guest touches them.
//!
//! Each page that the guest touches first is an exit in which KVM looks the host's page up, 4 KiB or 2 MiB at a time.
//! Hosts rarely give shared memory large pages by themselves (`transparent_hugepage/shmem_enabled` is `never` almost
//! everywhere), but collapse small pages into large ones on request, whatever that setting (Linux 6.1 and later).

use std::ops::Range;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use super::{GuestMemory, HUGE_PAGE};

/// `MADV_COLLAPSE` (Linux, include/uapi/asm-generic/mman-common.h).
const MADV_COLLAPSE: libc::c_int = 25;

/// Asks the host to back `range`, extended to whole large pages, by large pages. A host that cannot leaves small ones
/// behind, with which everything works, only slower.
pub fn back_by_huge_pages(memory: &GuestMemory, range: &Range<u64>) {
    let first = range.start - range.start % HUGE_PAGE;
    let end = range.end.next_multiple_of(HUGE_PAGE).min(memory.last_addr().0.saturating_add(1));
    let mut address = first;
    while address.saturating_add(HUGE_PAGE) <= end {
        // The host does not collapse what is wholly empty: a read makes a page.
        if memory.read_obj::<u8>(GuestAddress(address)).is_err() || !collapse(memory, GuestAddress(address)) {
            return;
        }
        address += HUGE_PAGE;
    }
}

/// Collapses one large page.
fn collapse(memory: &GuestMemory, address: GuestAddress) -> bool {
    let Some(region) = memory.find_region(address) else { return false };
    let offset = region.to_region_addr(address);
    let inside = offset.filter(|offset| offset.0 + HUGE_PAGE <= region.len());
    let Some(MemoryRegionAddress(offset)) = inside else { return false };
    let (Ok(offset), Ok(length)) = (usize::try_from(offset), usize::try_from(HUGE_PAGE)) else {
        return false;
    };
    let start = region.as_ptr().wrapping_add(offset);
    // SAFETY: the range lies in the region's mapping, whose contents the call does not change.
    let collapsed = unsafe { libc::madvise(start.cast(), length, MADV_COLLAPSE) };
    collapsed == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::allocate;

    #[test]
    fn the_contents_stay() {
        let memory = allocate(32).unwrap();
        memory.write_obj(0x1234_5678u32, GuestAddress((4 << 20) - 4)).unwrap();
        back_by_huge_pages(&memory, &((3 << 20)..(5 << 20)));
        assert_eq!(memory.read_obj::<u32>(GuestAddress((4 << 20) - 4)).unwrap(), 0x1234_5678);
        assert_eq!(memory.read_obj::<u64>(GuestAddress(5 << 20)).unwrap(), 0);
    }

    #[test]
    fn a_range_beyond_memory_does_no_harm() {
        let memory = allocate(33).unwrap();
        back_by_huge_pages(&memory, &((31 << 20)..u64::MAX / 2));
        back_by_huge_pages(&memory, &((64 << 20)..(66 << 20)));
    }
}
