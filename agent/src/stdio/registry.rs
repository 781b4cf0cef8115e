//! Connections that have said which stream they are, until a process takes them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use saya_agent_api::STREAM_TIMEOUT;
use tokio::sync::oneshot;

use crate::error::{Error, Result};
use crate::transport::{Connection, Listener};

/// How long a connection may take to say its number, and how long one waits to be taken.
const PATIENCE: Duration = STREAM_TIMEOUT;

/// A stream is known from whichever side comes first.
#[derive(Debug)]
enum Entry {
    /// It has connected, and nobody has asked for it.
    Arrived(Connection),
    /// Somebody waits for it.
    Awaited(oneshot::Sender<Connection>),
}

/// All streams that are not coupled yet.
#[derive(Clone, Debug, Default)]
pub(crate) struct Registry {
    entries: Arc<Mutex<HashMap<u64, Entry>>>,
}

impl Registry {
    /// Takes connections from `listener` for ever.
    pub(crate) async fn serve(self, listener: Listener) {
        loop {
            let connection = listener.next("a stream").await;
            tokio::spawn(self.clone().receive(connection));
        }
    }

    /// Reads the number that a connection begins with and files it.
    async fn receive(self, connection: Connection) {
        let mut number = [0; 8];
        match tokio::time::timeout(PATIENCE, connection.read_exact(&mut number)).await {
            Ok(Ok(())) => self.file(u64::from_be_bytes(number), connection).await,
            Ok(Err(error)) => log::warn!("a stream ended before its number: {error}"),
            Err(_) => log::warn!("a stream did not say its number in time"),
        }
    }

    async fn file(self, number: u64, connection: Connection) {
        if let Some(unclaimed) = self.hand_over(number, connection) {
            self.with(|entries| entries.insert(number, Entry::Arrived(unclaimed)));
            tokio::time::sleep(PATIENCE).await;
            self.with(|entries| {
                if let Some(Entry::Arrived(_)) = entries.get(&number) {
                    entries.remove(&number);
                    log::warn!("stream {number} was closed: no process has asked for it");
                }
            });
        }
    }

    /// Gives the connection to whoever waits for it, or back.
    fn hand_over(&self, number: u64, connection: Connection) -> Option<Connection> {
        self.with(|entries| match entries.remove(&number) {
            Some(Entry::Awaited(waiter)) => waiter.send(connection).err(),
            Some(Entry::Arrived(earlier)) => {
                log::warn!("two streams say that they are number {number}: the later is closed");
                entries.insert(number, Entry::Arrived(earlier));
                None
            }
            None => Some(connection),
        })
    }

    /// The connection with this number, now or when it comes.
    pub(crate) async fn take(&self, number: u64) -> Result<Connection> {
        let (sender, receiver) = oneshot::channel();
        let arrived = self.with(|entries| match entries.remove(&number) {
            Some(Entry::Arrived(connection)) => Some(connection),
            Some(Entry::Awaited(_)) | None => {
                entries.insert(number, Entry::Awaited(sender));
                None
            }
        });
        if let Some(connection) = arrived {
            return Ok(connection);
        }
        match tokio::time::timeout(STREAM_TIMEOUT, receiver).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(_)) | Err(_) => {
                self.with(|entries| entries.remove(&number));
                Err(Error::NoStream { number, seconds: STREAM_TIMEOUT.as_secs() })
            }
        }
    }

    fn with<T>(&self, work: impl FnOnce(&mut HashMap<u64, Entry>) -> T) -> T {
        work(&mut self.entries.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
