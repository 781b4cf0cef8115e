//! From a process to a connection.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::io::Errno;
use tokio::io::Interest;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::{CHUNK, Shared};
use crate::transport::Connection;

/// The most that is taken out of a terminal when its process exits: what the kernel keeps of one side's writes at
/// most (`TTYB_DEFAULT_MEM_LIMIT`, 64 KiB each way, and the line discipline's 4 KiB), with room to spare. A process
/// in the background that writes on could make it endless.
const TERMINAL_DRAIN: usize = 256 << 10;

/// One output of a process. It ends with this value, or at the end of the output.
#[derive(Debug)]
pub(crate) struct Output {
    source: Arc<Source>,
    task: AbortHandle,
}

#[derive(Debug)]
struct Source {
    process: Shared,
    terminal: bool,
    /// Bytes taken from the process so far.
    taken: AtomicU64,
    /// What was taken at the exit, and goes out before anything that is read later.
    drained: Mutex<Vec<u8>>,
    drained_some: Notify,
}

impl Output {
    /// Begins to copy.
    pub(super) fn start(connection: Connection, process: Shared, terminal: bool) -> Self {
        let source = Arc::new(Source {
            process,
            terminal,
            taken: AtomicU64::new(0),
            drained: Mutex::default(),
            drained_some: Notify::new(),
        });
        let task = tokio::spawn(copy(Arc::clone(&source), connection)).abort_handle();
        Self { source, task }
    }

    /// How many bytes the process has written until now, when it has exited: those that were copied, and those that
    /// the kernel still holds.
    pub(super) fn bytes_before_exit(&self) -> u64 {
        let held = if self.source.terminal {
            self.source.drain_terminal();
            0
        } else {
            rustix::io::ioctl_fionread(&*self.source.process).unwrap_or(0)
        };
        self.source.taken.load(Ordering::Relaxed) + held
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Source {
    /// The kernel does not say how much a terminal holds, but a read that would block says that it holds nothing.
    fn drain_terminal(&self) {
        let mut drained = self.drained.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffer = vec![0; CHUNK];
        while drained.len() < TERMINAL_DRAIN {
            match rustix::io::read(self.process.get_ref(), &mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(count) => drained.extend_from_slice(buffer.get(..count).unwrap_or_default()),
            }
        }
        self.taken.fetch_add(drained.len() as u64, Ordering::Relaxed);
        self.drained_some.notify_one();
    }

    fn take_drained(&self) -> Vec<u8> {
        std::mem::take(&mut *self.drained.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads what the process has written; 0 at its end.
    async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = |process: &_| match rustix::io::read(process, &mut *buffer) {
            // So ends a terminal that no process has open any more.
            Err(Errno::IO) if self.terminal => Ok(0),
            result => Ok(result?),
        };
        let count = self.process.async_io(Interest::READABLE, read).await?;
        self.taken.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

async fn copy(source: Arc<Source>, connection: Connection) {
    let mut buffer = vec![0; CHUNK];
    let result = loop {
        let drained = source.take_drained();
        if let Err(error) = connection.write_all(&drained).await {
            break Err(error);
        }
        tokio::select! {
            biased;
            () = source.drained_some.notified() => {}
            read = source.read(&mut buffer) => match read {
                Ok(0) => break Ok(()),
                Ok(count) => {
                    if let Err(error) = connection.write_all(buffer.get(..count).unwrap_or_default()).await {
                        break Err(error);
                    }
                }
                Err(error) => break Err(error),
            },
        }
    };
    match result.and_then(|()| connection.end_writing()) {
        Ok(()) => {}
        Err(error) => log::info!("output ended: {error}"),
    }
}
