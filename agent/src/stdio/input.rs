//! From a connection to a process.

use std::io;
use std::sync::Arc;

use tokio::io::Interest;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::{CHUNK, Shared};
use crate::transport::{Connection, write_all};

/// Input of a process. It ends with this value, at the end of the connection, or when nobody reads any more.
#[derive(Debug)]
pub(crate) struct Input {
    close: Arc<Notify>,
    task: AbortHandle,
}

impl Input {
    /// Begins to copy.
    pub(super) fn start(connection: Connection, process: Shared, terminal: bool) -> Self {
        let close = Arc::new(Notify::new());
        let task = tokio::spawn(copy(connection, process, terminal, Arc::clone(&close))).abort_handle();
        Self { close, task }
    }

    /// Ends the input after what has come already.
    pub(super) fn close(&self) {
        self.close.notify_one();
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn copy(connection: Connection, process: Shared, terminal: bool, close: Arc<Notify>) {
    let mut buffer = vec![0; CHUNK];
    let result = loop {
        tokio::select! {
            biased;
            read = connection.read(&mut buffer) => match read {
                Ok(0) => break Ok(()),
                Ok(count) => {
                    if let Err(error) = write_all(&process, buffer.get(..count).unwrap_or_default()).await {
                        break Err(error);
                    }
                }
                Err(error) => break Err(error),
            },
            () = close.notified() => break Ok(()),
            result = reader_gone(&process), if !terminal => break result,
        }
    };
    if let Err(error) = result
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        log::info!("input ended: {error}");
    }
    // A terminal's input has no end of its own; a pipe ends when this, its last writer, is dropped.
}

/// Answers when the last reader of a pipe is gone.
async fn reader_gone(pipe: &Shared) -> io::Result<()> {
    pipe.ready(Interest::ERROR).await.map(drop)
}
