use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{FlockOperation, OFlags};
use vm_memory::VolatileSlice;

use super::client::{Client, Setup, with_client, with_setup};
use crate::fs::buffers::{Buffers, Segments};
use crate::fs::wire::{
    FileLock, FlushIn, InHeader, InitFlags, LOCK_FLOCK, LockIn, LockOut, Opcode, OpenOutFlags, OutHeader,
    ROOT_ID, Wire,
};
use crate::fs::{DescriptorBudget, Served};

const READ: u32 = libc::F_RDLCK as u32;
const WRITE: u32 = libc::F_WRLCK as u32;
const UNLOCK: u32 = libc::F_UNLCK as u32;
const END: u64 = i64::MAX as u64;

fn with_locks(test: impl FnOnce(&mut Client) + Send + 'static) {
    let budget = DescriptorBudget { inodes: 100, handles: 5 };
    with_setup(Setup { remote_locks: true, budget, ..Setup::default() }, test);
}

fn posix(handle: u64, owner: u64, kind: u32, start: u64, end: u64) -> LockIn {
    LockIn { handle, owner, lock: FileLock { start, end, kind, pid: 1 }, flags: 0, padding: 0 }
}

fn flock(handle: u64, kind: u32) -> LockIn {
    LockIn { flags: LOCK_FLOCK, ..posix(handle, 1, kind, 0, END) }
}

/// A lock held by another process of the host, as far as the kernel can tell.
struct HostLock {
    _file: std::fs::File,
}

impl HostLock {
    fn take(client: &Client, name: &str) -> Self {
        let file = std::fs::File::options().read(true).write(true).open(client.host(name)).unwrap();
        crate::fs::lock_store::set(&file, &FileLock { start: 0, end: 9, kind: WRITE, pid: 0 }, false)
            .unwrap();
        Self { _file: file }
    }
}

#[test]
fn locks_are_the_guests_own_unless_the_host_is_to_see_them() {
    with_client(|client| {
        let agreed = InitFlags::from_bits_retain(u64::from(client.negotiated.flags));
        assert!(!agreed.intersects(InitFlags::POSIX_LOCKS | InitFlags::FLOCK_LOCKS));
        for opcode in [Opcode::Setlk, Opcode::Setlkw, Opcode::Getlk] {
            let error = client.tell(opcode, ROOT_ID, &posix(0, 1, READ, 0, END), b"").unwrap_err();
            assert_eq!(error, libc::ENOSYS, "{opcode:?}");
        }
        let (_, open) = client.create(ROOT_ID, "file", OFlags::RDWR, 0o600, 0).unwrap();
        assert!(OpenOutFlags::from_bits_retain(open.flags).contains(OpenOutFlags::NOFLUSH));
    });
    with_locks(|client| {
        let agreed = InitFlags::from_bits_retain(u64::from(client.negotiated.flags));
        assert!(agreed.contains(InitFlags::POSIX_LOCKS | InitFlags::FLOCK_LOCKS));
        let (_, open) = client.create(ROOT_ID, "file", OFlags::RDWR, 0o600, 0).unwrap();
        assert!(!OpenOutFlags::from_bits_retain(open.flags).contains(OpenOutFlags::NOFLUSH));
    });
}

#[test]
fn owners_exclude_each_other_by_ranges() {
    with_locks(|client| {
        let (entry, open) = client.create(ROOT_ID, "file", OFlags::RDWR, 0o600, 0).unwrap();
        let mut set = |owner, kind, start, end| {
            client.tell(Opcode::Setlk, entry.node, &posix(open.handle, owner, kind, start, end), b"")
        };
        set(1, WRITE, 0, 9).unwrap();
        set(1, READ, 0, 9).unwrap();
        set(1, WRITE, 0, 9).unwrap();
        assert_eq!(set(2, READ, 5, 20), Err(libc::EAGAIN));
        set(2, READ, 10, END).unwrap();
        assert_eq!(set(1, WRITE, 0, END), Err(libc::EAGAIN));
        set(1, UNLOCK, 5, 9).unwrap();
        set(2, READ, 5, 20).unwrap();
        assert_eq!(set(2, 7, 0, 1), Err(libc::EINVAL));
        assert_eq!(set(2, READ, 5, 4), Err(libc::EINVAL));
        assert_eq!(set(2, READ, 0, u64::MAX), Err(libc::EINVAL));
        let ask = posix(open.handle, 2, WRITE, 0, 9);
        let found: LockOut = client.ask(Opcode::Getlk, entry.node, &ask, b"").unwrap();
        assert_eq!((found.lock.kind, found.lock.start, found.lock.end), (WRITE, 0, 4));
        let ask = posix(open.handle, 3, READ, 10, END);
        let found: LockOut = client.ask(Opcode::Getlk, entry.node, &ask, b"").unwrap();
        assert_eq!(found.lock.kind, UNLOCK);
    });
}

#[test]
fn the_host_and_the_guest_see_each_others_locks() {
    with_locks(|client| {
        let (entry, open) = client.create(ROOT_ID, "file", OFlags::RDWR, 0o600, 0).unwrap();
        let held = HostLock::take(client, "file");
        let request = posix(open.handle, 1, WRITE, 0, END);
        assert_eq!(client.tell(Opcode::Setlk, entry.node, &request, b""), Err(libc::EAGAIN));
        drop(held);
        client.tell(Opcode::Setlk, entry.node, &request, b"").unwrap();
        let file = std::fs::File::options().read(true).write(true).open(client.host("file")).unwrap();
        let lock = FileLock { start: 3, end: 3, kind: READ, pid: 0 };
        assert_eq!(crate::fs::lock_store::test(&file, &lock).unwrap().kind, WRITE);
    });
}

#[test]
fn locks_go_with_their_owner_their_inode_and_their_session() {
    with_locks(|client| {
        std::fs::write(client.host("file"), b"").unwrap();
        for round in 0..4 {
            let node = client.lookup(ROOT_ID, "file").unwrap().node;
            let open = client.open(node, OFlags::RDWR).unwrap();
            client.tell(Opcode::Setlk, node, &posix(open.handle, 7, WRITE, 0, 5), b"").unwrap();
            match round {
                0 => client
                    .tell(Opcode::Flush, node, &FlushIn { lock_owner: 7, ..FlushIn::default() }, b"")
                    .unwrap(),
                1 => client.forget(node, u64::MAX),
                2 => client.tell(Opcode::Setlk, node, &posix(open.handle, 7, UNLOCK, 0, END), b"").unwrap(),
                _ => client.mount(),
            }
            drop(HostLock::take(client, "file"));
            let _ = client.release(open.handle);
        }
    });
}

#[test]
fn a_flock_belongs_to_the_open_file() {
    with_locks(|client| {
        let (entry, first) = client.create(ROOT_ID, "file", OFlags::RDWR, 0o600, 0).unwrap();
        let second = client.open(entry.node, OFlags::RDWR).unwrap();
        let mut set = |handle, kind| client.tell(Opcode::Setlk, entry.node, &flock(handle, kind), b"");
        set(first.handle, WRITE).unwrap();
        assert_eq!(set(second.handle, READ), Err(libc::EAGAIN));
        set(first.handle, READ).unwrap();
        set(second.handle, READ).unwrap();
        set(first.handle, UNLOCK).unwrap();
        set(second.handle, WRITE).unwrap();
        assert_eq!(set(first.handle, WRITE), Err(libc::EAGAIN));
        client.release(second.handle).unwrap();
        client.tell(Opcode::Setlk, entry.node, &flock(first.handle, WRITE), b"").unwrap();
        let file = std::fs::File::open(client.host("file")).unwrap();
        let operation = FlockOperation::NonBlockingLockShared;
        assert_eq!(rustix::fs::flock(file.as_fd(), operation).unwrap_err(), rustix::io::Errno::AGAIN);
    });
}

#[test]
fn lock_owners_are_bounded() {
    with_locks(|client| {
        let (entry, open) = client.create(ROOT_ID, "file", OFlags::RDWR, 0o600, 0).unwrap();
        let mut set =
            |owner| client.tell(Opcode::Setlk, entry.node, &posix(open.handle, owner, READ, 0, 5), b"");
        for owner in 0..5 {
            set(owner).unwrap();
        }
        assert_eq!(set(5), Err(libc::ENOLCK));
        set(4).unwrap();
    });
}

fn ask_to_wait(client: &mut Client, node: u64, request: &LockIn) -> Served {
    let mut bytes = Vec::new();
    let length = (InHeader::SIZE + LockIn::SIZE) as u32;
    InHeader { length, opcode: Opcode::Setlkw.number(), unique: 5, node, ..InHeader::default() }
        .put(&mut bytes);
    request.put(&mut bytes);
    let mut reply = [0; 16];
    let mut buffers = Buffers::new();
    buffers.readable.push(VolatileSlice::from(bytes.as_mut_slice()));
    buffers.writable.push(VolatileSlice::from(&mut reply[..]));
    client.server.serve(&buffers)
}

fn wait_for_reply(client: &mut Client, expected: Served) -> OutHeader {
    let ended = loop {
        let wakeup = client.server.wakeup();
        rustix::event::poll(&mut [PollFd::new(&wakeup, PollFlags::IN)], None).unwrap();
        if let Some(ended) = client.server.next_ended() {
            break ended;
        }
    };
    assert_eq!(Served::Waiting(ended.ticket), expected);
    let mut reply = [0; 16];
    let mut writable = Segments::new();
    writable.push(VolatileSlice::from(&mut reply[..]));
    assert_eq!(client.server.finish(&ended, &writable), Served::Reply(16));
    drop(writable);
    OutHeader::take(&mut reply.as_slice()).unwrap()
}

#[test]
fn a_request_that_waits_for_a_lock_holds_up_no_other() {
    with_locks(|client| {
        let (entry, open) = client.create(ROOT_ID, "file", OFlags::RDWR, 0o600, 0).unwrap();
        let held = HostLock::take(client, "file");
        let request = posix(open.handle, 1, WRITE, 0, END);
        let waiting = ask_to_wait(client, entry.node, &request);
        assert!(matches!(waiting, Served::Waiting(_)));
        assert!(client.getattr(entry.node).is_ok());
        assert!(client.server.next_ended().is_none());
        drop(held);
        let header = wait_for_reply(client, waiting);
        assert_eq!((header.error, header.unique, header.length), (0, 5, 16));
        // The lock is there now, and its owner's.
        let other = posix(open.handle, 2, READ, 0, 1);
        assert_eq!(client.tell(Opcode::Setlk, entry.node, &other, b""), Err(libc::EAGAIN));
        // A lock that is free needs no waiting.
        let free = posix(open.handle, 1, READ, 0, 1);
        assert_eq!(ask_to_wait(client, entry.node, &free), Served::Reply(16));
    });
}

#[test]
fn a_flock_is_waited_for_too() {
    with_locks(|client| {
        let (entry, first) = client.create(ROOT_ID, "file", OFlags::RDWR, 0o600, 0).unwrap();
        let second = client.open(entry.node, OFlags::RDWR).unwrap();
        client.tell(Opcode::Setlk, entry.node, &flock(first.handle, WRITE), b"").unwrap();
        let waiting = ask_to_wait(client, entry.node, &flock(second.handle, WRITE));
        assert!(matches!(waiting, Served::Waiting(_)));
        client.release(first.handle).unwrap();
        assert_eq!(wait_for_reply(client, waiting).error, 0);
    });
}
