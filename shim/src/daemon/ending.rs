//! The end of a shim, from which on nobody is to find it.

use std::path::PathBuf;
use std::sync::{Arc, Once};

use tokio::sync::Notify;

use crate::bootstrap::socket;
use crate::pod::Pod;

/// How a shim is told to end.
pub(crate) struct Ending {
    pod: Arc<Pod>,
    /// The socket on which it is reached until its end begins.
    socket: Option<PathBuf>,
    begin: Once,
    wanted: Notify,
}

impl Ending {
    /// That of the shim of `pod`, which is reached by the socket at this path, if it has one.
    pub(crate) fn new(pod: Arc<Pod>, socket: Option<PathBuf>) -> Self {
        Self { pod, socket, begin: Once::new(), wanted: Notify::new() }
    }

    /// Has the shim end. From now on `delete` leaves the pod to it, and a next pod of the name waits for it and does not reach
    /// it. Only the first call does anything: later there may be another's socket at its place.
    pub(crate) fn begin(&self) {
        self.begin.call_once(|| {
            self.pod.announce_end();
            if let Some(socket) = &self.socket {
                socket::remove(socket);
            }
            self.wanted.notify_one();
        });
    }

    /// Waits until the shim is to end.
    pub(crate) async fn begun(&self) {
        self.wanted.notified().await;
    }
}
