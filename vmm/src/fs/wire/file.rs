//! Open files, their contents and their extended attributes.

use bitflags::bitflags;

use super::wire_struct;

/// `FUSE_OPEN_KILL_SUIDGID`: `O_TRUNC` is to clear set-id bits.
pub const OPEN_KILL_SUIDGID: u32 = 1 << 0;
/// `FUSE_WRITE_CACHE`: the write comes from the page cache and the handle is a guess.
pub const WRITE_CACHE: u32 = 1 << 0;
/// `FUSE_WRITE_KILL_SUIDGID`: the write is to clear set-id bits.
pub const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// `FUSE_RELEASE_FLOCK_UNLOCK`: the close gives up a `flock` lock.
pub const RELEASE_FLOCK_UNLOCK: u32 = 1 << 1;
/// `FUSE_FSYNC_FDATASYNC`: data only.
pub const FSYNC_DATA_ONLY: u32 = 1 << 0;
/// `FUSE_SETXATTR_ACL_KILL_SGID`: setting the access control list is to clear the set-group-id bit.
pub const SETXATTR_ACL_KILL_SGID: u32 = 1 << 0;
/// `FUSE_COMPAT_SETXATTR_IN_SIZE`: the length of [`SetxattrIn`] where `SETXATTR_EXT` was not agreed on.
pub const SETXATTR_IN_SHORT: usize = 8;

bitflags! {
    /// `FOPEN_*`: how the client may treat an open file.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct OpenOutFlags: u32 {
        /// Cached pages outlive the open.
        const KEEP_CACHE = 1 << 1;
        /// The directory's names may be cached.
        const CACHE_DIR = 1 << 3;
        /// A close needs no `FLUSH`.
        const NOFLUSH = 1 << 5;
        /// Direct writes to one file may overlap.
        const PARALLEL_DIRECT_WRITES = 1 << 6;
    }
}

wire_struct! {
    /// `struct fuse_open_in`.
    pub struct OpenIn: 8 {
        /// `O_*`.
        pub flags: u32,
        /// [`OPEN_KILL_SUIDGID`].
        pub open_flags: u32,
    }
}

wire_struct! {
    /// `struct fuse_create_in`, followed by the name.
    pub struct CreateIn: 16 {
        /// `O_*`.
        pub flags: u32,
        /// Type and permissions.
        pub mode: u32,
        /// The caller's umask.
        pub umask: u32,
        /// [`OPEN_KILL_SUIDGID`].
        pub open_flags: u32,
    }
}

wire_struct! {
    /// `struct fuse_open_out`.
    pub struct OpenOut: 16 {
        /// Names the open file from now on.
        pub handle: u64,
        /// [`OpenOutFlags`].
        pub flags: u32,
        /// Only for passthrough.
        pub backing_id: i32,
    }
}

wire_struct! {
    /// `struct fuse_release_in`.
    pub struct ReleaseIn: 24 {
        /// The open file.
        pub handle: u64,
        /// `O_*`.
        pub flags: u32,
        /// [`RELEASE_FLOCK_UNLOCK`].
        pub release_flags: u32,
        /// The lock owner.
        pub lock_owner: u64,
    }
}

wire_struct! {
    /// `struct fuse_read_in`, of `READ`, `READDIR` and `READDIRPLUS`.
    pub struct ReadIn: 40 {
        /// The open file or directory.
        pub handle: u64,
        /// Where to begin.
        pub offset: u64,
        /// How many bytes are wanted.
        pub size: u32,
        /// `FUSE_READ_*`.
        pub read_flags: u32,
        /// The lock owner.
        pub lock_owner: u64,
        /// `O_*` of the open file as they are now.
        pub flags: u32,
        /// Zero.
        pub padding: u32,
    }
}

wire_struct! {
    /// `struct fuse_write_in`, followed by the data.
    pub struct WriteIn: 40 {
        /// The open file.
        pub handle: u64,
        /// Where to begin.
        pub offset: u64,
        /// How many bytes follow.
        pub size: u32,
        /// [`WRITE_CACHE`], [`WRITE_KILL_SUIDGID`].
        pub write_flags: u32,
        /// The lock owner.
        pub lock_owner: u64,
        /// `O_*` of the open file as they are now.
        pub flags: u32,
        /// Zero.
        pub padding: u32,
    }
}

wire_struct! {
    /// `struct fuse_write_out`.
    pub struct WriteOut: 8 {
        /// How many bytes were written.
        pub size: u32,
        /// Zero.
        pub padding: u32,
    }
}

wire_struct! {
    /// `struct fuse_fsync_in`.
    pub struct FsyncIn: 16 {
        /// The open file or directory.
        pub handle: u64,
        /// [`FSYNC_DATA_ONLY`].
        pub flags: u32,
        /// Zero.
        pub padding: u32,
    }
}

wire_struct! {
    /// `struct fuse_setxattr_in` in its long form, followed by the name and the value.
    pub struct SetxattrIn: 16 {
        /// Length of the value.
        pub size: u32,
        /// `XATTR_CREATE`, `XATTR_REPLACE`.
        pub flags: u32,
        /// [`SETXATTR_ACL_KILL_SGID`].
        pub setxattr_flags: u32,
        /// Zero.
        pub padding: u32,
    }
}

wire_struct! {
    /// `struct fuse_getxattr_in`, of `GETXATTR` (followed by the name) and `LISTXATTR`.
    pub struct GetxattrIn: 8 {
        /// Room for the value; zero asks for its length only.
        pub size: u32,
        /// Zero.
        pub padding: u32,
    }
}

wire_struct! {
    /// `struct fuse_getxattr_out`.
    pub struct GetxattrOut: 8 {
        /// Length of the value.
        pub size: u32,
        /// Zero.
        pub padding: u32,
    }
}

wire_struct! {
    /// `struct fuse_access_in`.
    pub struct AccessIn: 8 {
        /// `R_OK`, `W_OK`, `X_OK`.
        pub mask: u32,
        /// Zero.
        pub padding: u32,
    }
}

wire_struct! {
    /// `struct fuse_fallocate_in`.
    pub struct FallocateIn: 32 {
        /// The open file.
        pub handle: u64,
        /// Where to begin.
        pub offset: u64,
        /// How many bytes.
        pub length: u64,
        /// `FALLOC_FL_*`.
        pub mode: u32,
        /// Zero.
        pub padding: u32,
    }
}

wire_struct! {
    /// `struct fuse_lseek_in`.
    pub struct LseekIn: 24 {
        /// The open file.
        pub handle: u64,
        /// Where to begin.
        pub offset: u64,
        /// `SEEK_DATA`, `SEEK_HOLE`.
        pub whence: u32,
        /// Zero.
        pub padding: u32,
    }
}

wire_struct! {
    /// `struct fuse_lseek_out`.
    pub struct LseekOut: 8 {
        /// What was found.
        pub offset: u64,
    }
}

wire_struct! {
    /// `struct fuse_copy_file_range_in`.
    pub struct CopyFileRangeIn: 56 {
        /// The file to copy from.
        pub handle_in: u64,
        /// Where to begin reading.
        pub offset_in: u64,
        /// The inode to copy to.
        pub node_out: u64,
        /// The file to copy to.
        pub handle_out: u64,
        /// Where to begin writing.
        pub offset_out: u64,
        /// How many bytes.
        pub length: u64,
        /// Zero.
        pub flags: u64,
    }
}
