//! A person at a terminal: a program is started with a pseudo-terminal of the test's own, typed to and read.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// How long [`PseudoTerminal::expect`] waits.
const PATIENCE: Duration = Duration::from_secs(60);

/// A program and the terminal at which it runs.
pub(super) struct PseudoTerminal {
    keyboard: std::fs::File,
    screen: Receiver<Vec<u8>>,
    child: Child,
    /// What was read and not yet expected.
    unseen: String,
}

impl PseudoTerminal {
    /// Starts `command` at a terminal of so many rows and columns, which controls it.
    pub(super) fn start(mut command: Command, rows: u16, columns: u16) -> anyhow::Result<Self> {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&ours)?;
        unlockpt(&ours)?;
        set_size(&ours, rows, columns)?;
        let name = ptsname(&ours, Vec::new())?;
        let name = std::ffi::OsStr::from_bytes(name.to_bytes());
        let theirs =
            OpenOptions::new().read(true).write(true).open(name).context("the terminal's other side")?;
        command.stdin(theirs.try_clone()?).stdout(theirs.try_clone()?).stderr(theirs);
        let take_terminal = || {
            rustix::process::setsid()?;
            Ok(rustix::process::ioctl_tiocsctty(std::io::stdin())?)
        };
        // SAFETY: between fork and exec the closure makes two system calls and touches no lock and no heap.
        unsafe { command.pre_exec(take_terminal) };
        let child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        drop(command);
        let keyboard = std::fs::File::from(ours);
        let screen = read_on_a_thread(keyboard.try_clone()?);
        Ok(Self { keyboard, screen, child, unseen: String::new() })
    }

    /// Types.
    pub(super) fn send(&mut self, keys: &str) -> anyhow::Result<()> {
        Ok(self.keyboard.write_all(keys.as_bytes())?)
    }

    /// Waits until `text` has been shown, and gives what came before it.
    pub(super) fn expect(&mut self, text: &str) -> anyhow::Result<String> {
        let begin = Instant::now();
        loop {
            if let Some((before, after)) = self.unseen.split_once(text) {
                let before = before.to_owned();
                self.unseen = after.to_owned();
                return Ok(before);
            }
            match self.screen.recv_timeout(PATIENCE.saturating_sub(begin.elapsed())) {
                Ok(bytes) => self.unseen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(RecvTimeoutError::Timeout) => {
                    bail!("the terminal does not show {text:?}, but {:?}", self.unseen)
                }
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("the terminal's program ended without {text:?}; it had shown {:?}", self.unseen)
                }
            }
        }
    }

    /// Gives the window another size, of which the program is told by SIGWINCH.
    pub(super) fn resize(&self, rows: u16, columns: u16) -> anyhow::Result<()> {
        set_size(&self.keyboard, rows, columns)
    }

    /// Waits for the program's end.
    pub(super) fn wait(mut self) -> anyhow::Result<ExitStatus> {
        Ok(self.child.wait()?)
    }
}

fn set_size(terminal: impl std::os::fd::AsFd, rows: u16, columns: u16) -> anyhow::Result<()> {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(tcsetwinsize(terminal, size)?)
}

/// What the terminal shows. The thread ends with the last program that has the terminal open (EIO).
fn read_on_a_thread(mut terminal: std::fs::File) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = terminal.read(&mut buffer) {
            if sender.send(buffer.get(..length).unwrap_or_default().to_vec()).is_err() {
                return;
            }
        }
    });
    receiver
}
