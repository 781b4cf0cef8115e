//! The negotiation at mount.

use bitflags::bitflags;

use super::wire_struct;

/// `FUSE_KERNEL_VERSION`: the major version that this server speaks.
pub const KERNEL_VERSION: u32 = 7;
/// `FUSE_KERNEL_MINOR_VERSION`: the newest minor version whose structures this server knows.
pub const KERNEL_MINOR_VERSION: u32 = 41;

wire_struct! {
    /// `struct fuse_init_in` up to `flags`: the part that every client since 7.6 sends.
    pub struct InitIn: 16 {
        /// Major version.
        pub major: u32,
        /// Minor version.
        pub minor: u32,
        /// The most that the client reads ahead, in bytes.
        pub max_readahead: u32,
        /// The lower half of [`InitFlags`].
        pub flags: u32,
    }
}

wire_struct! {
    /// `struct fuse_init_out`.
    pub struct InitOut: 64 {
        /// Major version.
        pub major: u32,
        /// Minor version.
        pub minor: u32,
        /// The most that the client may read ahead, in bytes.
        pub max_readahead: u32,
        /// The lower half of [`InitFlags`].
        pub flags: u32,
        /// How many background requests may be under way.
        pub max_background: u16,
        /// From how many background requests on the file system counts as congested.
        pub congestion_threshold: u16,
        /// The largest WRITE, in bytes.
        pub max_write: u32,
        /// Granularity of timestamps in nanoseconds.
        pub time_granularity: u32,
        /// The most pages in one request.
        pub max_pages: u16,
        /// DAX alignment as a power of two.
        pub map_alignment: u16,
        /// The upper half of [`InitFlags`].
        pub flags2: u32,
        /// Only for passthrough.
        pub max_stack_depth: u32,
        /// Zero.
        pub unused: [u32; 6],
    }
}

bitflags! {
    /// The `INIT` flags that this server may agree to, and those it needs to recognise.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct InitFlags: u64 {
        /// Reads of one file may overlap.
        const ASYNC_READ = 1 << 0;
        /// POSIX locks are the server's.
        const POSIX_LOCKS = 1 << 1;
        /// `OPEN` handles `O_TRUNC`.
        const ATOMIC_O_TRUNC = 1 << 3;
        /// Writes larger than a page.
        const BIG_WRITES = 1 << 5;
        /// The server applies the umask.
        const DONT_MASK = 1 << 6;
        /// `flock` locks are the server's.
        const FLOCK_LOCKS = 1 << 10;
        /// Cached pages go when the modification time has changed.
        const AUTO_INVAL_DATA = 1 << 12;
        /// `READDIRPLUS` exists.
        const DO_READDIRPLUS = 1 << 13;
        /// The client chooses between `READDIR` and `READDIRPLUS`.
        const READDIRPLUS_AUTO = 1 << 14;
        /// Direct I/O of one call may be split and overlap.
        const ASYNC_DIO = 1 << 15;
        /// The client delays writes.
        const WRITEBACK_CACHE = 1 << 16;
        /// Lookups and reads of one directory may overlap.
        const PARALLEL_DIROPS = 1 << 18;
        /// POSIX access control lists are checked by the client.
        const POSIX_ACL = 1 << 20;
        /// `max_pages` counts.
        const MAX_PAGES = 1 << 22;
        /// Targets of symbolic links may be cached.
        const CACHE_SYMLINKS = 1 << 23;
        /// The client mounts a file system of its own where the server crosses a mount.
        const SUBMOUNTS = 1 << 27;
        /// The server clears set-id bits on write, truncation and chown when asked to.
        const HANDLE_KILLPRIV_V2 = 1 << 28;
        /// `SETXATTR` has its long form.
        const SETXATTR_EXT = 1 << 29;
        /// The flags' upper half counts.
        const INIT_EXT = 1 << 30;
    }
}
