//! Backing parts of guest memory by 2 MiB pages before the guest touches them.
//!
//! Each page that the guest touches first is an exit in which KVM looks the host's page up, 4 KiB or 2 MiB at a time.
//! Hosts rarely give shared memory large pages by themselves (`transparent_hugepage/shmem_enabled` is `never` almost
//! everywhere), but collapse small pages into large ones on request, whatever that setting (Linux 6.1 and later).

use std::io;
use std::ops::Range;

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::{GuestMemory, HUGE_PAGE};

/// `MADV_COLLAPSE` (Linux, include/uapi/asm-generic/mman-common.h).
const MADV_COLLAPSE: libc::c_int = 25;

/// The size of a large page as lengths in this process are counted.
const LENGTH: usize = HUGE_PAGE as usize;

/// Asks the host to back `range`, extended to whole large pages, by large pages. A host that cannot leaves small ones
/// behind, with which everything works, only slower.
pub fn back_by_huge_pages(memory: &GuestMemory, range: &Range<u64>) {
    pages(memory, range).for_each(|pages| collapse(&pages));
}

/// Large pages of a region's mapping, one behind the other.
struct Pages {
    /// Where the guest has the first.
    #[cfg_attr(not(test), expect(dead_code))]
    address: u64,
    start: *mut u8,
    count: usize,
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

/// Makes large pages of them.
fn collapse(pages: &Pages) {
    for index in 0..pages.count {
        // The host does not collapse what is wholly empty: a read makes a page.
        // SAFETY: the page lies in guest memory, which is mapped for as long as the process lives; the guest may write
        // to it at any time, hence volatile.
        unsafe { pages.start.wrapping_add(index * LENGTH).read_volatile() };
    }
    // One call for all of them: with each the host waits until all its processors have put away their newest pages.
    // EAGAIN says that some page was in use just then; what is done already takes no time again.
    let again = |result: &io::Result<()>| {
        result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    };
    if again(&request(pages)) {
        let _ = request(pages);
    }
}

fn request(pages: &Pages) -> io::Result<()> {
    // SAFETY: the pages lie in guest memory, whose contents the call does not change.
    let result = unsafe { libc::madvise(pages.start.cast(), pages.count * LENGTH, MADV_COLLAPSE) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
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
