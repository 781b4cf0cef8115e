//! What a guest can make this process hold.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that are left for everything else in this process: one for each of the 1,023 connections of vsock, with two of which
/// somebody may be busy, one for each of its 64 clients that have not said yet where they want to go, and some hundred for
/// the machine and its devices.
const RESERVED_DESCRIPTORS: u64 = 1024 + 512;
/// What a server may have open besides inodes and files: directories, and what a request needs for a moment.
const DESCRIPTORS_OF_A_SERVER: u64 = MOST_OPEN_DIRECTORIES as u64 + 8;
/// The most descriptors of inodes. Each makes the host's kernel keep an inode and its path, about 2 KiB.
const MOST_INODE_DESCRIPTORS: usize = 16 * 1024;
/// The most files and directories that the guest may have open.
const MOST_HANDLES: usize = 64 * 1024;
/// The most files that are kept open for a guest that does not announce its opens. They are counted as handles, of which such a
/// guest has none but those of directories.
pub(super) const MOST_IMPLICIT_FILES: usize = 4096;
/// The most directories that are open on the host, of those that the guest has open. One that overlayfs merges holds its whole
/// listing in memory that no cgroup counts. Programs that walk a tree have as many open as the tree is deep.
pub(super) const MOST_OPEN_DIRECTORIES: usize = 16;
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

/// How many descriptors a guest may make this process hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DescriptorBudget {
    /// Those of inodes. A guest may know more inodes than that.
    pub inodes: usize,
    /// Those of open files; also how many files and directories the guest may have open.
    pub handles: usize,
}

impl DescriptorBudget {
    /// Raises this process's limit of descriptors (`RLIMIT_NOFILE`) as far as that is allowed and needed, and gives each
    /// of its `servers` an equal part of what is there.
    pub fn of_this_process(servers: u32) -> Self {
        let servers = u64::from(servers.max(1));
        let of_each = (MOST_INODE_DESCRIPTORS + MOST_HANDLES) as u64 + DESCRIPTORS_OF_A_SERVER;
        let needed = RESERVED_DESCRIPTORS + servers * of_each;
        let limit = getrlimit(Resource::Nofile);
        let hard = limit.maximum.unwrap_or(u64::MAX);
        // The hard limit first, for which a privilege is needed; then what goes without.
        for (soft, hard) in [(needed, hard.max(needed)), (needed.min(hard), hard)] {
            if limit.current.is_none_or(|current| current >= soft) {
                break;
            }
            let raised = Rlimit { current: Some(soft), maximum: limit.maximum.and(Some(hard)) };
            if setrlimit(Resource::Nofile, raised).is_ok() {
                break;
            }
        }
        Self::share_out(getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX), servers)
    }

    fn share_out(available: u64, servers: u64) -> Self {
        let usable = available.saturating_sub(RESERVED_DESCRIPTORS) / servers;
        let usable = usable.saturating_sub(DESCRIPTORS_OF_A_SERVER);
        let usable = usize::try_from(usable).unwrap_or(usize::MAX);
        let inodes = (usable / 2).clamp(64, MOST_INODE_DESCRIPTORS);
        Self { inodes, handles: usable.saturating_sub(inodes).clamp(64, MOST_HANDLES) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_leaves_descriptors_for_the_rest_of_the_process() {
        for (available, servers, inodes, handles) in [
            (4096, 1, 1268, 1268),
            (65_536, 1, 16_384, 47_592),
            (65_536, 2, 15_988, 15_988),
            // What the jail has: see `jail/limits.rs`.
            (98_304, 2, 16_384, 31_976),
        ] {
            let budget = DescriptorBudget::share_out(available, servers);
            assert_eq!(budget, DescriptorBudget { inodes, handles }, "{available} for {servers}");
            let of_a_server = (budget.inodes + budget.handles) as u64 + DESCRIPTORS_OF_A_SERVER;
            assert!(servers * of_a_server + RESERVED_DESCRIPTORS <= available);
        }
    }

    #[test]
    fn a_budget_has_a_floor_and_a_ceiling() {
        assert_eq!(DescriptorBudget::share_out(10, 1), DescriptorBudget { inodes: 64, handles: 64 });
        let budget = DescriptorBudget::share_out(u64::MAX, 2);
        assert_eq!(budget, DescriptorBudget { inodes: MOST_INODE_DESCRIPTORS, handles: MOST_HANDLES });
    }

    #[test]
    fn the_processs_limit_is_raised_as_far_as_is_needed_and_allowed() {
        let hard = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
        let budget = DescriptorBudget::of_this_process(2);
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        assert!(limit >= hard.min(1536 + 2 * (16_384 + 65_536 + 24)), "{limit}");
        let least = 1536 + 2 * (64 + 64 + 24);
        assert!(2 * (budget.inodes + budget.handles + 24) as u64 + 1536 <= limit.max(least), "{budget:?}");
    }
}
