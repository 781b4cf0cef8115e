//! What a container finds in /dev.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, Uid, chmodat, chownat, makedev, mknodat, readlinkat, symlinkat,
    unlinkat,
};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::error::{Context, Result};
use super::mounts::attach;
use crate::container::plan::{ContainerPlan, DeviceKind, DeviceNode, MountSource};
use crate::paths::Root;

/// Devices that the OCI runtime spec gives every container ("Default Devices"), with the numbers of
/// Documentation/admin-guide/devices.txt.
const DEFAULT_DEVICES: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// Symbolic links that it gives every container ("Dev symbolic links"), and the multiplexer of its terminals.
const LINKS: [(&str, &str); 5] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
];

/// Makes the default devices and links, and those of the spec. A /dev that is bound from elsewhere stays as it is.
pub(super) fn make(root: &Root, plan: &ContainerPlan) -> Result<()> {
    if dev_is_bound(plan) {
        return Ok(());
    }
    let in_user_namespace = plan.namespaces.has_user_namespace();
    for (path, major, minor) in DEFAULT_DEVICES {
        // A device of the spec at the same place is the one that counts.
        if !plan.devices.iter().any(|device| device.path == Path::new(path)) {
            make_node(root, &default_device(path, major, minor), in_user_namespace)?;
        }
    }
    for device in &plan.devices {
        make_node(root, device, in_user_namespace)?;
    }
    LINKS.iter().try_for_each(|(path, target)| make_link(root, Path::new(path), Path::new(target)))
}

fn dev_is_bound(plan: &ContainerPlan) -> bool {
    let of_dev = |destination: &Path| destination.components().eq(Path::new("/dev").components());
    plan.mounts
        .iter()
        .any(|mount| of_dev(&mount.destination) && matches!(mount.source, MountSource::Bind { .. }))
}

fn default_device(path: &str, major: u32, minor: u32) -> DeviceNode {
    DeviceNode {
        path: PathBuf::from(path),
        kind: DeviceKind::Character,
        major,
        minor,
        mode: 0o666,
        uid: 0,
        gid: 0,
    }
}

fn make_node(root: &Root, node: &DeviceNode, in_user_namespace: bool) -> Result<()> {
    // A node cannot be made in a user namespace; there it is the guest's own, bound.
    let made = if in_user_namespace { bind_node(root, node) } else { mknod(root, node) };
    made.context(|| format!("make the device {}", node.path.display()))
}

fn mknod(root: &Root, node: &DeviceNode) -> io::Result<()> {
    let (parent, name) = root.parent(&node.path)?;
    let kind = match node.kind {
        DeviceKind::Character => FileType::CharacterDevice,
        DeviceKind::Block => FileType::BlockDevice,
        DeviceKind::Fifo => FileType::Fifo,
    };
    let mode = Mode::from_raw_mode(node.mode);
    match mknodat(&parent, name, kind, mode, makedev(node.major, node.minor)) {
        Ok(()) => {}
        Err(Errno::EXIST) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    chmodat(&parent, name, mode, AtFlags::empty())?;
    let (uid, gid) = (Uid::from_raw(node.uid), Gid::from_raw(node.gid));
    Ok(chownat(&parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
}

fn bind_node(root: &Root, node: &DeviceNode) -> io::Result<()> {
    attach(root, &clone_mount(&node.path)?, &node.path, false)
}

/// A detached mount of one file of the guest.
pub(super) fn clone_mount(path: &Path) -> io::Result<OwnedFd> {
    Ok(open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?)
}

fn make_link(root: &Root, path: &Path, target: &Path) -> Result<()> {
    let make = || -> io::Result<()> {
        let (parent, name) = root.parent(path)?;
        match symlinkat(target, &parent, name) {
            Err(Errno::EXIST) => replace_link(parent.as_fd(), name, target),
            result => Ok(result?),
        }
    };
    make().context(|| format!("make the link {}", path.display()))
}

fn replace_link(parent: impl AsFd, name: &Path, target: &Path) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let there = readlinkat(&parent, name, Vec::new());
    if there.is_ok_and(|there| there.as_bytes() == target.as_os_str().as_bytes()) {
        return Ok(());
    }
    unlinkat(&parent, name, AtFlags::empty())?;
    Ok(symlinkat(target, &parent, name)?)
}
