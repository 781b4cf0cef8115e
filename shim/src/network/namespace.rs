//! Work inside another network namespace.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};

use super::error::NetworkError;
use super::loopback::{self, LoopbackListener};

/// The stack of the thread that visits a namespace.
const STACK_SIZE: usize = 512 * 1024;

/// A network namespace, kept alive.
#[derive(Debug)]
pub(crate) struct NetworkNamespace(OwnedFd);

impl NetworkNamespace {
    /// The namespace whose file is at `path`.
    ///
    /// # Errors
    /// There is none: nothing at all, or a file that is no namespace's, such as the mount point of one that is gone.
    /// That it is of another kind shows when it is [entered](Self::run).
    pub(super) fn open(path: &Path) -> Result<Self, NetworkError> {
        open(path).map(Self).map_err(|source| NetworkError::Namespace { path: path.to_owned(), source })
    }

    /// A namespace that nobody else has, with nothing in it but the loopback interface.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn make() -> Result<Self, NetworkError> {
        in_new(|| {
            let path = "/proc/thread-self/ns/net";
            Ok(Self(File::open(path).map_err(NetworkError::host(path))?.into()))
        })
    }

    /// Another handle to it.
    pub(super) fn try_clone(&self) -> Result<Self, NetworkError> {
        self.0.try_clone().map(Self).map_err(NetworkError::host("a network namespace's descriptor"))
    }

    /// Whether it is the one that this process is in.
    pub(super) fn is_ours(&self) -> Result<bool, NetworkError> {
        let same = || {
            let (other, ours) = (rustix::fs::fstat(&self.0)?, rustix::fs::stat("/proc/self/ns/net")?);
            Ok((other.st_dev, other.st_ino) == (ours.st_dev, ours.st_ino))
        };
        same().map_err(NetworkError::host("a network namespace's identity"))
    }

    /// Has every TCP connection within the namespace arrive at one socket.
    ///
    /// # Errors
    /// The kernel refuses; before Linux 5.9 it does.
    pub(crate) fn listen_on_loopback(&self) -> Result<LoopbackListener, NetworkError> {
        self.run(|| loopback::listen().map_err(NetworkError::host("a program on the socket lookup")))
    }

    /// Runs `work` on a thread of its own in the namespace, and waits for it. The caller's thread stays where it is.
    ///
    /// # Errors
    /// What `work` returns, and that the namespace cannot be entered.
    pub(super) fn run<T: Send>(
        &self,
        work: impl FnOnce() -> Result<T, NetworkError> + Send,
    ) -> Result<T, NetworkError> {
        let enter_and_work = || {
            setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET)
                .map_err(|error| NetworkError::host("entering the network namespace")(error.into()))?;
            work()
        };
        visit(enter_and_work).map_err(NetworkError::host("network namespace"))?
    }
}

/// Runs `work` on a thread of its own in a namespace that nobody else has, and that ends with it.
///
/// # Errors
/// What `work` returns, and that the kernel makes no namespace.
pub(super) fn in_new<T: Send>(
    work: impl FnOnce() -> Result<T, NetworkError> + Send,
) -> Result<T, NetworkError> {
    let leave_and_work = || {
        unshare(CloneFlags::CLONE_NEWNET)
            .map_err(|error| NetworkError::host("making a network namespace")(error.into()))?;
        work()
    };
    visit(leave_and_work).map_err(NetworkError::host("a new network namespace"))?
}

/// Runs `work` on a thread of its own, so that the namespace which it enters is not the caller's.
fn visit<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let builder = thread::Builder::new().name("netns".into()).stack_size(STACK_SIZE);
        let panicked = |_| io::Error::other("the thread that visits the namespace has panicked");
        builder.spawn_scoped(scope, work)?.join().map_err(panicked)
    })
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    let file = File::open(path)?;
    if rustix::fs::fstatfs(&file)?.f_type != libc::NSFS_MAGIC {
        return Err(io::Error::new(io::ErrorKind::NotFound, "there is no namespace"));
    }
    Ok(file.into())
}
