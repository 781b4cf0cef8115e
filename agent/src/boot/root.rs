//! A root that containers can leave: `pivot_root(2)` refuses to move the kernel's initial file system, which has
//! no parent mount. A second mount of it, put over the first, has one.

use std::io;

use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use rustix::process::{chroot, fchdir};

/// Mounts the root once more over itself and makes that the root of this process and its children.
pub(super) fn make_pivotable() -> io::Result<()> {
    let second = open_tree(CWD, "/", OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    move_mount(&second, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    fchdir(&second)?;
    Ok(chroot(".")?)
}
