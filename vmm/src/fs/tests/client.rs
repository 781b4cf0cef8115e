//! A FUSE client.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use tempfile::TempDir;
use vm_memory::VolatileSlice;

use crate::fs::buffers::Buffers;
use crate::fs::wire::{
    AttributesOut, CreateIn, EntryOut, ForgetIn, GetattrIn, InHeader, InitFlags, InitIn, InitOut, MkdirIn,
    MknodIn, Opcode, OpenIn, OpenOut, OutHeader, ROOT_ID, ReadIn, ReleaseIn, Rename2In, SetattrIn, Wire,
    WriteIn, WriteOut,
};
use crate::fs::{CachePolicy, Caching, DescriptorBudget, FsConfig, Served, Server};

/// An errno.
pub(super) type Error = i32;

/// How the server of a test is set up.
#[derive(Clone, Copy)]
pub(super) struct Setup {
    pub(super) policy: CachePolicy,
    pub(super) budget: DescriptorBudget,
    pub(super) most_inodes: usize,
    pub(super) writeback: bool,
    pub(super) implicit_opens: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            policy: CachePolicy::uniform(Caching::NONE),
            budget: DescriptorBudget { inodes: 100, handles: 20 },
            most_inodes: 1000,
            writeback: false,
            implicit_opens: false,
        }
    }
}

/// A mounted client and the directory that its server shares.
pub(super) struct Client {
    pub(super) server: Server,
    pub(super) negotiated: InitOut,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) room: usize,
    scratch: TempDir,
}

/// Runs `test` with a client, on a thread of its own: the server changes its thread's credentials.
pub(super) fn with_client(test: impl FnOnce(&mut Client) + Send + 'static) {
    with_setup(Setup::default(), test);
}

/// The same with a server of another set-up.
pub(super) fn with_setup(setup: Setup, test: impl FnOnce(&mut Client) + Send + 'static) {
    let thread = std::thread::spawn(move || test(&mut Client::new(setup)));
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

impl Client {
    fn new(setup: Setup) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let share = scratch.path().join("share");
        std::fs::create_dir(&share).unwrap();
        let config = FsConfig {
            root: rustix::fs::open(&share, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap(),
            descriptor_directory: FsConfig::open_descriptor_directory().unwrap(),
            tag: "share".into(),
            cache_policy: setup.policy,
            writeback: setup.writeback,
            implicit_opens: setup.implicit_opens,
            most_inodes: setup.most_inodes,
        };
        let mut client = Self {
            server: Server::new(config, setup.budget).unwrap(),
            negotiated: InitOut::default(),
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            room: 1 << 17,
            scratch,
        };
        client.mount();
        client
    }

    pub(super) fn mount(&mut self) {
        let flags = InitFlags::all().bits() as u32;
        let init = InitIn { major: 7, minor: 38, max_readahead: 1 << 17, flags };
        self.negotiated = self.ask(Opcode::Init, 0, &init, b"").unwrap();
    }

    /// A path in the share, as the host has it.
    pub(super) fn host(&self, path: impl AsRef<Path>) -> PathBuf {
        self.scratch.path().join("share").join(path)
    }

    /// A path beside the share, which no request must reach.
    pub(super) fn outside(&self, path: impl AsRef<Path>) -> PathBuf {
        self.scratch.path().join(path)
    }

    /// Sends raw bytes and returns the raw reply.
    pub(super) fn send(&mut self, request: &mut [u8]) -> Vec<u8> {
        let mut reply = vec![0xee; self.room];
        let mut buffers = Buffers::new();
        buffers.readable.push(VolatileSlice::from(request));
        buffers.writable.push(VolatileSlice::from(reply.as_mut_slice()));
        let served = self.server.serve(&buffers);
        drop(buffers);
        match served {
            Served::Reply(length) => reply.truncate(length as usize),
            Served::NoReply => reply.clear(),
        }
        reply
    }

    /// Sends a request and returns the reply's body, or its error.
    pub(super) fn call(&mut self, opcode: Opcode, node: u64, body: &[u8]) -> Result<Vec<u8>, Error> {
        let header = InHeader {
            length: (InHeader::SIZE + body.len()) as u32,
            opcode: opcode.number(),
            unique: 77,
            node,
            uid: self.uid,
            gid: self.gid,
            pid: 1,
            ..InHeader::default()
        };
        let mut request = Vec::new();
        header.put(&mut request);
        request.extend_from_slice(body);
        let reply = self.send(&mut request);
        if reply.is_empty() {
            return Ok(reply);
        }
        let mut rest = reply.as_slice();
        let header = OutHeader::take(&mut rest).unwrap();
        assert_eq!(header.unique, 77);
        assert_eq!(header.length as usize, reply.len());
        match header.error {
            0 => Ok(rest.to_vec()),
            error => {
                assert!(rest.is_empty(), "an error has no body");
                Err(-error)
            }
        }
    }

    /// Sends a structure and what follows it, and reads a structure.
    pub(super) fn ask<O: Wire>(
        &mut self,
        opcode: Opcode,
        node: u64,
        request: &impl Wire,
        tail: &[u8],
    ) -> Result<O, Error> {
        let mut body = Vec::new();
        request.put(&mut body);
        body.extend_from_slice(tail);
        let reply = self.call(opcode, node, &body)?;
        let mut rest = reply.as_slice();
        let out = O::take(&mut rest).unwrap();
        assert!(rest.is_empty(), "{opcode:?} left {} bytes", rest.len());
        Ok(out)
    }

    /// Sends a structure and what follows it, and expects an empty reply.
    pub(super) fn tell(
        &mut self,
        opcode: Opcode,
        node: u64,
        request: &impl Wire,
        tail: &[u8],
    ) -> Result<(), Error> {
        let mut body = Vec::new();
        request.put(&mut body);
        body.extend_from_slice(tail);
        self.call(opcode, node, &body).map(|reply| assert!(reply.is_empty(), "{opcode:?}: {reply:?}"))
    }

    pub(super) fn lookup(&mut self, parent: u64, name: impl AsRef<[u8]>) -> Result<EntryOut, Error> {
        let reply = self.call(Opcode::Lookup, parent, &text(name.as_ref()))?;
        Ok(EntryOut::take(&mut reply.as_slice()).unwrap())
    }

    /// Looks up a path from the root.
    pub(super) fn walk(&mut self, path: impl AsRef<Path>) -> Result<EntryOut, Error> {
        let mut entry = EntryOut { node: ROOT_ID, ..EntryOut::default() };
        for name in path.as_ref() {
            entry = self.lookup(entry.node, name.as_bytes())?;
        }
        Ok(entry)
    }

    pub(super) fn forget(&mut self, node: u64, lookups: u64) {
        self.tell(Opcode::Forget, node, &ForgetIn { lookups }, b"").unwrap();
    }

    pub(super) fn getattr(&mut self, node: u64) -> Result<AttributesOut, Error> {
        self.ask(Opcode::Getattr, node, &GetattrIn::default(), b"")
    }

    pub(super) fn setattr(&mut self, node: u64, request: SetattrIn) -> Result<AttributesOut, Error> {
        self.ask(Opcode::Setattr, node, &request, b"")
    }

    pub(super) fn mkdir(&mut self, parent: u64, name: &str) -> Result<EntryOut, Error> {
        self.ask(Opcode::Mkdir, parent, &MkdirIn { mode: 0o755, umask: 0 }, &text(name.as_bytes()))
    }

    pub(super) fn mknod(
        &mut self,
        parent: u64,
        name: &str,
        mode: u32,
        device: u32,
    ) -> Result<EntryOut, Error> {
        let request = MknodIn { mode, device, umask: 0, padding: 0 };
        self.ask(Opcode::Mknod, parent, &request, &text(name.as_bytes()))
    }

    pub(super) fn symlink(&mut self, parent: u64, name: &str, target: &str) -> Result<EntryOut, Error> {
        let body = [text(name.as_bytes()), text(target.as_bytes())].concat();
        let reply = self.call(Opcode::Symlink, parent, &body)?;
        Ok(EntryOut::take(&mut reply.as_slice()).unwrap())
    }

    pub(super) fn unlink(&mut self, parent: u64, name: &str) -> Result<(), Error> {
        self.call(Opcode::Unlink, parent, &text(name.as_bytes())).map(drop)
    }

    pub(super) fn rename(&mut self, old: (u64, &str), new: (u64, &str), flags: u32) -> Result<(), Error> {
        let names = [text(old.1.as_bytes()), text(new.1.as_bytes())].concat();
        let request = Rename2In { new_directory: new.0, flags, padding: 0 };
        self.tell(Opcode::Rename2, old.0, &request, &names)
    }

    pub(super) fn open(&mut self, node: u64, flags: OFlags) -> Result<OpenOut, Error> {
        self.ask(Opcode::Open, node, &OpenIn { flags: flags.bits(), open_flags: 0 }, b"")
    }

    pub(super) fn create(
        &mut self,
        parent: u64,
        name: &str,
        flags: OFlags,
        mode: u32,
        umask: u32,
    ) -> Result<(EntryOut, OpenOut), Error> {
        let mut body = Vec::new();
        CreateIn { flags: flags.bits(), mode: mode | libc::S_IFREG, umask, open_flags: 0 }.put(&mut body);
        body.extend(text(name.as_bytes()));
        let reply = self.call(Opcode::Create, parent, &body)?;
        let mut rest = reply.as_slice();
        Ok((EntryOut::take(&mut rest).unwrap(), OpenOut::take(&mut rest).unwrap()))
    }

    pub(super) fn release(&mut self, handle: u64) -> Result<(), Error> {
        self.tell(Opcode::Release, 0, &ReleaseIn { handle, ..ReleaseIn::default() }, b"")
    }

    pub(super) fn read(&mut self, handle: u64, offset: u64, size: u32) -> Result<Vec<u8>, Error> {
        let mut body = Vec::new();
        ReadIn { handle, offset, size, ..ReadIn::default() }.put(&mut body);
        self.call(Opcode::Read, 0, &body)
    }

    pub(super) fn write(&mut self, handle: u64, offset: u64, data: &[u8]) -> Result<u32, Error> {
        self.write_with(WriteIn { handle, offset, size: data.len() as u32, ..WriteIn::default() }, data)
    }

    pub(super) fn write_with(&mut self, request: WriteIn, data: &[u8]) -> Result<u32, Error> {
        Ok(self.ask::<WriteOut>(Opcode::Write, 0, &request, data)?.size)
    }
}

/// A text with its NUL.
pub(super) fn text(text: &[u8]) -> Vec<u8> {
    [text, b"\0"].concat()
}

/// Whether this process may act as any user.
pub(super) fn is_privileged() -> bool {
    rustix::process::geteuid().is_root()
}
