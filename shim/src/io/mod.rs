//! Standard streams: from containerd's fifos, files and loggers to the guest and back.

mod forward;
mod logger;
mod target;
mod uri;

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use saya_agent_api::agent::Streams;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::pod::agent::Agent;
use forward::Progress;
use logger::{Logger, LoggerError};
use target::{Input, OpenError, Target};
use uri::{Destination, UriError};

/// How long all that a process has written may take, after its end, to reach its readers before that end is told without it:
/// one of them has stalled, or is slow. What is on its way goes on until the process is deleted.
pub(crate) const DRAIN_PATIENCE: Duration = Duration::from_millis(1500);

/// The same where the process has ended with its machine: there is no more than the host has already.
pub(crate) const LOST_DRAIN_PATIENCE: Duration = Duration::from_millis(500);

/// The addresses of a process's streams, as containerd gives them; empty ones are not wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Stdio {
    /// A fifo's path.
    pub(crate) stdin: String,
    /// A fifo's path or a URI.
    pub(crate) stdout: String,
    /// A fifo's path or a URI.
    pub(crate) stderr: String,
    /// Whether the process has a terminal.
    pub(crate) terminal: bool,
}

/// Why a process's streams could not be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StdioError {
    /// An address that is not understood.
    #[error(transparent)]
    Uri(#[from] UriError),
    /// A path that cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A logger that did not start.
    #[error(transparent)]
    Logger(#[from] LoggerError),
    /// The guest does not take a stream.
    #[error("connecting a stream to the guest: {0}")]
    Stream(#[from] io::Error),
}

/// The host's ends of a process's streams, open.
#[derive(Debug, Default)]
pub(crate) struct HostEnds {
    stdin: Option<Input>,
    stdout: Option<Target>,
    stderr: Option<Target>,
    logger: Option<Logger>,
}

impl HostEnds {
    /// Opens what `stdio` names.
    ///
    /// As with containerd's own shim, a log URI as stdout takes stderr too.
    ///
    /// # Errors
    /// An address that is not understood or cannot be opened.
    pub(crate) async fn open(stdio: &Stdio, container: &str, namespace: &str) -> Result<Self, StdioError> {
        let mut ends = Self::default();
        if !stdio.stdin.is_empty() {
            ends.stdin = Some(target::open_input(Path::new(&stdio.stdin))?);
        }
        match Destination::parse(&stdio.stdout)? {
            None => {}
            Some(Destination::Path(path)) => ends.stdout = Some(target::open_output("stdout", &path)?),
            Some(Destination::File(path)) => {
                ends.stdout = Some(Target::File(target::open_log("stdout", &path)?));
                if !stdio.terminal {
                    ends.stderr = Some(Target::File(target::open_log("stderr", &path)?));
                }
                return Ok(ends);
            }
            Some(Destination::Logger { program, arguments }) => {
                let (logger, pipes) = Logger::start(&program, &arguments, container, namespace).await?;
                ends.stdout = Some(Target::Pipe(pipes.stdout));
                ends.stderr = Some(Target::Pipe(pipes.stderr)).filter(|_| !stdio.terminal);
                ends.logger = Some(logger);
                return Ok(ends);
            }
        }
        if stdio.terminal {
            return Ok(ends);
        }
        ends.stderr = match Destination::parse(&stdio.stderr)? {
            None => None,
            Some(Destination::Path(path)) => Some(target::open_output("stderr", &path)?),
            Some(Destination::File(path)) => Some(Target::File(target::open_log("stderr", &path)?)),
            Some(Destination::Logger { .. }) => {
                return Err(UriError::Scheme { scheme: "binary".into(), uri: stdio.stderr.clone() }.into());
            }
        };
        Ok(ends)
    }

    /// Closes them for a process that has no streams.
    pub(crate) fn unused(self) -> ProcessIo {
        ProcessIo { logger: self.logger, ..ProcessIo::default() }
    }

    /// Connects each open end with a stream to the guest, and begins to move bytes.
    ///
    /// # Errors
    /// The guest does not take a stream.
    pub(crate) async fn connect(
        self,
        agent: &Agent,
        terminal: bool,
    ) -> Result<(ProcessIo, Streams), StdioError> {
        let mut streams = Streams { terminal, ..Default::default() };
        let mut io = ProcessIo::default();
        if let Some(input) = self.stdin {
            let stream;
            (streams.stdin, stream) = agent.open_stream().await?;
            io.keeper = input.keeper;
            io.input = Some(tokio::spawn(forward::forward_input(input.reader, stream)));
        }
        if let Some(target) = self.stdout {
            let stream;
            (streams.stdout, stream) = agent.open_stream().await?;
            io.stdout = Some(Output::begin(stream, target));
        }
        if let Some(target) = self.stderr {
            let stream;
            (streams.stderr, stream) = agent.open_stream().await?;
            io.stderr = Some(Output::begin(stream, target));
        }
        io.logger = self.logger;
        Ok((io, streams))
    }
}

/// The streams of a process, moving.
#[derive(Debug, Default)]
pub(crate) struct ProcessIo {
    keeper: Option<OwnedFd>,
    input: Option<JoinHandle<()>>,
    stdout: Option<Output>,
    stderr: Option<Output>,
    logger: Option<Logger>,
}

/// An output stream, moving.
#[derive(Debug)]
struct Output {
    task: JoinHandle<()>,
    progress: watch::Receiver<Progress>,
}

impl Output {
    fn begin(stream: UnixStream, target: Target) -> Self {
        let (sender, progress) = watch::channel(Progress::default());
        Self { task: tokio::spawn(forward::forward_output(stream, target, sender)), progress }
    }
}

/// The output that a process left behind, to be waited for.
#[derive(Debug, Default)]
pub(crate) struct Drain {
    outputs: Vec<(watch::Receiver<Progress>, u64)>,
    patience: Duration,
}

impl Drain {
    /// That of a process that has ended with its machine: all of it.
    pub(crate) fn of_lost_machine(self) -> Self {
        Self { patience: LOST_DRAIN_PATIENCE, ..self }
    }

    /// Waits until everything has reached the host's ends, or patience is over.
    pub(crate) async fn finish(mut self) {
        let all = async {
            for (progress, expected) in &mut self.outputs {
                // A stream that is not moved any more has ended, too.
                let _ = progress.wait_for(|now| now.ended || now.forwarded >= *expected).await;
            }
        };
        if tokio::time::timeout(self.patience, all).await.is_err() {
            tracing::warn!("output is not read; its process's exit is reported without it");
        }
    }
}

impl ProcessIo {
    /// No more input than what is on its way already.
    pub(crate) fn close_stdin(&mut self) {
        self.keeper = None;
    }

    /// The output up to the given numbers of bytes, to be waited for without holding this.
    pub(crate) fn drain(&self, stdout_bytes: u64, stderr_bytes: u64) -> Drain {
        let pairs = [(&self.stdout, stdout_bytes), (&self.stderr, stderr_bytes)];
        let outputs = pairs
            .into_iter()
            .filter_map(|(output, expected)| Some((output.as_ref()?.progress.clone(), expected)))
            .collect();
        Drain { outputs, patience: DRAIN_PATIENCE }
    }

    /// Stops moving bytes, and ends the logger behind the process's back.
    pub(crate) fn close(self) {
        if let Some(input) = self.input {
            input.abort();
        }
        for output in [self.stdout, self.stderr].into_iter().flatten() {
            output.task.abort();
        }
        if let Some(logger) = self.logger {
            tokio::spawn(logger.end());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(outputs: impl Into<Vec<(watch::Receiver<Progress>, u64)>>) -> Drain {
        Drain { outputs: outputs.into(), patience: DRAIN_PATIENCE }
    }

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn output_counts_as_drained_once_all_its_bytes_are_there_or_it_has_ended() {
        let begin = tokio::time::Instant::now();
        let (sender, receiver) = watch::channel(Progress { forwarded: 3, ended: false });
        let waiting = tokio::spawn(drain([(receiver.clone(), 5)]).finish());
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        sender.send_modify(|progress| progress.forwarded = 5);
        waiting.await.unwrap();

        let waiting = tokio::spawn(drain([(receiver.clone(), 9)]).finish());
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        sender.send_modify(|progress| progress.ended = true);
        waiting.await.unwrap();

        let (aborted, receiver) = watch::channel(Progress::default());
        drop(aborted);
        drain([(receiver, 1)]).finish().await;
        assert_eq!(begin.elapsed(), Duration::ZERO);
    }

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn a_reader_that_has_stalled_does_not_hold_the_exit_for_ever() {
        let begin = tokio::time::Instant::now();
        let (_sender, stalled) = watch::channel(Progress::default());
        let (slow, reading) = watch::channel(Progress::default());
        tokio::spawn(async move {
            for _ in 0..100 {
                tokio::time::sleep(Duration::from_millis(100)).await;
                slow.send_modify(|progress| progress.forwarded += 1);
            }
        });
        let outputs = [(stalled.clone(), 1), (reading, 1000), (stalled, 1)];
        drain(outputs.clone()).finish().await;
        assert_eq!(begin.elapsed(), DRAIN_PATIENCE, "the patience is that with all of them");
        let begin = tokio::time::Instant::now();
        drain(outputs).of_lost_machine().finish().await;
        assert_eq!(begin.elapsed(), LOST_DRAIN_PATIENCE);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_log_uri_takes_both_streams() {
        let directory = tempfile::tempdir().unwrap();
        let uri = format!("file://{}/log", directory.path().display());
        let stdio = Stdio { stdout: uri.clone(), stderr: uri, ..Stdio::default() };
        let ends = HostEnds::open(&stdio, "c1", "default").await.unwrap();
        assert!(matches!(ends.stdout, Some(Target::File(_))));
        assert!(matches!(ends.stderr, Some(Target::File(_))));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn no_addresses_mean_no_streams() {
        let ends = HostEnds::open(&Stdio::default(), "c1", "default").await.unwrap();
        assert!(ends.stdin.is_none() && ends.stdout.is_none() && ends.stderr.is_none());
    }
}
