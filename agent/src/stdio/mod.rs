//! The standard streams of processes: each is one connection from the host, coupled to a pipe or a terminal.

mod input;
mod output;
mod pipes;
mod registry;

pub(crate) use input::Input;
pub(crate) use output::Output;
pub(crate) use pipes::{AgentPipes, ChildStreams, StreamNumbers, make_pipes, window};
pub(crate) use registry::Registry;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::error::{Action, Result};
use crate::sys::watch::watch;

/// A descriptor that several tasks use.
pub(crate) type Shared = Arc<AsyncFd<OwnedFd>>;

/// How much one copy step moves; a pipe holds as much.
const CHUNK: usize = 64 << 10;

/// The streams of one process, coupled.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    input: Option<Input>,
    output: Option<Output>,
    errors: Option<Output>,
    terminal: Option<Shared>,
}

impl Streams {
    /// Waits for the connections that `numbers` names and couples them to the process's ends.
    pub(crate) async fn couple(
        registry: &Registry,
        numbers: StreamNumbers,
        pipes: AgentPipes,
        terminal: Option<OwnedFd>,
    ) -> Result<Self> {
        let terminal = terminal.map(shared).transpose()?;
        let [input, output, errors] = match &terminal {
            Some(terminal) => [Some(Arc::clone(terminal)), Some(Arc::clone(terminal)), None],
            None => [pipes.input, pipes.output, pipes.errors],
        };
        let mut streams = Self { terminal: terminal.clone(), ..Self::default() };
        if let Some(process) = input.filter(|_| numbers.input != 0) {
            let connection = registry.take(numbers.input).await?;
            streams.input = Some(Input::start(connection, process, terminal.is_some()));
        }
        if let Some(process) = output.filter(|_| numbers.output != 0) {
            let connection = registry.take(numbers.output).await?;
            streams.output = Some(Output::start(connection, process, terminal.is_some()));
        }
        if let Some(process) = errors.filter(|_| numbers.errors != 0) {
            let connection = registry.take(numbers.errors).await?;
            streams.errors = Some(Output::start(connection, process, false));
        }
        Ok(streams)
    }

    /// The process has exited: how many bytes of standard output and error belong before that.
    pub(crate) fn bytes_before_exit(&self) -> (u64, u64) {
        let count = |output: &Option<Output>| output.as_ref().map_or(0, Output::bytes_before_exit);
        (count(&self.output), count(&self.errors))
    }

    /// No more input after what has come.
    pub(crate) fn close_input(&self) {
        if let Some(input) = &self.input {
            input.close();
        }
    }

    /// The agent's side of the process's terminal.
    pub(crate) fn terminal(&self) -> Option<&Shared> {
        self.terminal.as_ref()
    }
}

fn shared(descriptor: OwnedFd) -> Result<Shared> {
    rustix::io::ioctl_fionbio(&descriptor, true).action(|| "use a stream without blocking".to_owned())?;
    Ok(Arc::new(
        watch(descriptor, Interest::READABLE | Interest::WRITABLE).action(|| "watch a stream".to_owned())?,
    ))
}
