//! The pipes between the agent and a process without a terminal.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, open};
use rustix::pipe::{PipeFlags, pipe_with};
use saya_agent_api::agent::Streams as Request;

use super::{Shared, shared};
use crate::container::plan::WindowSize;
use crate::error::{Action, Error, Result};

/// Which connections belong to a process; 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct StreamNumbers {
    /// Standard input, or what is typed into the terminal.
    pub(crate) input: u64,
    /// Standard output, or what the terminal shows.
    pub(crate) output: u64,
    /// Standard error.
    pub(crate) errors: u64,
    /// The terminal, if there is one.
    pub(crate) terminal: Option<WindowSize>,
}

impl StreamNumbers {
    /// Reads what a request says.
    pub(crate) fn from_request(request: &Request) -> Result<Self> {
        let terminal = request.terminal.then(|| window(request.terminal_columns, request.terminal_rows));
        if request.terminal && request.stderr != 0 {
            let message = "streams.stderr must be 0 with a terminal, which has one output";
            return Err(Error::InvalidRequest(message.to_owned()));
        }
        Ok(Self { input: request.stdin, output: request.stdout, errors: request.stderr, terminal })
    }
}

/// Window sizes are 16 bits wide in the kernel (`struct winsize`).
pub(crate) fn window(columns: u32, rows: u32) -> WindowSize {
    let narrow = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
    WindowSize { columns: narrow(columns), rows: narrow(rows) }
}

/// The ends that the process gets.
#[derive(Debug)]
pub(crate) struct ChildStreams {
    input: OwnedFd,
    output: OwnedFd,
    errors: OwnedFd,
}

impl ChildStreams {
    /// Standard input, output and error.
    pub(crate) fn as_array(&self) -> [BorrowedFd<'_>; 3] {
        [self.input.as_fd(), self.output.as_fd(), self.errors.as_fd()]
    }
}

/// The ends that the agent keeps.
#[derive(Debug, Default)]
pub(crate) struct AgentPipes {
    pub(super) input: Option<Shared>,
    pub(super) output: Option<Shared>,
    pub(super) errors: Option<Shared>,
}

/// Makes a pipe for each stream that has a connection; the others are /dev/null, as all are until there is a terminal.
pub(crate) fn make_pipes(numbers: &StreamNumbers) -> Result<(ChildStreams, AgentPipes)> {
    let wanted = |number: u64| number != 0 && numbers.terminal.is_none();
    let (child_input, agent_input) = match wanted(numbers.input).then(pipe).transpose()? {
        Some((read, write)) => (read, Some(shared(write)?)),
        None => (null()?, None),
    };
    let output = |number: u64| -> Result<(OwnedFd, Option<Shared>)> {
        match wanted(number).then(pipe).transpose()? {
            Some((read, write)) => Ok((write, Some(shared(read)?))),
            None => Ok((null()?, None)),
        }
    };
    let (child_output, agent_output) = output(numbers.output)?;
    let (child_errors, agent_errors) = output(numbers.errors)?;
    Ok((
        ChildStreams { input: child_input, output: child_output, errors: child_errors },
        AgentPipes { input: agent_input, output: agent_output, errors: agent_errors },
    ))
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    pipe_with(PipeFlags::CLOEXEC).action(|| "make a pipe".to_owned())
}

fn null() -> Result<OwnedFd> {
    open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).action(|| "open /dev/null".to_owned())
}
