//! The mounts of a container, made before its root is entered. Each is put together detached and then moved to its
//! place, which no symbolic link of the image can turn to a place outside.

use std::fmt::Display;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, open};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};
use saya_agent_api::MEMORY_PATH;

use super::error::{Context, Result, SetupError, reason};
use crate::container::plan::{ContainerPlan, MountPlan, MountSource};
use crate::paths::{Root, is_directory};
use crate::sys::mount::{MountAttributes, set_attributes};

/// Makes all mounts, in order.
pub(super) fn make(root: &Root, plan: &ContainerPlan) -> Result<()> {
    let in_user_namespace = plan.namespaces.has_user_namespace();
    plan.mounts.iter().try_for_each(|mount| make_one(root, mount, in_user_namespace))
}

/// Makes those mounts read-only that had to be writable for the set-up.
pub(super) fn finish(root: &Root, mounts: &[MountPlan]) -> Result<()> {
    let readonly = MountAttributes { set: libc::MOUNT_ATTR_RDONLY, ..MountAttributes::default() };
    for plan in mounts.iter().filter(|plan| plan.readonly_at_last) {
        let mount = root.find(&plan.destination).context(|| mount_on(plan))?;
        set_attributes(mount.as_fd(), &readonly, false).context(|| mount_on(plan))?;
    }
    Ok(())
}

fn make_one(root: &Root, plan: &MountPlan, in_user_namespace: bool) -> Result<()> {
    let tree = match &plan.source {
        MountSource::Bind { source, recursive } => bind(plan, source, *recursive)?,
        // A new one would want a network namespace of the same user namespace, and the pod's is the guest's own.
        MountSource::FileSystem { kind, .. } if kind == "sysfs" && in_user_namespace => {
            bind(plan, Path::new("/sys"), true)?
        }
        MountSource::FileSystem { kind, source, options } => file_system(plan, kind, source, options)?,
    };
    let directory = is_directory(&tree).context(|| mount_on(plan))?;
    change(&tree, plan, false)?;
    attach(root, &tree, &plan.destination, directory).context(|| mount_on(plan))?;
    change(&tree, plan, true)
}

fn mount_on(plan: &MountPlan) -> impl Display {
    let what = match &plan.source {
        MountSource::Bind { source, .. } => source.display().to_string(),
        MountSource::FileSystem { kind, .. } => kind.clone(),
    };
    format!("mount {what} on {}", plan.destination.display())
}

fn bind(plan: &MountPlan, source: &Path, recursive: bool) -> Result<OwnedFd> {
    let recursion = if recursive { OpenTreeFlags::AT_RECURSIVE } else { OpenTreeFlags::empty() };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | recursion;
    let tree = match part_of_memory(source) {
        Some((volume, part)) => open(volume, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .map_err(io::Error::from)
            .and_then(|volume| Root::new(volume).find(&part))
            .and_then(|source| Ok(open_tree(source, "", flags | OpenTreeFlags::AT_EMPTY_PATH)?)),
        None => open_tree(CWD, source, flags).map_err(io::Error::from),
    };
    tree.context(|| format!("{}: source", mount_on(plan)))
}

/// A volume in memory and a path inside of it, where that is what `source` is. What the pod's containers have made there, links
/// among it, leads to nothing outside.
fn part_of_memory(source: &Path) -> Option<(PathBuf, PathBuf)> {
    let mut inside = source.strip_prefix(MEMORY_PATH).ok()?.iter();
    let volume = Path::new(MEMORY_PATH).join(inside.next()?);
    Some((volume, inside.collect()))
}

/// A new file system, not yet anywhere.
fn file_system(
    plan: &MountPlan,
    kind: &str,
    source: &str,
    options: &[(String, Option<String>)],
) -> Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).context(|| mount_on(plan))?;
    let refused = |what: &str, error: io::Error| {
        let reason = reason(&error);
        SetupError::new(format!("{}: {what}: {reason}{}", mount_on(plan), details(&context)))
    };
    fsconfig_set_string(&context, "source", source).map_err(|error| refused("source", error.into()))?;
    for (name, value) in options {
        let set = match value {
            Some(value) => fsconfig_set_string(&context, name.as_str(), value.as_str()),
            None => fsconfig_set_flag(&context, name.as_str()),
        };
        set.map_err(|error| refused(&format!("option {name:?}"), error.into()))?;
    }
    fsconfig_create(&context).map_err(|error| refused("create", error.into()))?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).context(|| mount_on(plan))
}

/// What the file system itself has to say about a refusal: fsopen(2) keeps its lines to be read.
fn details(context: &OwnedFd) -> String {
    let mut line = [0; 256];
    match rustix::io::read(context, &mut line) {
        Ok(count) => {
            let line = String::from_utf8_lossy(line.get(..count).unwrap_or_default()).into_owned();
            // Each begins with its level, as in "e ".
            format!(" ({})", line.get(2..).unwrap_or_default().trim_end())
        }
        Err(_) => String::new(),
    }
}

/// Puts a detached mount where it belongs; what it covers is made if it is not there.
pub(super) fn attach(root: &Root, tree: &OwnedFd, place: &Path, directory: bool) -> io::Result<()> {
    let target = if directory { root.directory(place)? } else { root.file(place)? };
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(tree, "", &target, "", flags)?)
}

/// Changes the flags of a mount before it is attached, and its propagation after.
fn change(tree: &OwnedFd, plan: &MountPlan, attached: bool) -> Result<()> {
    for (attributes, recursive) in [(&plan.recursive, true), (&plan.own, false)] {
        let part = if attached {
            MountAttributes { propagation: attributes.propagation, ..MountAttributes::default() }
        } else {
            MountAttributes { propagation: 0, ..*attributes }
        };
        if part != MountAttributes::default() {
            set_attributes(tree.as_fd(), &part, recursive).context(|| mount_on(plan))?;
        }
    }
    Ok(())
}
