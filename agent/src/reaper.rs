//! Takes note of every process that ends. The first process inherits all that lose their parent.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, WaitStatus, wait};
use tokio::signal::unix::Signal;

use crate::process::Process;

/// The processes whose end somebody wants to know.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reaper {
    processes: Arc<Mutex<HashMap<Pid, Arc<Process>>>>,
}

impl Reaper {
    /// Wants to know the end of `process`, which must not have been reaped: to be called before the task that has
    /// cloned it waits for anything.
    pub(crate) fn watch(&self, process: Arc<Process>) {
        let pid = process.pid();
        self.processes.lock().unwrap_or_else(PoisonError::into_inner).insert(pid, process);
    }

    /// Reaps for ever. `child_signals` is SIGCHLD, asked for before the first child was made.
    pub(crate) async fn run(self, mut child_signals: Signal) {
        loop {
            self.reap_all();
            if child_signals.recv().await.is_none() {
                return;
            }
        }
    }

    fn reap_all(&self) {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => self.note(pid, status),
                Ok(None) | Err(Errno::CHILD) => return,
                Err(Errno::INTR) => {}
                Err(error) => {
                    log::error!("cannot wait for children: {error}");
                    return;
                }
            }
        }
    }

    fn note(&self, pid: Pid, status: WaitStatus) {
        let process = self.processes.lock().unwrap_or_else(PoisonError::into_inner).remove(&pid);
        if let Some(process) = process {
            process.exited(exit_status(status));
        }
    }
}

/// The status as shells and runc report it.
fn exit_status(status: WaitStatus) -> u32 {
    let code = status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal));
    code.and_then(|code| u32::try_from(code).ok()).unwrap_or(255)
}
