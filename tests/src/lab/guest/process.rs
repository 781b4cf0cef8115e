//! The command of a lab's user, on pipes or on a terminal.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use super::super::protocol::{Job, TerminalSize};
use crate::at_terminal;

/// A command that was started, with the server's ends of its streams.
pub(super) struct Running {
    child: Child,
    /// The master of its terminal, if it has one.
    pub(super) terminal: Option<File>,
    /// Where its input goes.
    pub(super) stdin: Option<File>,
    /// Where its output, and on a terminal its errors too, come from.
    pub(super) stdout: Option<File>,
    /// Where its errors come from.
    pub(super) stderr: Option<File>,
}

impl Running {
    /// Waits for the command and gives its exit status: 128 + n after signal n.
    pub(super) fn wait(&mut self) -> Result<i32> {
        let status = self.child.wait()?;
        Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
    }
}

/// Starts the job's command.
///
/// # Errors
///
/// The program does not exist or cannot be executed.
pub(super) fn start(job: &Job) -> Result<Running> {
    let (program, arguments) = job.command.split_first().context("no command to run")?;
    let mut command = Command::new(program);
    command.args(arguments).current_dir(&job.directory).env_clear().envs(job.environment.iter().cloned());
    let running = match job.terminal {
        Some(size) => on_terminal(command, size),
        None => on_pipes(command),
    };
    running.with_context(|| format!("starting {program} in {}", job.directory.display()))
}

fn on_pipes(mut command: Command) -> Result<Running> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let stdin = child.stdin.take().map(|pipe| File::from(OwnedFd::from(pipe)));
    let stdout = child.stdout.take().map(|pipe| File::from(OwnedFd::from(pipe)));
    let stderr = child.stderr.take().map(|pipe| File::from(OwnedFd::from(pipe)));
    Ok(Running { child, terminal: None, stdin, stdout, stderr })
}

fn on_terminal(command: Command, size: TerminalSize) -> Result<Running> {
    let (terminal, child) = at_terminal::start(command, size.rows, size.columns)?;
    let (stdin, stdout) = (terminal.try_clone()?, terminal.try_clone()?);
    Ok(Running { child, terminal: Some(terminal), stdin: Some(stdin), stdout: Some(stdout), stderr: None })
}
