//! A pod's own process, where no container is that: its namespaces live as long as it, and what is orphaned in its pid
//! namespace is its child.

use std::error::Error;

use rustix::process::{WaitOptions, wait};
use tokio::signal::unix::{SignalKind, signal};

/// Reaps children until SIGTERM.
pub(crate) async fn hold() -> Result<(), Box<dyn Error>> {
    let mut child = signal(SignalKind::child())?;
    let mut terminate = signal(SignalKind::terminate())?;
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = child.recv() => while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {},
        }
    }
}
