//! Loggers (`binary://`): programs that read a container's output from descriptors 3 and 4 and close 5 when ready.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::io::DupFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};

/// How long a logger may take to become ready.
const READY_PATIENCE: Duration = Duration::from_secs(10);
/// How long a logger may take to end after SIGTERM.
const END_PATIENCE: Duration = Duration::from_secs(12);

/// A running logger.
#[derive(Debug)]
pub(crate) struct Logger {
    child: Child,
}

/// The pipes that a logger reads.
#[derive(Debug)]
pub(crate) struct LoggerPipes {
    /// Where stdout goes; it does not block.
    pub(crate) stdout: OwnedFd,
    /// Where stderr goes; it does not block.
    pub(crate) stderr: OwnedFd,
}

/// A logger that did not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoggerError {
    /// It could not be executed.
    #[error("starting the logger {program}: {source}")]
    Start {
        /// The program.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It did not say that it is ready.
    #[error("the logger {0} did not become ready within 10 s: it must close descriptor 5")]
    NotReady(PathBuf),
}

impl Logger {
    /// Starts a logger and waits until it is ready.
    ///
    /// # Errors
    /// It could not be executed or did not become ready.
    pub(crate) async fn start(
        program: &Path,
        arguments: &[String],
        container: &str,
        namespace: &str,
    ) -> Result<(Self, LoggerPipes), LoggerError> {
        let failed = |source| LoggerError::Start { program: program.to_owned(), source };
        let (stdout_reader, stdout) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| failed(error.into()))?;
        let (stderr_reader, stderr) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| failed(error.into()))?;
        let (ready_reader, ready) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| failed(error.into()))?;
        let mut command = Command::new(program);
        command.args(arguments).env_clear();
        command.env("CONTAINER_ID", container).env("CONTAINER_NAMESPACE", namespace);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let inherited = [stdout_reader.as_raw_fd(), stderr_reader.as_raw_fd(), ready.as_raw_fd()];
        // SAFETY: between fork and exec the closure makes system calls alone and touches no lock and no heap.
        unsafe { command.pre_exec(move || place_descriptors(inherited)) };
        let child = command.spawn().map_err(failed)?;
        drop((stdout_reader, stderr_reader, ready));

        let mut ready = pipe::Receiver::from_owned_fd(ready_reader).map_err(failed)?;
        // A byte or the end: both mean ready.
        match tokio::time::timeout(READY_PATIENCE, ready.read(&mut [0])).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(failed(error)),
            Err(_) => return Err(LoggerError::NotReady(program.to_owned())),
        }
        for writer in [&stdout, &stderr] {
            rustix::io::ioctl_fionbio(writer, true).map_err(|error| failed(error.into()))?;
        }
        Ok((Self { child }, LoggerPipes { stdout, stderr }))
    }

    /// Lets the logger finish what it has read, then ends it. Its pipes must be closed already.
    pub(crate) async fn end(mut self) {
        if let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw) {
            // It may have ended by itself at the end of its pipes.
            let _ = rustix::process::kill_process(pid, Signal::TERM);
        }
        if tokio::time::timeout(END_PATIENCE, self.child.wait()).await.is_err() {
            tracing::warn!("a logger did not end after SIGTERM and is killed");
            let _ = self.child.kill().await;
        }
    }
}

/// The first number that no inherited descriptor is to have.
const BEYOND: RawFd = 10;

/// Puts the three descriptors at 3, 4 and 5, whatever numbers they have now.
fn place_descriptors(inherited: [RawFd; 3]) -> io::Result<()> {
    let mut lifted = [-1; 3];
    for (lifted, number) in lifted.iter_mut().zip(inherited) {
        // SAFETY: the parent holds the descriptor open across fork.
        let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
        // Out of the way first: 3, 4 or 5 may be one of the others.
        let copy = rustix::io::fcntl_dupfd_cloexec(descriptor, BEYOND)?;
        *lifted = copy.as_raw_fd();
        std::mem::forget(copy);
    }
    for (number, target) in lifted.into_iter().zip(3..) {
        // SAFETY: `number` was made above and not closed.
        let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
        // SAFETY: whatever is at `target` belongs to no one in this process, which is about to exec.
        let mut placed = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(target) });
        rustix::io::dup3(descriptor, &mut placed, DupFlags::empty())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn a_logger_gets_both_streams_and_its_container() {
        let directory = tempfile::tempdir().unwrap();
        let script = "exec 5>&-; { echo $CONTAINER_NAMESPACE/$CONTAINER_ID; cat <&3; cat <&4; } >$0";
        let path = directory.path().join("out");
        let arguments = ["-c".to_owned(), script.to_owned(), path.to_str().unwrap().to_owned()];
        let (logger, pipes) = Logger::start(Path::new("/bin/sh"), &arguments, "c1", "default").await.unwrap();
        std::fs::File::from(pipes.stdout).write_all(b"out\n").unwrap();
        std::fs::File::from(pipes.stderr).write_all(b"err\n").unwrap();
        let mut child = logger.child;
        child.wait().await.unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "default/c1\nout\nerr\n");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_logger_that_is_not_there_is_named() {
        let error = Logger::start(Path::new("/nonexistent/logger"), &[], "c1", "default").await.unwrap_err();
        assert!(error.to_string().contains("/nonexistent/logger"));
    }
}
