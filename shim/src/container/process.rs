//! A process of a container as containerd sees it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::error::TaskError;
use crate::events::Exit;
use crate::io::{Drain, ProcessIo, Stdio};

/// What a process is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Made, or only named, and not yet started.
    Created,
    /// Started.
    Running,
    /// Ended.
    Stopped(Exit),
}

/// A container's first process, or an additional one.
#[derive(Debug)]
pub(crate) struct Process {
    /// The container's id.
    pub(crate) container: String,
    /// The additional process's id; empty for the first process.
    pub(crate) exec: String,
    /// Where its streams are.
    pub(crate) stdio: Stdio,
    /// The OCI process as JSON, where it is an additional one.
    spec: Vec<u8>,
    /// Held while the process is started or deleted, and while its end is reported: so its events come in order.
    pub(crate) operation: tokio::sync::Mutex<()>,
    state: Mutex<State>,
    exit: watch::Sender<Option<Exit>>,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// The pid in the guest; 0 before there is one.
    guest_pid: u32,
    io: Option<ProcessIo>,
    /// Columns and rows that the terminal is to have from its beginning.
    terminal_size: (u32, u32),
}

impl Process {
    /// A process that is not yet started.
    pub(crate) fn new(container: &str, exec: &str, stdio: Stdio) -> Arc<Self> {
        Self::with_spec(container, exec, stdio, Vec::new())
    }

    /// An additional process that is not yet started; `spec` is the OCI process as JSON.
    pub(crate) fn with_spec(container: &str, exec: &str, stdio: Stdio, spec: Vec<u8>) -> Arc<Self> {
        Arc::new(Self {
            container: container.to_owned(),
            exec: exec.to_owned(),
            stdio,
            spec,
            operation: tokio::sync::Mutex::new(()),
            state: Mutex::new(State { phase: Phase::Created, guest_pid: 0, io: None, terminal_size: (0, 0) }),
            exit: watch::Sender::new(None),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is one assignment: a panic in between leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its id as events name it.
    pub(crate) fn id(&self) -> &str {
        if self.exec.is_empty() { &self.container } else { &self.exec }
    }

    /// The OCI process as JSON, where it is an additional one.
    pub(crate) fn spec(&self) -> &[u8] {
        &self.spec
    }

    /// What it is doing.
    pub(crate) fn phase(&self) -> Phase {
        self.state().phase
    }

    /// Its pid in the guest; 0 before there is one.
    pub(crate) fn guest_pid(&self) -> u32 {
        self.state().guest_pid
    }

    /// The agent has made it.
    pub(crate) fn made(&self, guest_pid: u32, io: ProcessIo) {
        let mut state = self.state();
        state.guest_pid = guest_pid;
        state.io = Some(io);
    }

    /// The size that the terminal is to have from its beginning.
    pub(crate) fn set_terminal_size(&self, columns: u32, rows: u32) {
        self.state().terminal_size = (columns, rows);
    }

    /// Columns and rows that the terminal is to have from its beginning; zeros where nobody has said.
    pub(crate) fn terminal_size(&self) -> (u32, u32) {
        self.state().terminal_size
    }

    /// It runs.
    pub(crate) fn started(&self) {
        let mut state = self.state();
        if state.phase == Phase::Created {
            state.phase = Phase::Running;
        }
    }

    /// It has ended, and whoever waits learns of it.
    pub(crate) fn stopped(&self, exit: Exit) {
        self.state().phase = Phase::Stopped(exit);
        self.exit.send_replace(Some(exit));
    }

    /// Waits for its end.
    pub(crate) async fn wait(&self) -> Exit {
        let mut exit = self.exit.subscribe();
        match exit.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(exit)) => *exit,
            // The sender lives as long as `self`.
            Ok(None) | Err(_) => Exit { status: 255, at: 0 },
        }
    }

    /// No more input.
    pub(crate) fn close_stdin(&self) {
        if let Some(io) = &mut self.state().io {
            io.close_stdin();
        }
    }

    /// The output up to the given numbers of bytes, to be waited for.
    pub(crate) fn drain(&self, stdout_bytes: u64, stderr_bytes: u64) -> Drain {
        self.state().io.as_ref().map(|io| io.drain(stdout_bytes, stderr_bytes)).unwrap_or_default()
    }

    /// Lets its streams go.
    pub(crate) fn close_io(&self) {
        if let Some(io) = self.state().io.take() {
            io.close();
        }
    }

    /// Fails unless the process can be started.
    ///
    /// # Errors
    /// FailedPrecondition, with the words of containerd's own shim.
    pub(crate) fn check_startable(&self) -> Result<(), TaskError> {
        match self.phase() {
            Phase::Created => Ok(()),
            Phase::Running => Err(TaskError::failed_precondition("cannot start a running process")),
            Phase::Stopped(_) => Err(TaskError::failed_precondition("cannot start a stopped process")),
        }
    }

    /// Fails unless the process can get a signal.
    ///
    /// # Errors
    /// NotFound when it has ended, FailedPrecondition when it has not begun.
    pub(crate) fn check_signalable(&self) -> Result<(), TaskError> {
        let state = self.state();
        match state.phase {
            Phase::Stopped(_) => Err(TaskError::not_found("process already finished")),
            Phase::Created | Phase::Running if state.guest_pid == 0 => {
                Err(TaskError::failed_precondition("process not created"))
            }
            Phase::Created | Phase::Running => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use ttrpc::Code;

    use super::*;

    const EXIT: Exit = Exit { status: 7, at: 9 };

    #[test]
    fn a_process_starts_once() {
        let process = Process::new("c1", "", Stdio::default());
        process.check_startable().unwrap();
        process.started();
        assert_eq!(process.check_startable().unwrap_err().code(), Code::FAILED_PRECONDITION);
        process.stopped(EXIT);
        assert_eq!(process.check_startable().unwrap_err().code(), Code::FAILED_PRECONDITION);
    }

    #[test]
    fn signals_are_for_processes_that_are_there() {
        let process = Process::new("c1", "e", Stdio::default());
        assert_eq!(process.check_signalable().unwrap_err().code(), Code::FAILED_PRECONDITION);
        process.made(5, ProcessIo::default());
        process.check_signalable().unwrap();
        process.stopped(EXIT);
        let error = process.check_signalable().unwrap_err();
        assert_eq!(error.code(), Code::NOT_FOUND);
        assert_eq!(error.to_string(), "process already finished");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn any_number_of_clients_wait_also_after_the_exit() {
        let process = Process::new("c1", "", Stdio::default());
        let early: Vec<_> = (0..3)
            .map(|_| {
                let process = process.clone();
                tokio::spawn(async move { process.wait().await })
            })
            .collect();
        tokio::task::yield_now().await;
        process.stopped(EXIT);
        for waiting in early {
            assert_eq!(waiting.await.unwrap(), EXIT);
        }
        assert_eq!(process.wait().await, EXIT);
    }

    #[test]
    fn a_late_start_does_not_bring_an_ended_process_back() {
        let process = Process::new("c1", "", Stdio::default());
        process.stopped(EXIT);
        process.started();
        assert_eq!(process.phase(), Phase::Stopped(EXIT));
    }
}
