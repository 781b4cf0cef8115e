//! `linux.maskedPaths` and `linux.readonlyPaths`: parts of /proc and /sys that a container must not read or write.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsmount,
    fsopen, move_mount, open_tree,
};

use super::devices::clone_mount;
use super::error::{Context, Result};
use crate::paths::{Root, is_directory};
use crate::sys::mount::{MountAttributes, set_attributes};

/// Covers each path: a file by /dev/null, a directory by one empty, read-only directory. What is not there is passed.
pub(super) fn mask(root: &Root, paths: &[PathBuf]) -> Result<()> {
    for path in paths {
        mask_one(root, path).context(|| format!("mask {}", path.display()))?;
    }
    Ok(())
}

fn mask_one(root: &Root, path: &Path) -> io::Result<()> {
    let Some(target) = find(root, path)? else {
        return Ok(());
    };
    let cover =
        if is_directory(&target)? { empty_directory()? } else { clone_mount(Path::new("/dev/null"))? };
    put_over(&cover, &target)
}

fn empty_directory() -> io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// Makes each path read-only, with all mounts below it. What is not there is passed.
pub(super) fn make_readonly(root: &Root, paths: &[PathBuf]) -> Result<()> {
    for path in paths {
        make_one_readonly(root, path).context(|| format!("make {} read-only", path.display()))?;
    }
    Ok(())
}

fn make_one_readonly(root: &Root, path: &Path) -> io::Result<()> {
    let Some(target) = find(root, path)? else {
        return Ok(());
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(&target, "", flags)?;
    let readonly = MountAttributes { set: libc::MOUNT_ATTR_RDONLY, ..MountAttributes::default() };
    set_attributes(tree.as_fd(), &readonly, true)?;
    put_over(&tree, &target)
}

fn find(root: &Root, path: &Path) -> io::Result<Option<OwnedFd>> {
    match root.find(path) {
        Ok(target) => Ok(Some(target)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn put_over(tree: &OwnedFd, target: &OwnedFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(tree, "", target, "", flags)?)
}
