//! The state of the shared file system: what the guest knows of it, and how the server reaches it.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::cache_policy::CachePolicy;
use super::credentials::Credentials;
use super::directory_stream::{DirectoryBuffer, DirectoryStream};
use super::handle_store::{HandleStore, OpenFile};
use super::host::{DescriptorDirectory, Status};
use super::implicit_files::{Access, ImplicitFiles, flags_for};
use super::inode_store::InodeStore;
use super::limits::{DescriptorBudget, MOST_IMPLICIT_FILES};

/// What to share, and how.
#[derive(Debug)]
pub struct FsConfig {
    /// The directory to share, as any descriptor of it. `O_PATH` is enough.
    pub root: OwnedFd,
    /// `/proc/self/fd` of this very process: see [`open_descriptor_directory`](Self::open_descriptor_directory).
    /// After a change of root or of the mount namespace it keeps working; after a `fork` it is another process's and
    /// is refused.
    pub descriptor_directory: OwnedFd,
    /// The name that the guest mounts the file system by: 1 to 36 bytes of UTF-8.
    pub tag: String,
    /// How long the guest may trust what it was told.
    pub cache_policy: CachePolicy,
    /// Whether the guest may delay writes. Sizes and times of cached files are then the guest's word: the host must
    /// not write to the files meanwhile.
    pub writeback: bool,
    /// Whether the guest may open files without telling. It saves two requests for each file that is opened, and the
    /// host's refusal to open a file (a read-only mount, an immutable file) shows only when the file is used.
    pub implicit_opens: bool,
    /// How many inodes the guest may know; each takes about 250 bytes here. Its kernel needs at least 1 KiB of the
    /// guest's memory for each, so that as many as that memory has KiB are always enough.
    pub most_inodes: usize,
}

impl FsConfig {
    /// Opens `/proc/self/fd`, to be called while `/proc` is still there.
    ///
    /// # Errors
    /// What `open` returned.
    pub fn open_descriptor_directory() -> std::io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(rustix::fs::open(c"/proc/self/fd", flags, Mode::empty())?)
    }
}

/// Why the file system cannot be shared.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// The descriptor is not a directory's.
    #[error("the share is a {0:?}; give a directory")]
    NotADirectory(FileType),
    /// The share cannot be examined.
    #[error("cannot read the share's attributes: {0}")]
    Root(#[source] Errno),
    /// The way to reopen files is not there.
    #[error(
        "the descriptor given for /proc/self/fd is not that of this process ({0}); open it after the last fork"
    )]
    DescriptorDirectory(#[source] Errno),
    /// The tag does not fit.
    #[error("the tag {0:?} has {1} bytes; 1 to 36 fit")]
    Tag(String, usize),
    /// The thread cannot be readied.
    #[error(
        "cannot ready the file system's thread to act as the guest's users: {0}; CAP_SETPCAP is needed where CAP_SETUID is held"
    )]
    Credentials(#[source] Errno),
    /// The host refused something else.
    #[error("{0}: {1}")]
    Host(&'static str, #[source] std::io::Error),
}

/// The shared file system as one thread serves it.
#[derive(Debug)]
pub(super) struct FileSystem {
    pub(super) inodes: InodeStore,
    pub(super) handles: HandleStore,
    pub(super) implicit_files: ImplicitFiles,
    /// Of these, the files that are closed when the present request ends.
    open_for_request: Vec<u64>,
    pub(super) directory_buffer: DirectoryBuffer,
    pub(super) descriptors: DescriptorDirectory,
    pub(super) cache_policy: CachePolicy,
    pub(super) credentials: Credentials,
    pub(super) io_vectors: Vec<libc::iovec>,
    pub(super) session: Session,
    pub(super) writeback_allowed: bool,
    pub(super) implicit_opens: bool,
}

/// What was agreed on at mount.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Session {
    /// Directories on other mounts are announced as such.
    pub(super) submounts: bool,
    /// The guest delays writes.
    pub(super) writeback: bool,
    /// `SETXATTR` has its long form.
    pub(super) long_setxattr: bool,
}

impl FileSystem {
    /// Readies the calling thread to serve `config`'s directory. The thread's working directory becomes
    /// `/proc/self/fd`, its umask and credentials are the file system's from now on.
    ///
    /// # Errors
    /// See [`FsError`].
    pub(super) fn new(config: FsConfig, budget: DescriptorBudget) -> Result<Self, FsError> {
        let status = Status::of(&config.root).map_err(FsError::Root)?;
        if status.file_type != FileType::Directory {
            return Err(FsError::NotADirectory(status.file_type));
        }
        let descriptors =
            DescriptorDirectory::new(config.descriptor_directory).map_err(FsError::DescriptorDirectory)?;
        let credentials = Credentials::for_this_thread().map_err(FsError::Credentials)?;
        // Extended attributes are reached by a relative name, since there is no getxattr for an O_PATH descriptor.
        rustix::process::fchdir(descriptors.as_fd()).map_err(FsError::DescriptorDirectory)?;
        let place = config.cache_policy.root();
        let inodes = InodeStore::new(config.most_inodes, budget.inodes, config.root, &status, place)
            .map_err(FsError::Root)?;
        Ok(Self {
            inodes,
            handles: HandleStore::new(budget.handles),
            implicit_files: ImplicitFiles::new(budget.handles.min(MOST_IMPLICIT_FILES)),
            open_for_request: Vec::new(),
            directory_buffer: DirectoryBuffer::new(),
            descriptors,
            cache_policy: config.cache_policy,
            credentials,
            io_vectors: Vec::new(),
            session: Session::default(),
            writeback_allowed: config.writeback,
            implicit_opens: config.implicit_opens,
        })
    }

    /// Forgets everything that the guest knew.
    pub(super) fn begin_session(&mut self) {
        self.handles.clear();
        self.implicit_files.clear();
        self.directory_buffer.forget();
        self.inodes.forget_all();
        self.session = Session::default();
    }

    /// The open file that a request means: that with this handle, or that of `node` where opens go unannounced.
    ///
    /// # Errors
    /// `EBADF` or `EISDIR` for a handle that is not an open file's; `EINVAL` or `EISDIR` for an inode that is not a
    /// regular file; else what the host returned.
    pub(super) fn open_file(
        &mut self,
        node: u64,
        handle: u64,
        access: Access,
    ) -> Result<&mut OpenFile, Errno> {
        if handle != 0 || !self.implicit_opens {
            return self.handles.file(handle);
        }
        if self.implicit_files.get(node, access).is_none() {
            self.open_implicitly(node, access)?;
        }
        self.implicit_files.get(node, access).ok_or(Errno::BADF)
    }

    fn open_implicitly(&mut self, node: u64, access: Access) -> Result<(), Errno> {
        match self.inodes.peek(node)?.file_type() {
            FileType::RegularFile => {}
            FileType::Directory => return Err(Errno::ISDIR),
            _ => return Err(Errno::INVAL),
        }
        let flags = flags_for(access);
        let descriptor = self.open_node(node, flags)?;
        self.keep_open(node, OpenFile::new(descriptor, flags))
    }

    /// Keeps the file of `node` open: until it is forgotten where the guest alone uses it, for this request where the
    /// host does, too. It might want to run a program that the guest has just written.
    pub(super) fn keep_open(&mut self, node: u64, file: OpenFile) -> Result<(), Errno> {
        if !self.cache_policy.inode(self.inodes.peek(node)?.place()).keep_contents {
            self.open_for_request.push(node);
        }
        self.implicit_files.insert(node, file).map(drop)
    }

    /// Ends a request: what was only open for it is closed.
    pub(super) fn end_request(&mut self) {
        for node in self.open_for_request.drain(..) {
            self.implicit_files.remove(node);
        }
    }

    /// The open directory with this handle, with its descriptor.
    ///
    /// # Errors
    /// `EBADF` or `ENOTDIR` for a handle that is not an open directory's; where it had been closed, what opening it again
    /// returned: `ESTALE` for one that the host has moved away.
    pub(super) fn open_directory(&mut self, handle: u64) -> Result<&mut DirectoryStream, Errno> {
        let stream = self.handles.directory(handle)?;
        if !stream.is_open() {
            let node = stream.node();
            let descriptor = self.open_node(node, OFlags::RDONLY | OFlags::DIRECTORY)?;
            self.handles.directory(handle)?.reopen(descriptor);
            // What it holds of this directory may not be what comes next.
            self.directory_buffer.forget();
        }
        self.handles.directory_is_used(handle);
        self.handles.directory(handle)
    }

    /// Opens a regular file or directory that the guest knows anew.
    ///
    /// # Errors
    /// `EINVAL` for anything else than a regular file or a directory; `ESTALE` for an unknown number; else what `open`
    /// returned.
    pub(super) fn open_node(&mut self, node: u64, flags: OFlags) -> Result<OwnedFd, Errno> {
        let inode = self.inodes.get(node)?;
        match inode.file_type() {
            FileType::RegularFile | FileType::Directory => self.descriptors.reopen(inode.as_fd(), flags),
            _ => Err(Errno::INVAL),
        }
    }
}
