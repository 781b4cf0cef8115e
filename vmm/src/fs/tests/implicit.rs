//! Opens that the guest does not announce.

use rustix::fs::OFlags;

use super::client::{Client, Setup, with_setup};
use crate::fs::wire::{
    CopyFileRangeIn, FallocateIn, FsyncIn, InitFlags, Opcode, ROOT_ID, ReadIn, SetattrIn, SetattrValid, Wire,
    WriteIn, WriteOut,
};
use crate::fs::{CachePolicy, Caching, DescriptorBudget};

const FILES: usize = 4;

fn with_implicit_opens(test: impl FnOnce(&mut Client) + Send + 'static) {
    with_caching(Caching::EXCLUSIVE, test);
}

fn with_caching(caching: Caching, test: impl FnOnce(&mut Client) + Send + 'static) {
    let budget = DescriptorBudget { inodes: 100, handles: FILES };
    let policy = CachePolicy::uniform(caching);
    with_setup(Setup { implicit_opens: true, budget, policy, ..Setup::default() }, test);
}

fn read(client: &mut Client, node: u64, size: u32) -> Result<Vec<u8>, i32> {
    let mut body = Vec::new();
    ReadIn { size, ..ReadIn::default() }.put(&mut body);
    client.call(Opcode::Read, node, &body)
}

fn write(client: &mut Client, node: u64, data: &[u8], flags: OFlags) -> Result<u32, i32> {
    let request = WriteIn { size: data.len() as u32, flags: flags.bits(), ..WriteIn::default() };
    client.ask::<WriteOut>(Opcode::Write, node, &request, data).map(|out| out.size)
}

#[test]
fn the_guest_learns_that_opens_need_not_be_announced() {
    with_implicit_opens(|client| {
        std::fs::write(client.host("file"), b"data").unwrap();
        let node = client.lookup(ROOT_ID, "file").unwrap().node;
        assert_eq!(client.open(node, OFlags::RDONLY).unwrap_err(), libc::ENOSYS);
        let agreed = InitFlags::from_bits_retain(u64::from(client.negotiated.flags));
        assert!(!agreed.contains(InitFlags::ATOMIC_O_TRUNC), "no open could truncate");
    });
}

#[test]
fn a_file_is_read_written_and_resized_by_its_inode_alone() {
    with_implicit_opens(|client| {
        std::fs::write(client.host("file"), b"data").unwrap();
        let node = client.lookup(ROOT_ID, "file").unwrap().node;
        assert_eq!(read(client, node, 10).unwrap(), b"data");
        assert_eq!(write(client, node, b"DA", OFlags::WRONLY).unwrap(), 2);
        assert_eq!(read(client, node, 10).unwrap(), b"DAta");
        assert_eq!(write(client, node, b"+", OFlags::WRONLY | OFlags::APPEND).unwrap(), 1);
        assert_eq!(std::fs::read(client.host("file")).unwrap(), b"DAta+");
        let valid = (SetattrValid::SIZE | SetattrValid::FH).bits();
        client.setattr(node, SetattrIn { valid, size: 2, ..SetattrIn::default() }).unwrap();
        assert_eq!(read(client, node, 10).unwrap(), b"DA");
        client.tell(Opcode::Fsync, node, &FsyncIn::default(), b"").unwrap();
        let space = FallocateIn { length: 100, ..FallocateIn::default() };
        client.tell(Opcode::Fallocate, node, &space, b"").unwrap();
        assert_eq!(client.getattr(node).unwrap().attributes.size, 100);
        let copy =
            CopyFileRangeIn { node_out: node, offset_out: 100, length: 2, ..CopyFileRangeIn::default() };
        assert_eq!(client.ask::<WriteOut>(Opcode::CopyFileRange, node, &copy, b"").unwrap().size, 2);
        assert_eq!(client.server.handles(), 1);
    });
}

#[test]
fn a_file_is_not_opened_for_writing_before_it_is_written() {
    with_implicit_opens(|client| {
        std::fs::write(client.host("program"), b"").unwrap();
        let node = client.lookup(ROOT_ID, "program").unwrap().node;
        read(client, node, 10).unwrap();
        // A lease for writing is granted only while nobody has the file open for writing.
        let host = std::fs::File::open(client.host("program")).unwrap();
        assert_eq!(lease(&host), Ok(()));
        write(client, node, b"x", OFlags::WRONLY).unwrap();
        assert_eq!(lease(&host), Err(libc::EAGAIN));
        client.forget(node, 1);
        assert_eq!(client.server.handles(), 0);
        assert_eq!(lease(&host), Ok(()));
    });
}

/// Takes a read lease, which is refused while the file is open for writing anywhere, and gives it back.
fn lease(file: &std::fs::File) -> Result<(), i32> {
    use std::os::fd::AsRawFd;
    let set = |kind: libc::c_int| {
        // SAFETY: fcntl with F_SETLEASE has no memory effects.
        match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error().raw_os_error().unwrap()),
        }
    };
    set(libc::F_RDLCK)?;
    set(libc::F_UNLCK)
}

#[test]
fn a_file_that_the_host_uses_too_is_open_only_while_a_request_needs_it() {
    with_caching(Caching::SHARED, |client| {
        let (entry, _) = client.create(ROOT_ID, "program", OFlags::WRONLY, 0o755, 0).unwrap();
        assert_eq!(client.server.handles(), 0);
        write(client, entry.node, b"#!/bin/true", OFlags::WRONLY).unwrap();
        // The host can run it now: nobody has it open for writing.
        let host = std::fs::File::open(client.host("program")).unwrap();
        assert_eq!(lease(&host), Ok(()));
        assert_eq!(read(client, entry.node, 2).unwrap(), b"#!");
        write(client, entry.node, b"+", OFlags::WRONLY | OFlags::APPEND).unwrap();
        assert_eq!(read(client, entry.node, 20).unwrap(), b"#!/bin/true+");
        assert_eq!(client.server.handles(), 0);
    });
}

#[test]
fn a_created_file_needs_no_handle_and_no_release() {
    with_implicit_opens(|client| {
        let (entry, open) = client.create(ROOT_ID, "file", OFlags::WRONLY, 0o600, 0).unwrap();
        assert_eq!(open.handle, 0);
        write(client, entry.node, b"data", OFlags::WRONLY).unwrap();
        assert_eq!(read(client, entry.node, 10).unwrap(), b"data");
        client.unlink(ROOT_ID, "file").unwrap();
        assert_eq!(read(client, entry.node, 10).unwrap(), b"data");
        client.forget(entry.node, 1);
        assert_eq!(client.server.handles(), 0);
    });
}

#[test]
fn any_number_of_files_is_used_with_a_few_descriptors() {
    with_implicit_opens(|client| {
        let nodes: Vec<u64> = (0..5 * FILES)
            .map(|number| client.create(ROOT_ID, &number.to_string(), OFlags::RDWR, 0o600, 0).unwrap().0.node)
            .collect();
        for (number, node) in nodes.iter().enumerate() {
            write(client, *node, number.to_string().as_bytes(), OFlags::WRONLY).unwrap();
        }
        for (number, node) in nodes.iter().enumerate() {
            assert_eq!(read(client, *node, 10).unwrap(), number.to_string().as_bytes());
            assert!(client.server.handles() <= FILES);
        }
    });
}

#[test]
fn nothing_but_a_regular_file_is_opened() {
    with_implicit_opens(|client| {
        let fifo = client.mknod(ROOT_ID, "fifo", libc::S_IFIFO | 0o600, 0).unwrap().node;
        assert_eq!(read(client, fifo, 1).unwrap_err(), libc::EINVAL);
        assert_eq!(write(client, fifo, b"x", OFlags::WRONLY).unwrap_err(), libc::EINVAL);
        assert_eq!(read(client, ROOT_ID, 1).unwrap_err(), libc::EISDIR);
        assert_eq!(read(client, 12345, 1).unwrap_err(), libc::ESTALE);
    });
}
