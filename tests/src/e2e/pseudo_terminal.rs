//! A person at a terminal: a program is started with a pseudo-terminal of the test's own, typed to and read.

use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::at_terminal;

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
    pub(super) fn start(command: Command, rows: u16, columns: u16) -> anyhow::Result<Self> {
        let program = format!("{command:?}");
        let (keyboard, child) =
            at_terminal::start(command, rows, columns).with_context(|| format!("cannot start {program}"))?;
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
        Ok(at_terminal::set_size(&self.keyboard, rows, columns)?)
    }

    /// Waits for the program's end.
    pub(super) fn wait(mut self) -> anyhow::Result<ExitStatus> {
        Ok(self.child.wait()?)
    }
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
