//! Attributes of files and of the file system.

use bitflags::bitflags;

use super::wire_struct;

/// `FUSE_GETATTR_FH`: the request names an open file.
pub const GETATTR_FH: u32 = 1 << 0;
/// `FUSE_ATTR_SUBMOUNT`: the directory is the root of another mount.
pub const ATTR_SUBMOUNT: u32 = 1 << 0;

wire_struct! {
    /// `struct fuse_attr`.
    pub struct Attributes: 88 {
        /// Inode number, as the host has it.
        pub inode: u64,
        /// Size in bytes.
        pub size: u64,
        /// Allocated blocks of 512 bytes.
        pub blocks: u64,
        /// Time of last access, seconds.
        pub atime: u64,
        /// Time of last modification, seconds.
        pub mtime: u64,
        /// Time of last change, seconds.
        pub ctime: u64,
        /// Time of last access, nanoseconds.
        pub atime_nanoseconds: u32,
        /// Time of last modification, nanoseconds.
        pub mtime_nanoseconds: u32,
        /// Time of last change, nanoseconds.
        pub ctime_nanoseconds: u32,
        /// Type and permissions.
        pub mode: u32,
        /// Number of names.
        pub links: u32,
        /// Owner.
        pub uid: u32,
        /// Group.
        pub gid: u32,
        /// Device number of a device node.
        pub device: u32,
        /// Preferred block size.
        pub block_size: u32,
        /// [`ATTR_SUBMOUNT`].
        pub flags: u32,
    }
}

wire_struct! {
    /// `struct fuse_getattr_in`.
    pub struct GetattrIn: 16 {
        /// [`GETATTR_FH`].
        pub flags: u32,
        /// Zero.
        pub padding: u32,
        /// The open file, if there is one.
        pub handle: u64,
    }
}

wire_struct! {
    /// `struct fuse_attr_out`.
    pub struct AttributesOut: 104 {
        /// How long the attributes may be cached, seconds.
        pub valid: u64,
        /// How long the attributes may be cached, nanoseconds.
        pub valid_nanoseconds: u32,
        /// Zero.
        pub padding: u32,
        /// The attributes.
        pub attributes: Attributes,
    }
}

bitflags! {
    /// `FATTR_*`: which fields of [`SetattrIn`] count.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct SetattrValid: u32 {
        /// Permissions.
        const MODE = 1 << 0;
        /// Owner.
        const UID = 1 << 1;
        /// Group.
        const GID = 1 << 2;
        /// Size.
        const SIZE = 1 << 3;
        /// Time of last access.
        const ATIME = 1 << 4;
        /// Time of last modification.
        const MTIME = 1 << 5;
        /// The open file.
        const FH = 1 << 6;
        /// Time of last access becomes now.
        const ATIME_NOW = 1 << 7;
        /// Time of last modification becomes now.
        const MTIME_NOW = 1 << 8;
        /// The lock owner.
        const LOCKOWNER = 1 << 9;
        /// Time of last change.
        const CTIME = 1 << 10;
        /// Set-id bits are to be cleared on the way.
        const KILL_SUIDGID = 1 << 11;
    }
}

wire_struct! {
    /// `struct fuse_setattr_in`.
    pub struct SetattrIn: 88 {
        /// [`SetattrValid`].
        pub valid: u32,
        /// Zero.
        pub padding: u32,
        /// The open file.
        pub handle: u64,
        /// Size in bytes.
        pub size: u64,
        /// The lock owner.
        pub lock_owner: u64,
        /// Time of last access, seconds.
        pub atime: u64,
        /// Time of last modification, seconds.
        pub mtime: u64,
        /// Time of last change, seconds.
        pub ctime: u64,
        /// Time of last access, nanoseconds.
        pub atime_nanoseconds: u32,
        /// Time of last modification, nanoseconds.
        pub mtime_nanoseconds: u32,
        /// Time of last change, nanoseconds.
        pub ctime_nanoseconds: u32,
        /// Permissions.
        pub mode: u32,
        /// Nothing.
        pub unused4: u32,
        /// Owner.
        pub uid: u32,
        /// Group.
        pub gid: u32,
        /// Nothing.
        pub unused5: u32,
    }
}

wire_struct! {
    /// `struct fuse_statx_in`.
    pub struct StatxIn: 24 {
        /// [`GETATTR_FH`].
        pub flags: u32,
        /// Zero.
        pub reserved: u32,
        /// The open file, if there is one.
        pub handle: u64,
        /// `AT_STATX_*`.
        pub statx_flags: u32,
        /// `STATX_*`: what is wanted.
        pub statx_mask: u32,
    }
}

wire_struct! {
    /// `struct fuse_sx_time`.
    pub struct StatxTime: 16 {
        /// Seconds.
        pub seconds: i64,
        /// Nanoseconds.
        pub nanoseconds: u32,
        /// Zero.
        pub reserved: i32,
    }
}

wire_struct! {
    /// `struct fuse_statx_out`, `struct fuse_statx` included.
    pub struct StatxOut: 288 {
        /// How long the attributes may be cached, seconds.
        pub valid: u64,
        /// How long the attributes may be cached, nanoseconds.
        pub valid_nanoseconds: u32,
        /// Zero.
        pub flags: u32,
        /// Zero.
        pub spare: [u64; 2],
        /// `STATX_*`: what is filled in.
        pub mask: u32,
        /// Preferred block size.
        pub block_size: u32,
        /// `STATX_ATTR_*`.
        pub attributes: u64,
        /// Number of names.
        pub links: u32,
        /// Owner.
        pub uid: u32,
        /// Group.
        pub gid: u32,
        /// Type and permissions.
        pub mode: u16,
        /// Zero.
        pub spare0: u16,
        /// Inode number.
        pub inode: u64,
        /// Size in bytes.
        pub size: u64,
        /// Allocated blocks of 512 bytes.
        pub blocks: u64,
        /// Which of `attributes` are known.
        pub attributes_mask: u64,
        /// Time of last access.
        pub atime: StatxTime,
        /// Time of birth.
        pub btime: StatxTime,
        /// Time of last change.
        pub ctime: StatxTime,
        /// Time of last modification.
        pub mtime: StatxTime,
        /// Device number of a device node, major part.
        pub device_major: u32,
        /// Device number of a device node, minor part.
        pub device_minor: u32,
        /// The file system's device number, major part.
        pub file_system_major: u32,
        /// The file system's device number, minor part.
        pub file_system_minor: u32,
        /// Zero.
        pub spare2: [u64; 14],
    }
}

wire_struct! {
    /// `struct fuse_statfs_out`.
    pub struct StatfsOut: 80 {
        /// Blocks in all.
        pub blocks: u64,
        /// Free blocks.
        pub blocks_free: u64,
        /// Blocks free to ordinary users.
        pub blocks_available: u64,
        /// Inodes in all.
        pub files: u64,
        /// Free inodes.
        pub files_free: u64,
        /// Preferred block size.
        pub block_size: u32,
        /// The longest name.
        pub name_length: u32,
        /// The block size that the counts are in.
        pub fragment_size: u32,
        /// Zero.
        pub padding: u32,
        /// Zero.
        pub spare: [u32; 6],
    }
}
