//! Locks and interrupts.

use super::wire_struct;

/// `FUSE_LK_FLOCK`: the lock is a `flock` lock.
pub const LOCK_FLOCK: u32 = 1 << 0;

wire_struct! {
    /// `struct fuse_file_lock`.
    pub struct FileLock: 24 {
        /// First byte.
        pub start: u64,
        /// Last byte; `i64::MAX` for the end of the file, wherever it comes to lie.
        pub end: u64,
        /// `F_RDLCK`, `F_WRLCK`, `F_UNLCK`.
        pub kind: u32,
        /// The holder's process.
        pub pid: u32,
    }
}

wire_struct! {
    /// `struct fuse_lk_in`.
    pub struct LockIn: 48 {
        /// The open file.
        pub handle: u64,
        /// The lock owner.
        pub owner: u64,
        /// The lock.
        pub lock: FileLock,
        /// [`LOCK_FLOCK`].
        pub flags: u32,
        /// Zero.
        pub padding: u32,
    }
}

wire_struct! {
    /// `struct fuse_lk_out`.
    pub struct LockOut: 24 {
        /// The lock that is in the way, or `F_UNLCK`.
        pub lock: FileLock,
    }
}

wire_struct! {
    /// `struct fuse_interrupt_in`.
    pub struct InterruptIn: 8 {
        /// The request to give up.
        pub unique: u64,
    }
}
