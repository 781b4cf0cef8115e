//! From the bytes of a request to the bytes of its reply.

use std::ffi::CStr;

use rustix::io::Errno;

use super::buffers::{Buffers, Segments};
use super::file_system::{FileSystem, FsConfig, FsError};
use super::limits::{DescriptorBudget, NAME_BYTES, PATH_BYTES, REQUEST_BYTES, XATTR_BYTES};
use super::operations::{Caller, Listing, Xattr};
use super::wire::{
    AccessIn, BatchForgetIn, CopyFileRangeIn, CreateIn, FallocateIn, ForgetIn, ForgetOne, FsyncIn,
    GetxattrIn, GetxattrOut, InHeader, InitIn, LinkIn, LseekIn, LseekOut, MkdirIn, MknodIn, Opcode, OpenIn,
    OutHeader, ReadIn, ReleaseIn, Rename2In, RenameIn, SETXATTR_IN_SHORT, SetattrIn, SetxattrIn, StatxIn,
    Truncated, Wire, WriteIn, WriteOut,
};

/// The most names that one READDIR returns, in bytes.
const LISTING_BYTES: usize = 128 * 1024;

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// The reply has this many bytes.
    Reply(u32),
    /// There is no reply: the request has none, or there was no room for one.
    NoReply,
}

/// A FUSE server for one directory. It belongs to the thread that made it.
#[derive(Debug)]
pub struct Server {
    file_system: FileSystem,
    request: Vec<u8>,
    reply: Vec<u8>,
}

/// What an operation leaves behind.
enum Answer {
    /// The reply's body has been built.
    Body,
    /// This many bytes of body lie in the guest's memory already.
    InPlace(usize),
    /// There is no reply.
    None,
}

impl Server {
    /// A server for `config`'s directory that holds no more than `budget` allows, on the calling thread: see [`FsConfig`]
    /// and [`Credentials::for_this_thread`](super::credentials::Credentials::for_this_thread) for what happens to the
    /// thread.
    ///
    /// # Errors
    /// See [`FsError`].
    pub fn new(config: FsConfig, budget: DescriptorBudget) -> Result<Self, FsError> {
        let file_system = FileSystem::new(config, budget)?;
        Ok(Self { file_system, request: Vec::new(), reply: Vec::new() })
    }

    /// How many inodes the guest holds, the root included.
    pub fn inodes(&self) -> usize {
        self.file_system.inodes.len()
    }

    /// How many descriptors are held to reach them.
    pub fn inode_descriptors(&self) -> usize {
        self.file_system.inodes.descriptors()
    }

    /// How many files and directories the guest has open.
    pub fn handles(&self) -> usize {
        self.file_system.handles.len() + self.file_system.implicit_files.len()
    }

    /// How many directories are open on the host.
    pub fn open_directories(&self) -> usize {
        self.file_system.handles.open_directories()
    }

    /// Serves one request: reads it from `buffers.readable`, does what it says and writes the reply to
    /// `buffers.writable`.
    pub fn serve(&mut self, buffers: &Buffers<'_>) -> Served {
        let mut bytes = [0; InHeader::SIZE];
        if buffers.readable.copy_to(0, &mut bytes) < bytes.len() {
            return Served::NoReply;
        }
        let Ok(header) = InHeader::take(&mut bytes.as_slice()) else { return Served::NoReply };
        // The reply is put together behind the room for its header.
        self.reply.clear();
        self.reply.resize(OutHeader::SIZE, 0);
        let answer = self.run(&header, buffers);
        self.file_system.end_request();
        let answer = match answer {
            Ok(Answer::Body) if self.reply.len() > buffers.writable.len() => Err(Errno::INVAL),
            answer => answer,
        };
        match answer {
            Ok(Answer::None) => Served::NoReply,
            Ok(Answer::Body) => self.send(header.unique, 0, 0, &buffers.writable),
            Ok(Answer::InPlace(length)) => {
                self.reply.truncate(OutHeader::SIZE);
                self.send(header.unique, 0, length, &buffers.writable)
            }
            Err(error) => {
                self.reply.truncate(OutHeader::SIZE);
                self.send(header.unique, -error.raw_os_error(), 0, &buffers.writable)
            }
        }
    }

    /// Lets go of everything that the guest has open and forgets everything that it knew.
    pub fn end_session(&mut self) {
        self.file_system.begin_session();
    }

    /// Writes the reply, of whose body `in_place` bytes lie where they belong.
    fn send(&mut self, unique: u64, error: i32, in_place: usize, writable: &Segments<'_>) -> Served {
        let Ok(length) = u32::try_from(self.reply.len() + in_place) else { return Served::NoReply };
        if self.reply.len() > writable.len() {
            return Served::NoReply;
        }
        OutHeader { length, error, unique }.put_over(&mut self.reply);
        writable.copy_from(0, &self.reply);
        Served::Reply(length)
    }

    fn run(&mut self, header: &InHeader, buffers: &Buffers<'_>) -> Result<Answer, Errno> {
        self.file_system.inodes.begin_request();
        let Some(opcode) = Opcode::from_number(header.opcode) else { return Err(Errno::NOSYS) };
        let length = usize::try_from(header.length).unwrap_or(usize::MAX);
        if length < InHeader::SIZE || length > buffers.readable.len() {
            return without_reply(opcode, Errno::INVAL);
        }
        if opcode == Opcode::Write {
            return self.write(header.node, length, buffers);
        }
        let length = (length - InHeader::SIZE)
            .checked_sub(usize::from(header.extension_length) * 8)
            .ok_or(Errno::INVAL)?;
        if length > REQUEST_BYTES {
            return without_reply(opcode, Errno::INVAL);
        }
        let mut request = std::mem::take(&mut self.request);
        request.resize(length, 0);
        buffers.readable.copy_to(InHeader::SIZE, &mut request);
        let answer = self.dispatch(opcode, header, Arguments { bytes: &request }, &buffers.writable);
        self.request = request;
        match answer {
            Err(error) => without_reply(opcode, error),
            answer => answer,
        }
    }

    fn write(&mut self, node: u64, length: usize, buffers: &Buffers<'_>) -> Result<Answer, Errno> {
        let mut bytes = [0; WriteIn::SIZE];
        let begin = InHeader::SIZE + WriteIn::SIZE;
        if length < begin {
            return Err(Errno::INVAL);
        }
        buffers.readable.copy_to(InHeader::SIZE, &mut bytes);
        let request = WriteIn::take(&mut bytes.as_slice())?;
        if usize::try_from(request.size).unwrap_or(usize::MAX) > length - begin {
            return Err(Errno::INVAL);
        }
        let written = self.file_system.write(node, &request, &buffers.readable, begin)?;
        let size = u32::try_from(written).map_err(|_| Errno::IO)?;
        self.body(&WriteOut { size, padding: 0 })
    }

    fn dispatch(
        &mut self,
        opcode: Opcode,
        header: &InHeader,
        arguments: Arguments<'_>,
        writable: &Segments<'_>,
    ) -> Result<Answer, Errno> {
        match opcode {
            Opcode::Init | Opcode::Destroy | Opcode::Forget | Opcode::BatchForget | Opcode::Interrupt => {
                self.dispatch_session(opcode, header, arguments)
            }
            // A directory may have to be opened again.
            Opcode::Readdir | Opcode::Readdirplus | Opcode::Fsyncdir => {
                self.file_system.credentials.prefer(header.uid, header.gid);
                self.dispatch_open_file(opcode, header, arguments, writable)
            }
            Opcode::Read
            | Opcode::Release
            | Opcode::Releasedir
            | Opcode::Fsync
            | Opcode::Fallocate
            | Opcode::Lseek
            | Opcode::CopyFileRange => self.dispatch_open_file(opcode, header, arguments, writable),
            Opcode::Getxattr | Opcode::Setxattr | Opcode::Listxattr | Opcode::Removexattr => {
                self.file_system.credentials.prefer(header.uid, header.gid);
                self.dispatch_xattr(opcode, header, arguments)
            }
            Opcode::Lookup
            | Opcode::Symlink
            | Opcode::Mknod
            | Opcode::Mkdir
            | Opcode::Unlink
            | Opcode::Rmdir
            | Opcode::Rename
            | Opcode::Rename2
            | Opcode::Link
            | Opcode::Create
            | Opcode::Tmpfile => {
                self.file_system.credentials.prefer(header.uid, header.gid);
                self.dispatch_name(opcode, header, arguments)
            }
            Opcode::Getattr
            | Opcode::Setattr
            | Opcode::Statx
            | Opcode::Readlink
            | Opcode::Open
            | Opcode::Opendir
            | Opcode::Statfs
            | Opcode::Syncfs
            | Opcode::Access => {
                self.file_system.credentials.prefer(header.uid, header.gid);
                self.dispatch_inode(opcode, header, arguments)
            }
            Opcode::Ioctl => Err(Errno::NOTTY),
            // Locks are the guest's own, and nothing happens here when a descriptor of an open file is closed.
            Opcode::Flush | Opcode::Getlk | Opcode::Setlk | Opcode::Setlkw => Err(Errno::NOSYS),
            Opcode::Write
            | Opcode::Bmap
            | Opcode::Poll
            | Opcode::NotifyReply
            | Opcode::Setupmapping
            | Opcode::Removemapping => Err(Errno::NOSYS),
        }
    }

    fn dispatch_session(
        &mut self,
        opcode: Opcode,
        header: &InHeader,
        mut arguments: Arguments<'_>,
    ) -> Result<Answer, Errno> {
        match opcode {
            Opcode::Init => {
                let reply = self.file_system.init(&arguments.take::<InitIn>()?)?;
                self.body(&reply)
            }
            Opcode::Destroy => {
                self.file_system.destroy();
                Ok(Answer::Body)
            }
            Opcode::Forget => {
                self.file_system.forget(header.node, arguments.take::<ForgetIn>()?.lookups);
                Ok(Answer::None)
            }
            Opcode::BatchForget => {
                // As many as are there, whatever the count says.
                for _ in 0..arguments.take::<BatchForgetIn>()?.count {
                    let one = arguments.take::<ForgetOne>()?;
                    self.file_system.forget(one.node, one.lookups);
                }
                Ok(Answer::None)
            }
            // No request waits for anything but the host's files.
            _ => Ok(Answer::None),
        }
    }

    fn dispatch_inode(
        &mut self,
        opcode: Opcode,
        header: &InHeader,
        mut arguments: Arguments<'_>,
    ) -> Result<Answer, Errno> {
        let files = &mut self.file_system;
        let node = header.node;
        match opcode {
            Opcode::Getattr => files.getattr(node)?.put(&mut self.reply),
            Opcode::Setattr => files.setattr(node, &arguments.take::<SetattrIn>()?)?.put(&mut self.reply),
            Opcode::Statx => files.statx(node, arguments.take::<StatxIn>()?.statx_mask)?.put(&mut self.reply),
            Opcode::Readlink => files.readlink(node, &mut self.reply)?,
            Opcode::Open => files.open(node, &arguments.take::<OpenIn>()?)?.put(&mut self.reply),
            Opcode::Opendir => files.opendir(node)?.put(&mut self.reply),
            Opcode::Statfs => files.statfs(node)?.put(&mut self.reply),
            Opcode::Syncfs => files.syncfs(node)?,
            _ => files.access(node, arguments.take::<AccessIn>()?.mask, caller(header))?,
        }
        Ok(Answer::Body)
    }

    fn dispatch_name(
        &mut self,
        opcode: Opcode,
        header: &InHeader,
        mut arguments: Arguments<'_>,
    ) -> Result<Answer, Errno> {
        let files = &mut self.file_system;
        let parent = header.node;
        let caller = caller(header);
        let entry = match opcode {
            Opcode::Lookup => files.lookup(parent, arguments.name()?)?,
            Opcode::Symlink => {
                let name = arguments.name()?;
                files.symlink(parent, name, arguments.text(PATH_BYTES - 1)?, caller)?
            }
            Opcode::Mknod => {
                let request = arguments.take::<MknodIn>()?;
                files.mknod(parent, arguments.name()?, &request, caller)?
            }
            Opcode::Mkdir => {
                let request = arguments.take::<MkdirIn>()?;
                files.mkdir(parent, arguments.name()?, &request, caller)?
            }
            Opcode::Link => {
                let request = arguments.take::<LinkIn>()?;
                files.link(request.old_node, parent, arguments.name()?)?
            }
            Opcode::Create | Opcode::Tmpfile => {
                let request = arguments.take::<CreateIn>()?;
                let (entry, open) = match opcode {
                    Opcode::Create => files.create(parent, arguments.name()?, &request, caller)?,
                    _ => files.tmpfile(parent, &request, caller)?,
                };
                entry.put(&mut self.reply);
                open.put(&mut self.reply);
                return Ok(Answer::Body);
            }
            _ => return self.dispatch_removal(opcode, header, arguments),
        };
        self.body(&entry)
    }

    fn dispatch_removal(
        &mut self,
        opcode: Opcode,
        header: &InHeader,
        mut arguments: Arguments<'_>,
    ) -> Result<Answer, Errno> {
        let files = &mut self.file_system;
        let parent = header.node;
        match opcode {
            Opcode::Unlink => files.unlink(parent, arguments.name()?)?,
            Opcode::Rmdir => files.rmdir(parent, arguments.name()?)?,
            _ => {
                let (new_parent, flags) = match opcode {
                    Opcode::Rename => (arguments.take::<RenameIn>()?.new_directory, 0),
                    _ => {
                        let request = arguments.take::<Rename2In>()?;
                        (request.new_directory, request.flags)
                    }
                };
                let old = (parent, arguments.name()?);
                files.rename(old, (new_parent, arguments.name()?), flags, caller(header))?;
            }
        }
        Ok(Answer::Body)
    }

    fn dispatch_open_file(
        &mut self,
        opcode: Opcode,
        header: &InHeader,
        mut arguments: Arguments<'_>,
        writable: &Segments<'_>,
    ) -> Result<Answer, Errno> {
        let files = &mut self.file_system;
        match opcode {
            Opcode::Read => {
                let request = arguments.take::<ReadIn>()?;
                return files.read(header.node, &request, writable, OutHeader::SIZE).map(Answer::InPlace);
            }
            Opcode::Readdir | Opcode::Readdirplus => {
                let request = arguments.take::<ReadIn>()?;
                let room = writable.len().saturating_sub(OutHeader::SIZE).min(LISTING_BYTES);
                let listing = match opcode {
                    Opcode::Readdir => Listing::Names,
                    _ => Listing::Entries,
                };
                files.readdir(header.node, &request, listing, room, &mut self.reply)?;
            }
            Opcode::Release => files.release(arguments.take::<ReleaseIn>()?.handle)?,
            Opcode::Releasedir => files.releasedir(arguments.take::<ReleaseIn>()?.handle)?,
            Opcode::Fsync => files.fsync(header.node, &arguments.take::<FsyncIn>()?)?,
            Opcode::Fsyncdir => files.fsyncdir(&arguments.take::<FsyncIn>()?)?,
            Opcode::Fallocate => files.fallocate(header.node, &arguments.take::<FallocateIn>()?)?,
            Opcode::Lseek => {
                let offset = files.lseek(header.node, &arguments.take::<LseekIn>()?)?;
                LseekOut { offset }.put(&mut self.reply);
            }
            _ => {
                let size = files.copy_file_range(header.node, &arguments.take::<CopyFileRangeIn>()?)?;
                WriteOut { size, padding: 0 }.put(&mut self.reply);
            }
        }
        Ok(Answer::Body)
    }

    fn dispatch_xattr(
        &mut self,
        opcode: Opcode,
        header: &InHeader,
        mut arguments: Arguments<'_>,
    ) -> Result<Answer, Errno> {
        let files = &mut self.file_system;
        let node = header.node;
        let xattr = match opcode {
            Opcode::Setxattr => {
                let request = match files.session.long_setxattr {
                    true => arguments.take::<SetxattrIn>()?,
                    false => arguments.take_short_setxattr()?,
                };
                let name = arguments.text(NAME_BYTES)?;
                let value = arguments.value(request.size)?;
                files.setxattr(node, name, value, &request)?;
                return Ok(Answer::Body);
            }
            Opcode::Removexattr => {
                files.removexattr(node, arguments.text(NAME_BYTES)?)?;
                return Ok(Answer::Body);
            }
            Opcode::Getxattr => {
                let room = arguments.take::<GetxattrIn>()?.size;
                files.getxattr(node, arguments.text(NAME_BYTES)?, room_for(room), &mut self.reply)?
            }
            _ => files.listxattr(node, room_for(arguments.take::<GetxattrIn>()?.size), &mut self.reply)?,
        };
        match xattr {
            Xattr::Value => Ok(Answer::Body),
            Xattr::Length(length) => {
                let size = u32::try_from(length).map_err(|_| Errno::TOOBIG)?;
                self.body(&GetxattrOut { size, padding: 0 })
            }
        }
    }

    fn body(&mut self, body: &impl Wire) -> Result<Answer, Errno> {
        body.put(&mut self.reply);
        Ok(Answer::Body)
    }
}

/// An error where there can be a reply, nothing where the protocol has none.
fn without_reply(opcode: Opcode, error: Errno) -> Result<Answer, Errno> {
    match opcode {
        Opcode::Forget | Opcode::BatchForget | Opcode::Interrupt => Ok(Answer::None),
        _ => Err(error),
    }
}

fn caller(header: &InHeader) -> Caller {
    Caller { uid: header.uid, gid: header.gid }
}

fn room_for(size: u32) -> usize {
    usize::try_from(size).unwrap_or(usize::MAX)
}

impl From<Truncated> for Errno {
    fn from(_: Truncated) -> Self {
        Self::INVAL
    }
}

/// What follows a request's header, taken apart from front to back.
struct Arguments<'a> {
    bytes: &'a [u8],
}

impl<'a> Arguments<'a> {
    fn take<T: Wire>(&mut self) -> Result<T, Errno> {
        Ok(T::take(&mut self.bytes)?)
    }

    fn take_short_setxattr(&mut self) -> Result<SetxattrIn, Errno> {
        let (size, flags) = (self.take::<u32>()?, self.take::<u32>()?);
        const { assert!(SETXATTR_IN_SHORT == 2 * u32::SIZE) };
        Ok(SetxattrIn { size, flags, ..SetxattrIn::default() })
    }

    /// A text that ends with a NUL and has at most `limit` bytes before it.
    fn text(&mut self, limit: usize) -> Result<&'a CStr, Errno> {
        let text = CStr::from_bytes_until_nul(self.bytes).map_err(|_| Errno::INVAL)?;
        let length = text.count_bytes();
        self.bytes = self.bytes.get(length + 1..).unwrap_or_default();
        match length {
            0 => Err(Errno::INVAL),
            length if length > limit => Err(Errno::NAMETOOLONG),
            _ => Ok(text),
        }
    }

    /// The name of an entry in a directory: one component, and neither the directory itself nor its parent.
    fn name(&mut self) -> Result<&'a CStr, Errno> {
        let name = self.text(NAME_BYTES)?;
        match name.to_bytes() {
            b"." | b".." => Err(Errno::INVAL),
            bytes if bytes.contains(&b'/') => Err(Errno::INVAL),
            _ => Ok(name),
        }
    }

    /// The value of an extended attribute.
    fn value(&mut self, size: u32) -> Result<&'a [u8], Errno> {
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        if size > XATTR_BYTES {
            return Err(Errno::TOOBIG);
        }
        self.bytes.get(..size).ok_or(Errno::INVAL)
    }
}
