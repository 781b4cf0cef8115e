//! A process that the agent has made, from its creation to the word of its exit.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::process::Pid;
use tokio::sync::watch;

use crate::container::channel::{AgentEnd, Go, Report};
use crate::error::{Action, Error, Result};
use crate::stdio::Streams;
use crate::sys::send_signal;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    /// 0–255, or 128 + n after signal n.
    pub(crate) status: u32,
    /// Bytes of standard output that belong before the exit.
    pub(crate) stdout_bytes: u64,
    /// Bytes of standard error that belong before the exit.
    pub(crate) stderr_bytes: u64,
    /// The guest's wall clock, nanoseconds since 1970.
    pub(crate) at_nanoseconds: u64,
}

/// Where a process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// It waits for its start.
    Created,
    /// It was told to start.
    Running,
    /// It has ended.
    Exited(Exit),
}

impl State {
    /// The state in a word, for messages.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Exited(_) => "stopped",
        }
    }
}

/// A process of a container.
#[derive(Debug)]
pub(crate) struct Process {
    container: String,
    exec_id: String,
    pid: Pid,
    state: watch::Sender<State>,
    streams: Mutex<Streams>,
    /// Leads to the child while it waits for its start.
    channel: Mutex<Option<AgentEnd>>,
}

impl Process {
    /// A process that was just cloned.
    pub(crate) fn new(container: &str, exec_id: &str, pid: Pid) -> Self {
        Self {
            container: container.to_owned(),
            exec_id: exec_id.to_owned(),
            pid,
            state: watch::Sender::new(State::Created),
            streams: Mutex::default(),
            channel: Mutex::default(),
        }
    }

    /// Its id in the guest's first pid namespace.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Its exec id; empty for a container's first process.
    pub(crate) fn exec_id(&self) -> &str {
        &self.exec_id
    }

    /// Where it is in its life.
    pub(crate) fn state(&self) -> State {
        *self.state.borrow()
    }

    /// Its name in messages.
    pub(crate) fn subject(&self) -> String {
        if self.exec_id.is_empty() {
            format!("container {:?}", self.container)
        } else {
            format!("process {:?} of container {:?}", self.exec_id, self.container)
        }
    }

    /// The container that it belongs to.
    pub(crate) fn container(&self) -> &str {
        &self.container
    }

    /// It waits for its start, at the other end of `channel`, and has its streams.
    pub(crate) fn set_up(&self, channel: AgentEnd, streams: Streams) {
        *self.streams() = streams;
        *self.channel() = Some(channel);
    }

    fn channel(&self) -> MutexGuard<'_, Option<AgentEnd>> {
        self.channel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its streams.
    pub(crate) fn streams(&self) -> MutexGuard<'_, Streams> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the kernel has reported its end. `status` is of 0–255, or 128 + n.
    pub(crate) fn exited(&self, status: u32) {
        let (stdout_bytes, stderr_bytes) = self.streams().bytes_before_exit();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let at_nanoseconds = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        self.state.send_replace(State::Exited(Exit { status, stdout_bytes, stderr_bytes, at_nanoseconds }));
    }

    /// Waits for its end.
    pub(crate) async fn wait(&self) -> Exit {
        let mut state = self.state.subscribe();
        loop {
            if let State::Exited(exit) = *state.borrow_and_update() {
                return exit;
            }
            // Cannot fail: the sender is a part of this value.
            let _ = state.changed().await;
        }
    }

    /// Lets it exec. Fails with its reason when it could not.
    pub(crate) async fn start(&self) -> Result<()> {
        let (State::Created, Some(started)) = (self.state(), self.channel().take()) else {
            return Err(self.wrong_state("start"));
        };
        started.go(Go::Start).action(|| format!("start {}", self.subject()))?;
        self.state.send_if_modified(|state| {
            let created = *state == State::Created;
            if created {
                *state = State::Running;
            }
            created
        });
        match started.next().await.action(|| format!("start {}", self.subject()))? {
            // The end of the channel is the exec.
            None => Ok(()),
            Some(Report::Failed(message)) => {
                self.wait().await;
                Err(Error::Setup(message))
            }
            Some(report) => Err(Error::Setup(format!("unexpected report at the start: {report:?}"))),
        }
    }

    /// The error for a state that does not allow `action`.
    pub(crate) fn wrong_state(&self, action: &'static str) -> Error {
        Error::WrongState { action, subject: self.subject(), state: self.state().word() }
    }

    /// Sends it the signal of that number.
    pub(crate) fn signal(&self, signal: i32) -> Result<()> {
        if let State::Exited(_) = self.state() {
            return Err(Error::ProcessEnded(self.subject()));
        }
        // The process id is this process's until the reaper has noted its exit, which this thread does.
        send_signal(self.pid, signal).action(|| format!("send signal {signal} to {}", self.subject()))
    }
}
