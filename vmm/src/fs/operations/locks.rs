//! GETLK, SETLK and SETLKW, and the FLUSH that ends a lock owner's locks.

use std::os::fd::AsFd;

use rustix::fs::{FileType, FlockOperation, OFlags};
use rustix::io::Errno;

use crate::fs::file_system::FileSystem;
use crate::fs::lock_store;
use crate::fs::waiters::Ticket;
use crate::fs::wire::{FileLock, LOCK_FLOCK, LockIn, LockOut};

/// What became of a request for a lock.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::fs) enum Locked {
    /// It is done.
    Now,
    /// It is somebody else's, and the request waits for it.
    Waiting(Ticket),
}

impl FileSystem {
    /// The lock that is in the way of another.
    ///
    /// # Errors
    /// `ENOSYS` where locks are the guest's own; `EINVAL` for a lock that is none; else what the host returned.
    pub(in crate::fs) fn getlk(&mut self, node: u64, request: &LockIn) -> Result<LockOut, Errno> {
        self.require_remote_locks()?;
        let lock = match self.locks.get(node, request.owner) {
            Some(descriptor) => lock_store::test(descriptor, &request.lock)?,
            None => lock_store::test(self.open_for_locks(node)?, &request.lock)?,
        };
        Ok(LockOut { lock })
    }

    /// Takes or gives up a lock; `wait` says whether to wait for it.
    ///
    /// # Errors
    /// `ENOSYS` where locks are the guest's own; `EAGAIN` when the lock is another's and the request does not wait;
    /// `ENOLCK` when the guest has as many locks, or waits for as many, as it may; else what the host returned.
    pub(in crate::fs) fn setlk(&mut self, node: u64, request: &LockIn, wait: bool) -> Result<Locked, Errno> {
        self.require_remote_locks()?;
        let attempt = match request.flags & LOCK_FLOCK {
            0 => self.set_posix_lock(node, request),
            _ => self.set_flock(request),
        };
        match attempt {
            Ok(()) => Ok(Locked::Now),
            Err(Errno::AGAIN) if wait => self.wait_for_lock(node, request).map(Locked::Waiting),
            Err(error) => Err(error),
        }
    }

    /// A descriptor of an open file was closed in the guest: the locks of its process go (fcntl(2)).
    ///
    /// # Errors
    /// `ENOSYS` where locks are the guest's own: nothing happens then, and the guest need not ask again.
    pub(in crate::fs) fn flush(&mut self, node: u64, lock_owner: u64) -> Result<(), Errno> {
        self.require_remote_locks()?;
        self.locks.remove(node, lock_owner);
        Ok(())
    }

    fn require_remote_locks(&self) -> Result<(), Errno> {
        match self.remote_locks {
            true => Ok(()),
            false => Err(Errno::NOSYS),
        }
    }

    fn set_posix_lock(&mut self, node: u64, request: &LockIn) -> Result<(), Errno> {
        if request.lock.kind == libc::F_UNLCK as u32 && lock_store::covers_everything(&request.lock) {
            self.locks.remove(node, request.owner);
            return Ok(());
        }
        if self.locks.get(node, request.owner).is_none() {
            let descriptor = self.open_for_locks(node)?;
            self.locks.insert(node, request.owner, descriptor)?;
        }
        let descriptor = self.locks.get(node, request.owner).ok_or(Errno::NOLCK)?;
        lock_store::set(descriptor, &request.lock, false)
    }

    fn set_flock(&mut self, request: &LockIn) -> Result<(), Errno> {
        let operation = flock_operation(&request.lock, false)?;
        let file = self.handles.file(request.handle)?;
        rustix::fs::flock(file.as_fd(), operation)
    }

    fn wait_for_lock(&mut self, node: u64, request: &LockIn) -> Result<Ticket, Errno> {
        let lock = request.lock;
        if request.flags & LOCK_FLOCK != 0 {
            let operation = flock_operation(&lock, true)?;
            let file = self.handles.file(request.handle)?.try_clone()?;
            return self.waiters.begin(move || rustix::fs::flock(file, operation));
        }
        let descriptor = self.locks.get(node, request.owner).ok_or(Errno::NOLCK)?;
        let descriptor = rustix::io::fcntl_dupfd_cloexec(descriptor, 0)?;
        self.waiters.begin(move || lock_store::set(descriptor, &lock, true))
    }

    /// Opens `node` for locks of either kind, as far as the host lets it.
    fn open_for_locks(&mut self, node: u64) -> Result<std::os::fd::OwnedFd, Errno> {
        if self.inodes.peek(node)?.file_type() != FileType::RegularFile {
            return Err(Errno::INVAL);
        }
        match self.open_node(node, OFlags::RDWR) {
            // A read-only mount or file has read locks still.
            Err(Errno::ROFS | Errno::ACCESS | Errno::PERM) => self.open_node(node, OFlags::RDONLY),
            result => result,
        }
    }
}

fn flock_operation(lock: &FileLock, wait: bool) -> Result<FlockOperation, Errno> {
    match (i32::try_from(lock.kind), wait) {
        (Ok(libc::F_RDLCK), true) => Ok(FlockOperation::LockShared),
        (Ok(libc::F_RDLCK), false) => Ok(FlockOperation::NonBlockingLockShared),
        (Ok(libc::F_WRLCK), true) => Ok(FlockOperation::LockExclusive),
        (Ok(libc::F_WRLCK), false) => Ok(FlockOperation::NonBlockingLockExclusive),
        (Ok(libc::F_UNLCK), _) => Ok(FlockOperation::NonBlockingUnlock),
        _ => Err(Errno::INVAL),
    }
}
