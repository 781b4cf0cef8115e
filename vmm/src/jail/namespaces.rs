//! Namespaces of the process's own, with the share as the root directory.

use std::os::fd::OwnedFd;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MountPropagationFlags, OpenTreeFlags, UnmountFlags, mount_change, open_tree, unmount};
use rustix::process::{chdir, fchdir, pivot_root};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::{JailError, step};

/// The namespaces that a process enters by itself: mounts, System V IPC, host name, network, cgroups.
const NAMESPACES: UnshareFlags = UnshareFlags::NEWNS
    .union(UnshareFlags::NEWIPC)
    .union(UnshareFlags::NEWUTS)
    .union(UnshareFlags::NEWNET)
    .union(UnshareFlags::NEWCGROUP);

/// Enters them. Returns the new root directory and `/proc/self/fd`, the only part of the host's `/proc` that stays
/// within reach.
pub(super) fn enter(share: OwnedFd) -> Result<(OwnedFd, OwnedFd), JailError> {
    // The kernel puts the working directory on the new namespace's copy of its mount: that way, and not by a path,
    // the share is found there.
    fchdir(&share).map_err(step("fchdir to the share"))?;
    // The descriptor is of the host's own mount, from which `..` leads to the host's root.
    drop(share);
    // SAFETY: no memory and no descriptor table is unshared, so that nothing is taken away that other code relies on.
    unsafe { unshare_unsafe(NAMESPACES) }.map_err(step("unshare"))?;
    // What is mounted on the host still arrives here, and nothing goes the other way.
    let slaves = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", slaves).map_err(step("MS_SLAVE"))?;
    let descriptor_directory = descriptor_directory()?;
    make_root()?;
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    Ok((root.map_err(step("open of the new root"))?, descriptor_directory))
}

/// `/proc/self/fd` as the root of a mount that is nowhere mounted. By a descriptor of the directory itself, `..` would
/// lead to the rest of the host's `/proc`: to what root may write in `/proc/sys` without any capability.
fn descriptor_directory() -> Result<OwnedFd, JailError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(CWD, "/proc/self/fd", flags).map_err(step("open_tree of /proc/self/fd (Linux 5.2)"))
}

/// Makes the working directory the root, and lets go of the old one (pivot_root(2), "pivot_root(".", ".")").
fn make_root() -> Result<(), JailError> {
    pivot_root(".", ".").map_err(step("pivot_root to the share, which must be a mount point"))?;
    unmount(".", UnmountFlags::DETACH).map_err(step("umount of the old root"))?;
    chdir("/").map_err(step("chdir to the new root"))
}
