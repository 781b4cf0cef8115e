//! What the host says once about the whole guest, and about the share.

use std::fs;
use std::io;
use std::path::{Component, Path};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::mount::{MountFlags, mount};
use rustix::time::{ClockId, Timespec, clock_settime};
use saya_agent_api::agent::ConfigureSandboxRequest;
use saya_agent_api::{SHARE_PATH, SHARE_TAG};

use crate::container::plan::Sysctl;
use crate::error::{Action, Error, Result};

/// Mounts the share, sets the clock, the host name and kernel parameters.
pub(super) fn sandbox(request: &ConfigureSandboxRequest) -> Result<()> {
    set_clock(request.wall_clock_nanoseconds)?;
    mount_share()?;
    if !request.hostname.is_empty() {
        rustix::system::sethostname(request.hostname.as_bytes())
            .action(|| format!("set the host name {:?}", request.hostname))?;
    }
    for (name, value) in &request.sysctls {
        let sysctl = Sysctl::new(name, value)?;
        fs::write(&sysctl.path, value).action(|| format!("write {value:?} to {}", sysctl.path.display()))?;
    }
    Ok(())
}

fn set_clock(nanoseconds: u64) -> Result<()> {
    const SECOND: u64 = 1_000_000_000;
    if nanoseconds == 0 {
        return Ok(());
    }
    // Both fit: 2^64 nanoseconds are 2^34 seconds.
    let now = Timespec {
        tv_sec: (nanoseconds / SECOND).cast_signed(),
        tv_nsec: (nanoseconds % SECOND).cast_signed(),
    };
    clock_settime(ClockId::Realtime, now).action(|| format!("set the clock to {nanoseconds} ns"))
}

fn mount_share() -> Result<()> {
    let action = || format!("mount the share {SHARE_TAG:?} on {SHARE_PATH}");
    fs::create_dir_all(SHARE_PATH).action(action)?;
    mount(SHARE_TAG, SHARE_PATH, "virtiofs", MountFlags::empty(), None).action(action)
}

/// Looks at a path of the share that the host has removed: the kernel finds out and forgets its names.
pub(super) fn release_share_path(path: &str) -> Result<()> {
    let relative = Path::new(path);
    if path.is_empty() || !relative.components().all(|part| matches!(part, Component::Normal(_))) {
        return Err(Error::InvalidRequest(format!("path {path:?} is not one below the share's root")));
    }
    let full = Path::new(SHARE_PATH).join(relative);
    // Asks the host itself, whatever the caches say.
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_FORCE_SYNC;
    match statx(CWD, &full, flags, StatxFlags::INO).map_err(io::Error::from) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).action(|| format!("look at {}", full.display()))
        }
        _ => Ok(()),
    }
}
