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

use super::user_namespace::{self, IdMapping};

/// How something is bound.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Binding {
    /// Whether mounts below the source come along.
    pub(crate) recursive: bool,
    /// Where nobody can write.
    pub(crate) read_only: ReadOnly,
    /// Whether what the host mounts below the source later appears too. What is mounted below the target never appears
    /// below the source.
    pub(crate) slave: bool,
    /// Whose the files are, if not those that the file system says.
    pub(crate) mapping: Option<IdMapping>,
}

/// What of a bind is read-only.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum ReadOnly {
    /// Nothing that was not so before.
    #[default]
    Nothing,
    /// The bind itself. Mounts below keep their own, as mount(8) has it.
    Top,
    /// Mounts below, too, as far as they come along now.
    All,
}

/// Binds `source` to `target`. The mount takes no devices and no set-id bits; the guest, which has its own, is not
/// concerned.
///
/// # Errors
/// What open_tree(2), mount_setattr(2) or move_mount(2) returned.
pub(crate) fn bind(source: &Path, target: &Path, binding: &Binding) -> io::Result<()> {
    let tree = unattached(source, binding)?;
    Ok(move_mount(tree.as_fd(), c"", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// As [`bind`], to a target that is open.
///
/// # Errors
/// As for [`bind`].
pub(super) fn bind_onto(source: &Path, target: &OwnedFd, binding: &Binding) -> io::Result<()> {
    let tree = unattached(source, binding)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(tree.as_fd(), c"", target.as_fd(), c"", flags)?)
}

fn unattached(source: &Path, binding: &Binding) -> io::Result<OwnedFd> {
    let tree = clone_tree(source, binding.recursive)?;
    let propagation =
        if binding.slave { MountPropagationFlags::DOWNSTREAM } else { MountPropagationFlags::PRIVATE };
    let mut all = unchanged();
    all.attr_set = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    all.propagation = propagation.bits().into();
    set_attributes(&tree, binding.recursive, &all)?;
    if binding.read_only != ReadOnly::Nothing {
        let read_only = libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, ..unchanged() };
        set_attributes(&tree, binding.read_only == ReadOnly::All, &read_only)?;
    }
    if let Some(mapping) = &binding.mapping {
        map(&tree, mapping)?;
    }
    Ok(tree)
}

fn map(tree: &OwnedFd, mapping: &IdMapping) -> io::Result<()> {
    let named = |what: &str| {
        let what = what.to_owned();
        move |error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"))
    };
    let namespace = user_namespace::make(mapping).map_err(named("uidMappings and gidMappings"))?;
    let mapped = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        userns_fd: u64::try_from(namespace.as_raw_fd()).unwrap_or_default(),
        ..unchanged()
    };
    set_attributes(tree, mapping.recursive, &mapped)
        .map_err(named("an idmapped mount, which its file system on this host must support"))
}

/// A change of nothing.
fn unchanged() -> libc::mount_attr {
    libc::mount_attr { attr_set: 0, attr_clr: 0, propagation: 0, userns_fd: 0 }
}

fn clone_tree(source: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    Ok(open_tree(CWD, source, flags)?)
}

fn set_attributes(tree: &OwnedFd, recursive: bool, change: &libc::mount_attr) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a C string and the structure as large as it is said to be; both live through the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const *change,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::mount::MountFlags;

    use super::*;
    use crate::mount::unmount_all;

    #[test]
    fn what_is_read_only_below_a_bind_is_what_was_asked_for() {
        let root = tempfile::tempdir().unwrap();
        let [source, target] = ["source", "target"].map(|name| root.path().join(name));
        fs::create_dir_all(source.join("below")).unwrap();
        fs::create_dir(&target).unwrap();
        rustix::mount::mount("tmpfs", source.join("below"), "tmpfs", MountFlags::empty(), None).unwrap();
        let writable = |place: &Path| match fs::write(place.join("new"), "") {
            Ok(()) => true,
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
                false
            }
        };
        let found = [ReadOnly::Nothing, ReadOnly::Top, ReadOnly::All].map(|read_only| {
            bind(&source, &target, &Binding { recursive: true, read_only, ..Binding::default() }).unwrap();
            let found = (writable(&target), writable(&target.join("below")));
            unmount_all(&target).unwrap();
            found
        });
        unmount_all(&source.join("below")).unwrap();
        assert_eq!(found, [(true, true), (false, true), (false, false)]);
    }
}
