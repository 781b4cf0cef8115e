//! Work inside another network namespace.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::thread;

use nix::sched::{CloneFlags, setns};

use super::error::NetworkError;

/// The stack of the thread that visits a namespace.
const STACK_SIZE: usize = 512 * 1024;

/// A network namespace, kept alive.
#[derive(Debug)]
pub(crate) struct NetworkNamespace(OwnedFd);

impl NetworkNamespace {
    /// The namespace whose file is at `path`.
    ///
    /// # Errors
    /// There is none. That the file is of another kind shows when it is [entered](Self::run).
    pub(super) fn open(path: &Path) -> Result<Self, NetworkError> {
        let opened = File::open(path);
        opened
            .map(|file| Self(file.into()))
            .map_err(|source| NetworkError::Namespace { path: path.to_owned(), source })
    }

    /// Runs `work` on a thread of its own in the namespace, and waits for it. The caller's thread stays where it is.
    ///
    /// # Errors
    /// What `work` returns, and that the namespace cannot be entered.
    pub(super) fn run<T: Send>(
        &self,
        work: impl FnOnce() -> Result<T, NetworkError> + Send,
    ) -> Result<T, NetworkError> {
        let visit = || {
            setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET)
                .map_err(|error| NetworkError::host("entering the network namespace")(error.into()))?;
            work()
        };
        thread::scope(|scope| {
            let builder = thread::Builder::new().name("netns".into()).stack_size(STACK_SIZE);
            let visitor =
                builder.spawn_scoped(scope, visit).map_err(NetworkError::host("starting a thread"))?;
            let panicked = || io::Error::other("the thread that visits the namespace has panicked");
            visitor.join().unwrap_or_else(|_| Err(NetworkError::host("network namespace")(panicked())))
        })
    }
}
