//! The terminal at which the lab's user sits.

use std::io::{IsTerminal, stdin, stdout};
use std::os::fd::AsFd;

use anyhow::{Context, Result};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use super::protocol::TerminalSize;

/// Whether both input and output are a terminal.
#[must_use]
pub fn is_present() -> bool {
    stdin().is_terminal() && stdout().is_terminal()
}

/// The size of the terminal, if there is one.
#[must_use]
pub fn size() -> Option<TerminalSize> {
    let size = tcgetwinsize(stdout().as_fd()).ok()?;
    Some(TerminalSize { rows: size.ws_row, columns: size.ws_col })
}

/// The terminal in raw mode, in which every key goes to the lab; as it was before when this is dropped.
pub struct Raw(Termios);

impl Raw {
    /// Sets the terminal to raw mode.
    ///
    /// # Errors
    ///
    /// Standard input is not a terminal.
    pub fn enter() -> Result<Self> {
        let before = tcgetattr(stdin()).context("standard input is not a terminal")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Now, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // The terminal is gone if this fails.
        let _ = tcsetattr(stdin(), OptionalActions::Now, &self.0);
    }
}
