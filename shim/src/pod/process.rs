//! The VMM's process: this same binary, executed again.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use rustix::io::FdFlags;
use rustix::process::Signal;
use saya_vmm::jail::in_new_pid_namespace;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStderr, Command};

/// The argument that makes this binary the VMM.
pub(crate) const VMM_ARGUMENT: &str = "vmm";
/// The argument before the number of the control socket's descriptor.
pub(crate) const CONTROL_ARGUMENT: &str = "--control-fd";

/// Executes this binary as a VMM with the other end of the control socket. It dies with the thread that calls this.
///
/// # Errors
/// What unshare(2), fork(2) or execve(2) returned.
pub(crate) fn spawn_vmm(control: &OwnedFd) -> io::Result<Child> {
    let number = control.as_raw_fd();
    let mut command = Command::new("/proc/self/exe");
    command.arg0("saya-vmm").arg(VMM_ARGUMENT).arg(CONTROL_ARGUMENT).arg(number.to_string());
    command.env_clear().current_dir("/").kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let inherit_control = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // SAFETY: the parent holds `control` open across fork, so the number names the same descriptor here.
        let control = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
        Ok(rustix::io::fcntl_setfd(control, FdFlags::empty())?)
    };
    // SAFETY: between fork and exec the closure makes two system calls and touches no lock and no heap.
    unsafe { command.pre_exec(inherit_control) };
    // The rest of its jail the VMM makes by itself.
    in_new_pid_namespace(|| command.spawn())
}

/// How much of what the VMM writes to its standard error is kept, in bytes.
const DIAGNOSTICS_MAX: usize = 4096;

/// The end of what the VMM wrote to its standard error, for the case that it dies without a report.
#[derive(Debug, Clone, Default)]
pub(super) struct Diagnostics {
    tail: Arc<Mutex<VecDeque<u8>>>,
}

impl Diagnostics {
    /// Collects from `stderr` until its end.
    pub(super) fn collect(stderr: Option<ChildStderr>) -> Self {
        let diagnostics = Self::default();
        if let Some(stderr) = stderr {
            tokio::spawn(diagnostics.clone().read(stderr));
        }
        diagnostics
    }

    async fn read(self, mut stderr: ChildStderr) {
        let mut chunk = [0; 512];
        while let Ok(length @ 1..) = stderr.read(&mut chunk).await {
            self.keep(chunk.get(..length).unwrap_or_default());
        }
    }

    fn keep(&self, bytes: &[u8]) {
        if let Ok(mut tail) = self.tail.lock() {
            tail.extend(bytes);
            let excess = tail.len().saturating_sub(DIAGNOSTICS_MAX);
            tail.drain(..excess);
        }
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ok(tail) = self.tail.lock() else { return Ok(()) };
        let bytes: Vec<u8> = tail.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        if text.trim().is_empty() { Ok(()) } else { write!(formatter, ": {}", text.trim()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_of_many_words_is_kept() {
        let diagnostics = Diagnostics::default();
        diagnostics.keep(&vec![b'x'; 2 * DIAGNOSTICS_MAX]);
        diagnostics.keep(b"the end");
        let text = diagnostics.to_string();
        assert!(text.ends_with("the end"));
        assert_eq!(text.len(), DIAGNOSTICS_MAX + 2);
    }
}
