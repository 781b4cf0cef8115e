//! What the host says once about the whole guest.

use std::fs;

use saya_agent_api::POD_ROOT;
use saya_agent_api::agent::ConfigureSandboxRequest;

use super::share;
use crate::container::plan::Sysctl;
use crate::error::{Action, Result};

/// Mounts the share, sets the host name and kernel parameters.
pub(super) fn sandbox(request: &ConfigureSandboxRequest) -> Result<()> {
    share::mount()?;
    fs::create_dir_all(POD_ROOT).action(|| format!("make {POD_ROOT}"))?;
    if !request.hostname.is_empty() {
        rustix::system::sethostname(request.hostname.as_bytes())
            .action(|| format!("set the host name {:?}", request.hostname))?;
    }
    for (name, value) in &request.sysctls {
        let sysctl = Sysctl::new(name, value)?;
        sysctl.set().action(|| format!("write {value:?} to {}", sysctl.path.display()))?;
    }
    Ok(())
}
