//! containerd's client `ctr`.

use std::ffi::OsStr;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

/// Runs `ctr` and gives what it printed.
///
/// # Errors
/// Unless it ends with 0; the message holds what it said.
pub fn ctr<Argument: AsRef<OsStr>>(arguments: impl IntoIterator<Item = Argument>) -> anyhow::Result<String> {
    finish(Command::new("ctr").args(arguments).stdin(Stdio::null()))
}

/// Kills a container's task, if there is one, and removes both.
///
/// # Errors
/// When the container cannot be removed, which is so too when its task could not.
pub fn remove(container: &str) -> anyhow::Result<()> {
    // Its status is that of the task (137 after the kill), or 1 where there was none.
    ctr(["task", "rm", "--force", container]).err();
    ctr(["container", "rm", container]).map(drop)
}

/// Runs `command` to its end and gives what it printed.
///
/// # Errors
/// Unless it ends with 0; the message holds what it said.
pub fn finish(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
