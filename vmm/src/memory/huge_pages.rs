//! Backing parts of guest memory by 2 MiB pages before the guest touches them.
//!
//! Each page that the guest touches first is an exit in which KVM looks the host's page up, 4 KiB or 2 MiB at a time. A host
//! whose `transparent_hugepage/enabled` is `always` or `madvise`, as it is almost everywhere, gives guest memory a large
//! page at the first touch.

use std::ops::Range;

use rustix::mm::{Advice, madvise};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::{GuestMemory, HUGE_PAGE};

/// The size of a large page as lengths in this process are counted.
const LENGTH: usize = HUGE_PAGE as usize;

/// What of a large page is touched.
const TOUCHED: usize = 4096;

/// Has the host back `range`, extended to whole large pages, by large pages, without changing what it holds. A host that
/// gives none, or does not know the advice (before Linux 5.14), leaves it as it is, with which everything works, only
/// slower.
pub fn back_by_huge_pages(memory: &GuestMemory, range: &Range<u64>) {
    pages(memory, range).for_each(|pages| pages.touch());
}

/// Large pages of a region's mapping, one behind the other.
struct Pages {
    /// Where the guest has the first.
    #[cfg_attr(not(test), expect(dead_code))]
    address: u64,
    start: *mut u8,
    count: usize,
}

impl Pages {
    /// Touches each, as if to write. Where the host gives no large pages, that is one small page of 512: the guest may
    /// never use the others.
    fn touch(&self) {
        for index in 0..self.count {
            let page = self.start.wrapping_add(index * LENGTH);
            // SAFETY: the page lies in guest memory, which is never unmapped, and the advice changes no byte of it.
            let _ = unsafe { madvise(page.cast(), TOUCHED, Advice::LinuxPopulateWrite) };
        }
    }
}

/// The large pages of each region that `range` touches, as far as they lie within the region.
fn pages(memory: &GuestMemory, range: &Range<u64>) -> impl Iterator<Item = Pages> {
    let first = range.start - range.start % HUGE_PAGE;
    let end = range.end.checked_next_multiple_of(HUGE_PAGE).unwrap_or(range.end);
    memory.iter().filter_map(move |region| {
        let region_start = region.start_addr().0;
        let start = first.saturating_sub(region_start).min(region.len());
        let end = end.saturating_sub(region_start).min(region.len());
        let count = usize::try_from(end).ok()?.saturating_sub(usize::try_from(start).ok()?) / LENGTH;
        let mapped = region.as_ptr().wrapping_add(usize::try_from(start).ok()?);
        (count > 0).then_some(Pages { address: region_start + start, start: mapped, count })
    })
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::layout::{GAP_END, GAP_START};
    use crate::memory::allocate;

    #[test]
    fn the_contents_stay() {
        let memory = allocate(32).unwrap();
        memory.write_obj(0x1234_5678u32, GuestAddress((4 << 20) - 4)).unwrap();
        back_by_huge_pages(&memory, &((3 << 20)..(5 << 20)));
        assert_eq!(memory.read_obj::<u32>(GuestAddress((4 << 20) - 4)).unwrap(), 0x1234_5678);
        assert_eq!(memory.read_obj::<u64>(GuestAddress(5 << 20)).unwrap(), 0);
    }

    /// Address and count of the large pages of a range.
    fn of(memory: &GuestMemory, range: Range<u64>) -> Vec<(u64, usize)> {
        pages(memory, &range).map(|pages| (pages.address, pages.count)).collect()
    }

    #[test]
    fn a_range_is_extended_to_whole_pages_and_cut_to_those_that_memory_has() {
        let memory = allocate(33).unwrap();
        assert_eq!(of(&memory, 3 << 20..5 << 20), [(2 << 20, 2)]);
        assert_eq!(of(&memory, 31 << 20..u64::MAX / 2), [(30 << 20, 1)]);
        assert_eq!(of(&memory, 64 << 20..66 << 20), []);
        assert_eq!(of(&memory, u64::MAX - 1..u64::MAX), []);
        #[expect(clippy::reversed_empty_ranges)]
        let reversed = 8 << 20..2 << 20;
        assert_eq!(of(&memory, reversed), []);
    }

    #[test]
    fn a_range_across_the_device_gap_is_both_its_ends() {
        let memory = allocate(3 * 1024 + 4).unwrap();
        let last = GAP_START - (4 << 20);
        let both = [(last, 2), (GAP_END, 2)];
        assert_eq!(of(&memory, last..GAP_END + (4 << 20)), both);
    }
}
