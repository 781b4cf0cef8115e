//! POSIX locks that the guest's processes hold on the host's files.
//!
//! The guest's lock owners are processes; the host must tell them apart, too. Each owner gets an open file of its own
//! per inode, and its locks are that open file's (`F_OFD_SETLK`, fcntl(2)). They go when the guest's kernel says that
//! the owner has closed the file, or has forgotten the inode.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use super::operations::io_result;
use super::wire::FileLock;

/// The end of a lock that reaches to the end of the file (`OFFSET_MAX`, linux/fs.h).
const END_OF_FILE: u64 = i64::MAX.cast_unsigned();

/// The lock owners of all inodes.
#[derive(Debug)]
pub(super) struct LockStore {
    owners: HashMap<u64, Vec<Owner>>,
    count: usize,
    limit: usize,
}

#[derive(Debug)]
struct Owner {
    id: u64,
    descriptor: OwnedFd,
}

impl LockStore {
    /// A store of up to `limit` owners.
    pub(super) fn new(limit: usize) -> Self {
        Self { owners: HashMap::new(), count: 0, limit }
    }

    /// The descriptor of an owner of locks on `node`.
    pub(super) fn get(&self, node: u64, owner: u64) -> Option<BorrowedFd<'_>> {
        let owners = self.owners.get(&node)?;
        owners.iter().find(|known| known.id == owner).map(|known| known.descriptor.as_fd())
    }

    /// Adds an owner that is not there yet.
    ///
    /// # Errors
    /// `ENOLCK` at the limit.
    pub(super) fn insert(&mut self, node: u64, owner: u64, descriptor: OwnedFd) -> Result<(), Errno> {
        if self.count >= self.limit {
            return Err(Errno::NOLCK);
        }
        self.owners.entry(node).or_default().push(Owner { id: owner, descriptor });
        self.count += 1;
        Ok(())
    }

    /// Gives up all locks of an owner on `node`.
    pub(super) fn remove(&mut self, node: u64, owner: u64) {
        let Some(owners) = self.owners.get_mut(&node) else { return };
        let before = owners.len();
        owners.retain(|known| known.id != owner);
        self.count -= before - owners.len();
        if owners.is_empty() {
            self.owners.remove(&node);
        }
    }

    /// Gives up all locks on `node`.
    pub(super) fn remove_all(&mut self, node: u64) {
        if let Some(owners) = self.owners.remove(&node) {
            self.count -= owners.len();
        }
    }

    /// Gives up everything.
    pub(super) fn clear(&mut self) {
        self.owners.clear();
        self.count = 0;
    }
}

/// Whether a lock's request covers the whole file.
pub(super) fn covers_everything(lock: &FileLock) -> bool {
    lock.start == 0 && lock.end == END_OF_FILE
}

/// Takes or gives up a lock of the open file behind `descriptor`; `wait` says whether to wait for it.
///
/// # Errors
/// `EINVAL` for a lock that is none; else what `fcntl` returned: `EAGAIN` when the lock is another's.
pub(super) fn set(descriptor: impl AsFd, lock: &FileLock, wait: bool) -> Result<(), Errno> {
    let command = if wait { libc::F_OFD_SETLKW } else { libc::F_OFD_SETLK };
    let mut request = host_lock(lock)?;
    control(descriptor.as_fd(), command, &mut request)
}

/// The lock that keeps `lock` from being taken.
///
/// # Errors
/// `EINVAL` for a lock that is none; else what `fcntl` returned.
pub(super) fn test(descriptor: impl AsFd, lock: &FileLock) -> Result<FileLock, Errno> {
    let mut request = host_lock(lock)?;
    control(descriptor.as_fd(), libc::F_OFD_GETLK, &mut request)?;
    let start = request.l_start.cast_unsigned();
    let end = match request.l_len {
        0 => END_OF_FILE,
        length => start.saturating_add(length.cast_unsigned()).saturating_sub(1),
    };
    // The holder is a process of this host or an open file: the guest could make nothing of its number.
    Ok(FileLock { start, end, kind: u32::from(request.l_type.cast_unsigned()), pid: 0 })
}

fn host_lock(lock: &FileLock) -> Result<libc::flock64, Errno> {
    let Ok(kind @ (libc::F_RDLCK | libc::F_WRLCK | libc::F_UNLCK)) = i32::try_from(lock.kind) else {
        return Err(Errno::INVAL);
    };
    if lock.start > lock.end || lock.end > END_OF_FILE {
        return Err(Errno::INVAL);
    }
    let length = if lock.end == END_OF_FILE { 0 } else { lock.end - lock.start + 1 };
    Ok(libc::flock64 {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: lock.start.cast_signed(),
        l_len: length.cast_signed(),
        // Must be zero for locks of open files.
        l_pid: 0,
    })
}

fn control(
    descriptor: BorrowedFd<'_>,
    command: libc::c_int,
    request: &mut libc::flock64,
) -> Result<(), Errno> {
    // SAFETY: the command takes a pointer to a `flock64`, which is exclusively borrowed for the call.
    let result = unsafe { libc::fcntl(descriptor.as_raw_fd(), command, std::ptr::from_mut(request)) };
    io_result(libc::c_long::from(result)).map(drop)
}
