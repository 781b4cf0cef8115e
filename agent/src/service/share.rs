//! The host's files: virtio-fs that all containers of the pod take their roots and volumes from.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::{fs, io};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxFlags, open, openat2, rmdir, statx, unlink};
use rustix::io::Errno;
use rustix::mount::MountFlags;
use saya_agent_api::{LIVE_SHARE, PRIVATE_SHARE, SHARE_PATH};

use crate::container::plan::{MountPlan, MountSource};
use crate::error::{Action, Error, Result};

/// How much a file that is read from begin to end is read ahead, in KiB: as much as one request can hold. The kernel's own
/// 128 make eight requests of that.
const READ_AHEAD_KIB: &str = "1024";

/// Which part of the pages that may wait to be written are the root file systems', in per cent. The kernel allows FUSE a
/// hundredth, and makes a writer that has more of them sleep (`fuse_bdi_init`, fs/fuse/inode.c). More than a tenth could
/// fill a container's memory limit, since these pages are not counted against it when they are limited.
const MOST_UNWRITTEN_PERCENT: &str = "10";

/// How a directory is opened so that the kernel mounts what belongs there, and no more.
const PLACE: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Mounts what the host shares.
pub(super) fn mount() -> Result<()> {
    [PRIVATE_SHARE, LIVE_SHARE].into_iter().try_for_each(|tag| {
        let place = Path::new(SHARE_PATH).join(tag);
        let action = || format!("mount the share {tag:?} on {}", place.display());
        fs::create_dir_all(&place).action(action)?;
        rustix::mount::mount(tag, &place, "virtiofs", MountFlags::empty(), None).action(action)?;
        let settings = device_settings(&place).action(action)?;
        let set = |name: &str, value: &str| {
            fs::write(settings.join(name), value)
                .action(|| format!("set {name} of the share {tag:?} to {value}"))
        };
        set("read_ahead_kb", READ_AHEAD_KIB)?;
        if tag == PRIVATE_SHARE { set("max_ratio", MOST_UNWRITTEN_PERCENT) } else { Ok(()) }
    })
}

/// Where the kernel keeps the settings of the device, so to speak, behind the file system at `place` (Linux,
/// Documentation/ABI/testing/sysfs-class-bdi). The host is not asked: the device's number is the guest's own.
fn device_settings(place: &Path) -> io::Result<PathBuf> {
    let status = statx(CWD, place, AtFlags::STATX_DONT_SYNC, StatxFlags::empty())?;
    Ok(PathBuf::from(format!("/sys/class/bdi/{}:{}", status.stx_dev_major, status.stx_dev_minor)))
}

/// Lets the kernel mount the volumes of the share that a container binds. Each is a file system of its own, mounted when a
/// path first leads there: if that were in the container's mount namespace, every container would get another one, and
/// sockets, locks and shared memory would not work between them.
pub(super) fn mount_volumes(mounts: &[MountPlan]) {
    for mount in mounts {
        let MountSource::Bind { source, .. } = &mount.source else { continue };
        if source.starts_with(SHARE_PATH) {
            // A file is not a file system of its own, and what is missing is told of when it is bound.
            let _ = open(source, PLACE, Mode::empty());
        }
    }
}

/// The same for mounts of the host's below volumes, by their paths in the share. Mounted when a path leads to them below a container's
/// bind, they would have that bind's flags.
pub(super) fn mount_submounts(paths: &[Vec<u8>]) {
    for path in paths {
        let place = Path::new(SHARE_PATH).join(OsStr::from_bytes(path));
        // What is below a volume may be somebody's links by now. Of what is no directory the same holds as above.
        let _ = openat2(CWD, place, PLACE, Mode::empty(), ResolveFlags::NO_SYMLINKS);
    }
}

/// Forgets a path of the share that the host has removed, and all below it, so that the host's file systems there are
/// not held by what this kernel remembers.
pub(super) fn release(path: &str) -> Result<()> {
    let relative = Path::new(path);
    if path.is_empty() || !relative.components().all(|part| matches!(part, Component::Normal(_))) {
        return Err(Error::InvalidRequest(format!("path {path:?} is not one below the share's root")));
    }
    let full = Path::new(SHARE_PATH).join(relative);
    let action = || format!("forget {}", full.display());
    // Names are remembered for long, but this asks the host about the file itself.
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_FORCE_SYNC;
    match statx(CWD, &full, flags, StatxFlags::NLINK) {
        Ok(status) if status.stx_nlink > 0 => Err(Error::WrongState {
            action: "forget",
            subject: full.display().to_string(),
            state: "still there",
        }),
        // Removed, but its name is remembered. Removing it here fails, and makes the kernel forget the name with all
        // below it.
        Ok(_) => gone(remove(&full)).action(action),
        Err(error) => gone(Err(error)).action(action),
    }
}

fn remove(path: &Path) -> rustix::io::Result<()> {
    match rmdir(path) {
        Err(Errno::NOTDIR) => unlink(path),
        result => result,
    }
}

/// That nothing is there is what was asked for.
fn gone(result: rustix::io::Result<()>) -> rustix::io::Result<()> {
    match result {
        Err(Errno::NOENT | Errno::STALE) => Ok(()),
        result => result,
    }
}
