//! The files and directories that the guest has open.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::directory_stream::DirectoryStream;
use super::limits::MOST_OPEN_DIRECTORIES;
use super::table::{Full, Table};

/// A regular file, open.
#[derive(Debug)]
pub(super) struct OpenFile {
    descriptor: OwnedFd,
    /// The flags of the open file that the guest can change later on.
    changeable: OFlags,
    writable: bool,
}

impl OpenFile {
    /// The flags that `fcntl(F_SETFL)` changes and that matter to the host.
    const CHANGEABLE: OFlags = OFlags::APPEND.union(OFlags::DIRECT);

    /// A file that was opened with `flags`.
    pub(super) fn new(descriptor: OwnedFd, flags: OFlags) -> Self {
        let writable = flags.intersects(OFlags::WRONLY | OFlags::RDWR);
        Self { descriptor, changeable: flags & Self::CHANGEABLE, writable }
    }

    /// Whether it was opened for writing.
    pub(super) fn is_writable(&self) -> bool {
        self.writable
    }

    /// Another descriptor of the same open file.
    ///
    /// # Errors
    /// What `fcntl(F_DUPFD_CLOEXEC)` returned.
    pub(super) fn try_clone(&self) -> Result<OwnedFd, Errno> {
        rustix::io::fcntl_dupfd_cloexec(&self.descriptor, 0)
    }

    /// Makes the open file's flags those that the guest's open file has now.
    ///
    /// # Errors
    /// What `fcntl(F_SETFL)` returned.
    pub(super) fn follow(&mut self, flags: OFlags) -> Result<(), Errno> {
        let wanted = flags & Self::CHANGEABLE;
        if wanted == self.changeable {
            return Ok(());
        }
        rustix::fs::fcntl_setfl(&self.descriptor, wanted)?;
        self.changeable = wanted;
        Ok(())
    }
}

impl AsFd for OpenFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// What a handle stands for.
#[derive(Debug)]
pub(super) enum Handle {
    /// A regular file.
    File(OpenFile),
    /// A directory.
    Directory(DirectoryStream),
}

/// Everything that the guest has open.
#[derive(Debug)]
pub(super) struct HandleStore {
    handles: Table<Handle>,
    /// Directories that have a descriptor, those that were used longest ago first.
    open_directories: VecDeque<u64>,
}

impl HandleStore {
    /// A store of up to `limit` handles.
    pub(super) fn new(limit: usize) -> Self {
        Self { handles: Table::new(limit), open_directories: VecDeque::new() }
    }

    /// Keeps `handle` and returns its number.
    ///
    /// # Errors
    /// `ENFILE` when the guest has open as much as it may.
    pub(super) fn insert(&mut self, handle: Handle) -> Result<u64, Errno> {
        let is_directory = matches!(handle, Handle::Directory(_));
        let number = self.handles.insert(handle).map_err(|Full| Errno::NFILE)?;
        if is_directory {
            self.directory_is_used(number);
        }
        Ok(number)
    }

    /// The open file with this number.
    ///
    /// # Errors
    /// `EBADF` when there is none, `EISDIR` when it is a directory.
    pub(super) fn file(&mut self, number: u64) -> Result<&mut OpenFile, Errno> {
        match self.handles.get_mut(number) {
            Some(Handle::File(file)) => Ok(file),
            Some(Handle::Directory(_)) => Err(Errno::ISDIR),
            None => Err(Errno::BADF),
        }
    }

    /// The open directory with this number.
    ///
    /// # Errors
    /// `EBADF` when there is none, `ENOTDIR` when it is a file.
    pub(super) fn directory(&mut self, number: u64) -> Result<&mut DirectoryStream, Errno> {
        match self.handles.get_mut(number) {
            Some(Handle::Directory(directory)) => Ok(directory),
            Some(Handle::File(_)) => Err(Errno::NOTDIR),
            None => Err(Errno::BADF),
        }
    }

    /// The directory with this number, which has a descriptor, is used: it keeps that for longer than the others. One that has not been
    /// used for long may lose its own.
    pub(super) fn directory_is_used(&mut self, number: u64) {
        self.open_directories.retain(|open| *open != number);
        self.open_directories.push_back(number);
        if self.open_directories.len() > MOST_OPEN_DIRECTORIES
            && let Some(number) = self.open_directories.pop_front()
            && let Ok(directory) = self.directory(number)
        {
            directory.close();
        }
    }

    /// How many directories have a descriptor.
    pub(super) fn open_directories(&self) -> usize {
        self.open_directories.len()
    }

    /// Closes what has this number.
    ///
    /// # Errors
    /// `EBADF` when there is none.
    pub(super) fn remove(&mut self, number: u64) -> Result<Handle, Errno> {
        self.open_directories.retain(|open| *open != number);
        self.handles.remove(number).ok_or(Errno::BADF)
    }

    /// Closes everything.
    pub(super) fn clear(&mut self) {
        let numbers: Vec<u64> = self.handles.iter().map(|(number, _)| number).collect();
        for number in numbers {
            drop(self.handles.remove(number));
        }
        self.open_directories.clear();
    }

    /// Whether nothing more can be opened.
    pub(super) fn is_full(&self) -> bool {
        self.handles.is_full()
    }

    /// How much is open.
    pub(super) fn len(&self) -> usize {
        self.handles.len()
    }
}
