//! containerd's client `ctr`.

use std::ffi::OsStr;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

/// How long containerd may take to answer, and to take a connection, for which `ctr` has ten seconds otherwise. A client that waits
/// for ever would hide which call hangs.
const PATIENCE: [&str; 4] = ["--timeout", "120s", "--connect-timeout", "120s"];

/// Runs `ctr` and gives what it printed.
///
/// # Errors
/// Unless it ends with 0; the message holds what it said.
pub fn ctr<Argument: AsRef<OsStr>>(arguments: impl IntoIterator<Item = Argument>) -> anyhow::Result<String> {
    finish(Command::new("ctr").args(PATIENCE).args(arguments).stdin(Stdio::null()))
}

/// Kills a container's task, if there is one, and removes both.
///
/// # Errors
/// When the container cannot be removed, which is so too when its task could not.
pub fn remove(container: &str) -> anyhow::Result<()> {
    remove_in("default", container)
}

/// Removes all containers of a namespace, as [`remove`] does.
///
/// # Errors
/// When one cannot be removed; the others are all the same.
pub fn remove_all(namespace: &str) -> anyhow::Result<()> {
    let mut result = Ok(());
    for container in ctr(["--namespace", namespace, "container", "ls", "-q"])?.split_whitespace() {
        result = result.and(remove_in(namespace, container));
    }
    result
}

fn remove_in(namespace: &str, container: &str) -> anyhow::Result<()> {
    // Its status is that of the task (137 after the kill), or 1 where there was none.
    ctr(["--namespace", namespace, "task", "rm", "--force", container]).err();
    ctr(["--namespace", namespace, "container", "rm", container]).map(drop)
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
