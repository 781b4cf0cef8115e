//! The host's files: a virtio-fs that all containers of the pod take their roots and volumes from.

use std::fs;
use std::path::{Component, Path};

use rustix::fs::{AtFlags, CWD, StatxFlags, rmdir, statx, unlink};
use rustix::io::Errno;
use rustix::mount::MountFlags;
use saya_agent_api::{SHARE_PATH, SHARE_TAG};

use crate::error::{Action, Error, Result};

/// Mounts the share.
pub(super) fn mount() -> Result<()> {
    let action = || format!("mount the share {SHARE_TAG:?} on {SHARE_PATH}");
    fs::create_dir_all(SHARE_PATH).action(action)?;
    rustix::mount::mount(SHARE_TAG, SHARE_PATH, "virtiofs", MountFlags::empty(), None).action(action)
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
