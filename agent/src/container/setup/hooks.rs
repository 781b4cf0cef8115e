//! Hooks that run in the guest.

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::error::{Context, Result, SetupError};
use crate::container::plan::Hook;

/// Runs each hook to its end, with the container's state on its standard input. The first failure ends it all.
pub(super) fn run(hooks: &[Hook], state: &str) -> Result<()> {
    hooks.iter().try_for_each(|hook| run_one(hook, state))
}

fn run_one(hook: &Hook, state: &str) -> Result<()> {
    let name = hook.path.to_string_lossy().into_owned();
    let mut child = command(hook).spawn().context(|| format!("hook {name}"))?;
    if let Some(mut input) = child.stdin.take() {
        // A hook that does not read its input may still do its work.
        let _ = input.write_all(state.as_bytes());
    }
    if let Some(timeout) = hook.timeout
        && !ends_within(&child, timeout).context(|| format!("wait for the hook {name}"))?
    {
        child.kill().context(|| format!("end the hook {name}"))?;
        child.wait().context(|| format!("end the hook {name}"))?;
        return Err(SetupError::new(format!("hook {name}: did not end within {} s", timeout.as_secs())));
    }
    let status = child.wait().context(|| format!("wait for the hook {name}"))?;
    if status.success() { Ok(()) } else { Err(SetupError::new(format!("hook {name}: {status}"))) }
}

fn command(hook: &Hook) -> Command {
    let text = |string: &'_ std::ffi::CString| OsStr::from_bytes(string.as_bytes()).to_owned();
    let mut command = Command::new(text(&hook.path));
    let mut arguments = hook.arguments.iter().map(text);
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    command.args(arguments).env_clear().stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    for entry in &hook.environment {
        if let Some((name, value)) = entry.to_string_lossy().split_once('=') {
            command.env(name, value);
        }
    }
    command
}

fn ends_within(child: &Child, timeout: Duration) -> std::io::Result<bool> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| std::io::Error::other("the hook has no process id"))?;
    let descriptor = pidfd_open(pid, PidfdFlags::empty())?;
    let limit = Timespec::try_from(timeout).map_err(std::io::Error::other)?;
    let mut ready = [PollFd::new(&descriptor, PollFlags::IN)];
    Ok(poll(&mut ready, Some(&limit))? > 0)
}
