//! The container's root: a mount of its own in a mount namespace of its own, entered by `pivot_root(2)`.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, open};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};
use rustix::process::{chdir, fchdir, pivot_root};

use super::error::{Context, Result};
use crate::container::plan::ContainerPlan;
use crate::paths::Root;
use crate::sys::mount::{MountAttributes, set_attributes};

/// Cuts the guest's mounts off from what is mounted here, and makes the root file system a mount of its own.
pub(super) fn prepare(plan: &ContainerPlan) -> Result<Root> {
    detach_from_guest()?;
    let path = plan.rootfs.as_path();
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(CWD, path, flags).context(|| format!("rootfs {path:?}"))?;
    move_mount(&tree, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .context(|| format!("mount the rootfs on {path:?}"))?;
    Ok(Root::new(tree))
}

/// What the guest mounts later below a shared mount still comes in; nothing goes out.
fn detach_from_guest() -> Result<()> {
    let root = open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).context(|| "open /")?;
    let slave = MountAttributes { propagation: libc::MS_SLAVE, ..MountAttributes::default() };
    set_attributes(root.as_fd(), &slave, true).context(|| "detach the mounts from the guest's")
}

/// Makes the root the `/` of this process and leaves nothing else of the guest's mounts.
pub(super) fn enter(root: &Root, plan: &ContainerPlan) -> Result<()> {
    let old =
        open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).context(|| "open /")?;
    fchdir(root).context(|| "enter the rootfs")?;
    // The old root goes on top of the new one, where the next two steps find it without a directory for it.
    pivot_root(".", ".").context(|| "pivot_root to the rootfs")?;
    fchdir(&old).context(|| "enter the guest's root")?;
    unmount(".", UnmountFlags::DETACH).context(|| "unmount the guest's root")?;
    chdir("/").context(|| "enter /")?;
    if let Some(propagation) = &plan.rootfs_propagation {
        set_attributes(root.as_fd(), propagation, true).context(|| "linux.rootfsPropagation")?;
    }
    Ok(())
}

/// Makes the root's own mount read-only; other mounts in it stay as they are.
pub(super) fn make_readonly(root: &Root) -> Result<()> {
    let readonly = MountAttributes { set: libc::MOUNT_ATTR_RDONLY, ..MountAttributes::default() };
    set_attributes(root.as_fd(), &readonly, false).context(|| "make the rootfs read-only")
}

/// The working directory is made if the image has none, as other runtimes do.
pub(super) fn make_working_directory(root: &Root, path: &Path) -> Result<()> {
    root.directory(path).map(drop).context(|| format!("make the working directory {path:?}"))
}
