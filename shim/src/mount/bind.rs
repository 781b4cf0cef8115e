//! Bind mounts that are complete before anybody sees them.
//!
//! What is mounted below the share appears in the VMM's mount namespace at once, with the flags that it has at that
//! moment; what changes later changes for the host alone. A mount that became read-only after it was bound would stay
//! writable for the guest. So it is made unattached, gets its flags, and is attached then (open_tree(2),
//! mount_setattr(2), move_mount(2); Linux 5.12).

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{MountPropagationFlags, MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

/// Binds `source` to `target` as a private mount: what is mounted below one later does not appear below the other. It
/// takes no devices and no set-id bits; the guest, which has its own, is not concerned.
///
/// # Errors
/// What open_tree(2), mount_setattr(2) or move_mount(2) returned.
pub(crate) fn bind(source: &Path, target: &Path, recursive: bool, read_only: bool) -> io::Result<()> {
    bind_with(source, target, recursive, read_only, MountPropagationFlags::PRIVATE)
}

/// As [`bind`], but what the host mounts below `source` later appears below `target` too.
///
/// # Errors
/// As [`bind`].
pub(crate) fn bind_slave(source: &Path, target: &Path, recursive: bool, read_only: bool) -> io::Result<()> {
    bind_with(source, target, recursive, read_only, MountPropagationFlags::DOWNSTREAM)
}

fn bind_with(
    source: &Path,
    target: &Path,
    recursive: bool,
    read_only: bool,
    propagation: MountPropagationFlags,
) -> io::Result<()> {
    let tree = clone_tree(source, recursive)?;
    let attributes = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    set_attributes(&tree, recursive, attributes, propagation)?;
    if read_only {
        // As mount(8) has it: what is mounted below keeps its own.
        set_attributes(&tree, false, libc::MOUNT_ATTR_RDONLY, MountPropagationFlags::empty())?;
    }
    Ok(move_mount(tree.as_fd(), c"", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

fn clone_tree(source: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    Ok(open_tree(CWD, source, flags)?)
}

fn set_attributes(
    tree: &OwnedFd,
    recursive: bool,
    attributes: u64,
    propagation: MountPropagationFlags,
) -> io::Result<()> {
    let change = libc::mount_attr {
        attr_set: attributes,
        attr_clr: 0,
        propagation: propagation.bits().into(),
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a C string and the structure as large as it is said to be; both live through the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const change,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
