//! What the host says once about the whole guest.

use std::fs;

use rustix::time::{ClockId, Timespec, clock_settime};
use saya_agent_api::POD_ROOT;
use saya_agent_api::agent::ConfigureSandboxRequest;

use super::share;
use crate::container::plan::Sysctl;
use crate::error::{Action, Result};

/// Mounts the share, sets the clock, the host name and kernel parameters.
pub(super) fn sandbox(request: &ConfigureSandboxRequest) -> Result<()> {
    set_clock(request.wall_clock_nanoseconds)?;
    share::mount()?;
    fs::create_dir_all(POD_ROOT).action(|| format!("make {POD_ROOT}"))?;
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
