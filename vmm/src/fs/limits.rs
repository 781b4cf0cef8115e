//! What a guest can make this process hold.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that are left for everything else in this process.
const RESERVED_DESCRIPTORS: u64 = 512;
/// No host needs more than this for one guest, whatever its limit says: each inode costs about 200 bytes here and
/// more in the kernel.
const MOST_DESCRIPTORS: u64 = 1 << 20;
/// The longest name of a file (`NAME_MAX`, linux/limits.h).
pub(super) const NAME_BYTES: usize = 255;
/// The longest target of a symbolic link (`PATH_MAX`, linux/limits.h).
pub(super) const PATH_BYTES: usize = 4096;
/// The largest value, and the largest list of names, of extended attributes (`XATTR_SIZE_MAX`, linux/limits.h).
pub(super) const XATTR_BYTES: usize = 65536;
/// The largest READ or WRITE. 256 pages are what a client can be told of (`FUSE_MAX_MAX_PAGES`, fs/fuse/fuse_i.h).
pub(super) const TRANSFER_PAGES: u16 = 256;
/// The same in bytes.
pub(super) const TRANSFER_BYTES: u32 = TRANSFER_PAGES as u32 * 4096;
/// The largest request apart from the data of a WRITE: the headers, a name and the value of an extended attribute.
pub(super) const REQUEST_BYTES: usize = 40 + 64 + XATTR_BYTES + 4096;
/// The most that one COPY_FILE_RANGE copies: the guest asks again for the rest, and others are served in between.
pub(super) const COPY_BYTES: u64 = 16 << 20;

/// How many inodes and how many open files a guest may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DescriptorBudget {
    /// Inodes, each with one descriptor.
    pub inodes: usize,
    /// Open files and directories, each with one descriptor.
    pub handles: usize,
}

impl DescriptorBudget {
    /// Raises this process's soft limit of descriptors (`RLIMIT_NOFILE`) to the hard one and shares out what is
    /// there: three quarters for inodes, one quarter for open files. Where the limit may not be raised, the budget
    /// is that much smaller.
    pub fn of_this_process() -> Self {
        let limit = getrlimit(Resource::Nofile);
        let hard = limit.maximum.unwrap_or(u64::MAX);
        let soft = limit.current.unwrap_or(u64::MAX);
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        let available = match soft < hard && setrlimit(Resource::Nofile, raised).is_err() {
            true => soft,
            false => hard,
        };
        Self::share_out(available)
    }

    fn share_out(available: u64) -> Self {
        let usable = available.saturating_sub(RESERVED_DESCRIPTORS).clamp(64, MOST_DESCRIPTORS);
        let usable = usize::try_from(usable).unwrap_or(usize::MAX);
        Self { inodes: usable / 4 * 3, handles: usable / 4 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_leaves_descriptors_for_the_rest_of_the_process() {
        let budget = DescriptorBudget::share_out(20_000);
        assert_eq!(budget, DescriptorBudget { inodes: 14_616, handles: 4_872 });
        assert!(budget.inodes + budget.handles <= 20_000 - 512);
    }

    #[test]
    fn a_budget_has_a_floor_and_a_ceiling() {
        assert_eq!(DescriptorBudget::share_out(10), DescriptorBudget { inodes: 48, handles: 16 });
        let budget = DescriptorBudget::share_out(u64::MAX);
        assert!(budget.inodes + budget.handles <= 1 << 20);
    }
}
