//! The command of a lab's user, on pipes or on a terminal.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::super::protocol::{Job, TerminalSize};

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
        Some(size) => on_terminal(&mut command, size),
        None => on_pipes(&mut command),
    };
    running.with_context(|| format!("starting {program} in {}", job.directory.display()))
}

fn on_pipes(command: &mut Command) -> Result<Running> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let stdin = child.stdin.take().map(|pipe| File::from(OwnedFd::from(pipe)));
    let stdout = child.stdout.take().map(|pipe| File::from(OwnedFd::from(pipe)));
    let stderr = child.stderr.take().map(|pipe| File::from(OwnedFd::from(pipe)));
    Ok(Running { child, terminal: None, stdin, stdout, stderr })
}

fn on_terminal(command: &mut Command, size: TerminalSize) -> Result<Running> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = ptsname(&master, Vec::new())?;
    let name = std::path::PathBuf::from(name.to_string_lossy().into_owned());
    let slave = File::options().read(true).write(true).open(name)?;
    let master = File::from(master);
    set_size(&master, size)?;
    command.stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(slave);
    let become_session_leader = || {
        rustix::process::setsid()?;
        rustix::process::ioctl_tiocsctty(std::io::stdin().as_fd())?;
        Ok(())
    };
    // SAFETY: `become_session_leader` makes two system calls; `stdin()` of std is a lock that no thread of this process
    // ever holds, and taking its fd does not touch that lock.
    unsafe { command.pre_exec(become_session_leader) };
    let child = command.spawn()?;
    // The child's ends, which `command` still holds, are closed when it is dropped by the caller.
    let (stdin, stdout) = (master.try_clone()?, master.try_clone()?);
    Ok(Running { child, terminal: Some(master), stdin: Some(stdin), stdout: Some(stdout), stderr: None })
}

/// Sets the size of the terminal whose master this is.
///
/// # Errors
///
/// It is no terminal.
pub(super) fn set_size(master: &File, size: TerminalSize) -> Result<()> {
    let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(master.as_fd(), size)?;
    Ok(())
}
