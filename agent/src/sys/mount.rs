//! `mount_setattr(2)`.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `struct mount_attr` of linux/mount.h: what to set, what to clear, and how mounts below pass on.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MountAttributes {
    /// `MOUNT_ATTR_*` to set.
    pub(crate) set: u64,
    /// `MOUNT_ATTR_*` to clear; done first.
    pub(crate) clear: u64,
    /// `MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE` or `MS_UNBINDABLE`; 0 leaves the propagation alone.
    pub(crate) propagation: u64,
    /// The user namespace whose mappings the mount takes, with `MOUNT_ATTR_IDMAP`.
    pub(crate) user_namespace: u64,
}

/// Changes the mount that `mount` refers to (an `O_PATH` descriptor of its root, or one from `open_tree` or
/// `fsmount`), with `recursive` also every mount below it.
pub(crate) fn set_attributes(
    mount: BorrowedFd<'_>,
    attributes: &MountAttributes,
    recursive: bool,
) -> io::Result<()> {
    let recursion = if recursive { libc::AT_RECURSIVE } else { 0 };
    let flags = libc::AT_EMPTY_PATH | recursion;
    let size = size_of::<MountAttributes>();
    // SAFETY: the path is an empty C string, `attributes` is a `struct mount_attr` of the size given, and both live
    // until the call returns.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attributes),
            size,
        )
    };
    super::checked(result).map(drop)
}
