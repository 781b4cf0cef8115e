use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::fs::OFlags;

use super::client::{Setup, text, with_client, with_setup};
use crate::fs::DescriptorBudget;
use crate::fs::wire::{
    CopyFileRangeIn, CreateIn, EntryOut, FallocateIn, FsyncIn, LinkIn, LseekIn, LseekOut, Opcode, ROOT_ID,
    ReadIn, WRITE_CACHE, Wire, WriteIn, WriteOut,
};

#[test]
fn bytes_written_are_read_back_and_lie_in_the_hosts_file() {
    with_client(|client| {
        let (_, open) = client.create(ROOT_ID, "file", OFlags::RDWR, 0o644, 0).unwrap();
        let data: Vec<u8> = (0..100_000_u32).map(|number| number as u8).collect();
        assert_eq!(client.write(open.handle, 10, &data).unwrap(), 100_000);
        let host = std::fs::read(client.host("file")).unwrap();
        assert_eq!((&host[..10], &host[10..]), (&[0; 10][..], &data[..]));
        assert_eq!(client.read(open.handle, 10, 100_000).unwrap(), data);
        assert_eq!(client.read(open.handle, 100_000, 100).unwrap(), &data[99_990..]);
        assert_eq!(client.read(open.handle, 200_000, 100).unwrap(), b"");
        // No more than there is room for, whatever was asked for.
        client.room = 16 + 50;
        assert_eq!(client.read(open.handle, 10, u32::MAX).unwrap(), &data[..50]);
    });
}

#[test]
fn one_request_moves_no_more_than_was_agreed_on() {
    with_client(|client| {
        let (_, open) = client.create(ROOT_ID, "file", OFlags::RDWR, 0o644, 0).unwrap();
        assert_eq!(client.write(open.handle, 0, &vec![1; (1 << 20) + 1]).unwrap(), 1 << 20);
        client.write(open.handle, 1 << 20, b"x").unwrap();
        client.room = 4 << 20;
        assert_eq!(client.read(open.handle, 0, u32::MAX).unwrap().len(), 1 << 20);
    });
}

#[test]
fn an_offset_beyond_what_files_have_is_refused() {
    with_client(|client| {
        let (_, open) = client.create(ROOT_ID, "file", OFlags::RDWR, 0o644, 0).unwrap();
        for offset in [1 << 63, u64::MAX] {
            assert_eq!(client.read(open.handle, offset, 1).unwrap_err(), libc::EINVAL);
            assert_eq!(client.write(open.handle, offset, b"x").unwrap_err(), libc::EINVAL);
        }
        assert!(client.write(open.handle, i64::MAX as u64, b"xx").is_err());
    });
}

#[test]
fn a_write_must_bring_its_data() {
    with_client(|client| {
        let (_, open) = client.create(ROOT_ID, "file", OFlags::RDWR, 0o644, 0).unwrap();
        for size in [5, u32::MAX] {
            let request = WriteIn { handle: open.handle, size, ..WriteIn::default() };
            assert_eq!(client.write_with(request, b"four").unwrap_err(), libc::EINVAL);
        }
        assert_eq!(
            client.write_with(WriteIn { handle: open.handle, size: 3, ..WriteIn::default() }, b"four"),
            Ok(3)
        );
        assert_eq!(std::fs::read(client.host("file")).unwrap(), b"fou");
    });
}

#[test]
fn creation_honours_exclusion_and_truncation() {
    with_client(|client| {
        std::fs::write(client.host("file"), b"data").unwrap();
        let exclusive = client.create(ROOT_ID, "file", OFlags::RDWR | OFlags::EXCL, 0o644, 0);
        assert_eq!(exclusive.unwrap_err(), libc::EEXIST);
        let (_, open) = client.create(ROOT_ID, "file", OFlags::RDWR, 0o644, 0).unwrap();
        assert_eq!(client.read(open.handle, 0, 10).unwrap(), b"data");
        let (entry, _) = client.create(ROOT_ID, "file", OFlags::RDWR | OFlags::TRUNC, 0o644, 0).unwrap();
        assert_eq!(client.getattr(entry.node).unwrap().attributes.size, 0);
        client.mkdir(ROOT_ID, "d").unwrap();
        assert_eq!(client.create(ROOT_ID, "d", OFlags::RDWR, 0o644, 0).unwrap_err(), libc::EISDIR);
    });
}

#[test]
fn nothing_but_regular_files_is_ever_opened() {
    with_client(|client| {
        let fifo = client.mknod(ROOT_ID, "fifo", libc::S_IFIFO | 0o600, 0).unwrap();
        let inodes = client.server.inodes();
        // An open of a fifo without a peer would block.
        assert_eq!(client.open(fifo.node, OFlags::RDONLY).unwrap_err(), libc::EINVAL);
        assert_eq!(client.create(ROOT_ID, "fifo", OFlags::RDONLY, 0o600, 0).unwrap_err(), libc::EINVAL);
        assert_eq!(client.server.inodes(), inodes, "the refused creation leaves no inode behind");
        assert_eq!(client.open(ROOT_ID, OFlags::RDONLY).unwrap_err(), libc::EISDIR);
        assert_eq!(client.call(Opcode::Opendir, fifo.node, &[0; 8]).unwrap_err(), libc::ENOTDIR);
        assert_eq!(client.call(Opcode::Syncfs, fifo.node, &[0; 8]).unwrap_err(), libc::EINVAL);
        assert_eq!(client.open(fifo.node, OFlags::ACCMODE).unwrap_err(), libc::EINVAL);
    });
}

#[test]
fn an_append_goes_to_the_end_that_the_host_sees() {
    with_client(|client| {
        let flags = OFlags::WRONLY | OFlags::APPEND;
        let (_, open) = client.create(ROOT_ID, "log", flags, 0o644, 0).unwrap();
        std::fs::write(client.host("log"), b"from the host\n").unwrap();
        let request =
            WriteIn { handle: open.handle, size: 5, flags: flags.bits(), offset: 0, ..WriteIn::default() };
        client.write_with(request, b"guest").unwrap();
        assert_eq!(std::fs::read(client.host("log")).unwrap(), b"from the host\nguest");
        // The guest's fcntl(F_SETFL) took O_APPEND away, or the page cache writes where it has to.
        client.write(open.handle, 0, b"FROM").unwrap();
        let cached = WriteIn { write_flags: WRITE_CACHE, size: 3, offset: 5, ..request };
        client.write_with(cached, b"THE").unwrap();
        assert_eq!(std::fs::read(client.host("log")).unwrap(), b"FROM THE host\nguest");
    });
}

#[test]
fn with_writeback_a_file_opened_for_writing_is_read_too() {
    let setup = Setup { writeback: true, ..Setup::default() };
    with_setup(setup, |client| {
        let flags = OFlags::WRONLY | OFlags::APPEND;
        let (_, open) = client.create(ROOT_ID, "file", flags, 0o644, 0).unwrap();
        client.write(open.handle, 4, b"data").unwrap();
        client.write(open.handle, 0, b"some").unwrap();
        assert_eq!(client.read(open.handle, 0, 10).unwrap(), b"somedata");
    });
}

#[test]
fn a_file_is_open_on_the_host_for_no_more_than_the_guest_needs() {
    for writeback in [false, true] {
        with_setup(Setup { writeback, ..Setup::default() }, move |client| {
            std::fs::write(client.host("file"), b"data").unwrap();
            let node = client.lookup(ROOT_ID, "file").unwrap().node;
            let open = client.open(node, OFlags::RDONLY).unwrap();
            assert_eq!(client.write(open.handle, 0, b"x").unwrap_err(), libc::EBADF);
            let open = client.open(node, OFlags::WRONLY).unwrap();
            let read = client.read(open.handle, 0, 4);
            assert_eq!(read, if writeback { Ok(b"data".to_vec()) } else { Err(libc::EBADF) });
        });
    }
}

#[test]
fn direct_io_follows_the_guests_flag() {
    with_client(|client| {
        let (entry, _) = client.create(ROOT_ID, "file", OFlags::RDWR, 0o644, 0).unwrap();
        std::fs::write(client.host("file"), vec![7; 8192]).unwrap();
        let Ok(open) = client.open(entry.node, OFlags::RDONLY | OFlags::DIRECT) else {
            // Not every file system has direct I/O.
            return;
        };
        // The flag is gone now, and an odd offset is fine.
        assert_eq!(client.read(open.handle, 5, 100).unwrap(), vec![7; 100]);
        let mut body = Vec::new();
        let flags = OFlags::DIRECT.bits();
        ReadIn { handle: open.handle, offset: 5, size: 100, flags, ..ReadIn::default() }.put(&mut body);
        let direct = client.call(Opcode::Read, 0, &body);
        assert!(direct == Err(libc::EINVAL) || direct == Ok(vec![7; 100]), "{direct:?}");
    });
}

#[test]
fn a_temporary_file_gets_a_name_later() {
    with_client(|client| {
        let mut body = Vec::new();
        let flags = OFlags::RDWR.bits();
        CreateIn { flags, mode: libc::S_IFREG | 0o600, umask: 0, open_flags: 0 }.put(&mut body);
        body.extend(text(b"#1"));
        let reply = match client.call(Opcode::Tmpfile, ROOT_ID, &body) {
            Err(libc::EOPNOTSUPP) => return,
            reply => reply.unwrap(),
        };
        let entry = EntryOut::take(&mut reply.as_slice()).unwrap();
        assert_eq!((entry.attributes.links, entry.attributes.mode), (0, libc::S_IFREG | 0o600));
        assert_eq!(std::fs::read_dir(client.host("")).unwrap().count(), 0);
        let link = LinkIn { old_node: entry.node };
        let named: EntryOut = client.ask(Opcode::Link, ROOT_ID, &link, &text(b"named")).unwrap();
        assert_eq!(named.node, entry.node);
        assert!(client.host("named").exists());
    });
}

#[test]
fn nothing_may_be_written() {
    with_client(|client| {
        let (_, open) = client.create(ROOT_ID, "file", OFlags::RDWR, 0o644, 0).unwrap();
        assert_eq!(client.write(open.handle, 0, b""), Ok(0));
        assert_eq!(client.read(open.handle, 0, 1), Ok(Vec::new()));
    });
}

#[test]
fn an_unlinked_file_lives_as_long_as_it_is_open() {
    with_client(|client| {
        let (entry, open) = client.create(ROOT_ID, "file", OFlags::RDWR, 0o644, 0).unwrap();
        client.unlink(ROOT_ID, "file").unwrap();
        client.write(open.handle, 0, b"still").unwrap();
        assert_eq!(client.read(open.handle, 0, 10).unwrap(), b"still");
        assert_eq!(client.getattr(entry.node).unwrap().attributes.links, 0);
        let again = client.open(entry.node, OFlags::RDONLY).unwrap();
        assert_eq!(client.read(again.handle, 0, 10).unwrap(), b"still");
        client.release(open.handle).unwrap();
        client.release(again.handle).unwrap();
        client.forget(entry.node, 1);
        assert_eq!((client.server.inodes(), client.server.handles()), (1, 0));
    });
}

#[test]
fn a_session_that_ends_leaves_nothing_open_and_another_may_begin() {
    with_client(|client| {
        let (entry, open) = client.create(ROOT_ID, "file", OFlags::RDWR, 0o644, 0).unwrap();
        client.server.end_session();
        assert_eq!((client.server.inodes(), client.server.handles()), (1, 0));
        client.mount();
        assert_eq!(client.getattr(entry.node).unwrap_err(), libc::ESTALE);
        assert_eq!(client.read(open.handle, 0, 1).unwrap_err(), libc::EBADF);
        assert!(client.getattr(ROOT_ID).is_ok());
    });
}

#[test]
fn handles_are_bounded_and_wrong_ones_are_refused() {
    let budget = DescriptorBudget { inodes: 100, handles: 3 };
    with_setup(Setup { budget, ..Setup::default() }, |client| {
        let (entry, open) = client.create(ROOT_ID, "file", OFlags::RDWR, 0o644, 0).unwrap();
        for _ in 0..2 {
            client.open(entry.node, OFlags::RDONLY).unwrap();
        }
        assert_eq!(client.server.handles(), 3);
        assert_eq!(client.open(entry.node, OFlags::RDONLY).unwrap_err(), libc::ENFILE);
        assert_eq!(client.call(Opcode::Opendir, ROOT_ID, &[0; 8]).unwrap_err(), libc::ENFILE);
        client.release(open.handle).unwrap();
        assert_eq!(client.release(open.handle).unwrap_err(), libc::EBADF);
        for handle in [0, open.handle, 99, u64::MAX] {
            assert_eq!(client.read(handle, 0, 1).unwrap_err(), libc::EBADF);
            assert_eq!(client.write(handle, 0, b"x").unwrap_err(), libc::EBADF);
            let fsync = FsyncIn { handle, ..FsyncIn::default() };
            assert_eq!(client.tell(Opcode::Fsync, entry.node, &fsync, b"").unwrap_err(), libc::EBADF);
        }
        let directory: crate::fs::wire::OpenOut = client.ask(Opcode::Opendir, ROOT_ID, &0_u64, b"").unwrap();
        assert_eq!(client.read(directory.handle, 0, 1).unwrap_err(), libc::EISDIR);
        assert_eq!(client.release(directory.handle).unwrap_err(), libc::EISDIR);
    });
}

#[test]
fn space_is_reserved_and_freed() {
    with_client(|client| {
        let (entry, open) = client.create(ROOT_ID, "file", OFlags::RDWR, 0o644, 0).unwrap();
        let ask =
            |mode, offset, length| FallocateIn { handle: open.handle, offset, length, mode, padding: 0 };
        client.tell(Opcode::Fallocate, entry.node, &ask(0, 0, 65_536), b"").unwrap();
        assert_eq!(client.getattr(entry.node).unwrap().attributes.size, 65_536);
        client.write(open.handle, 0, &[1; 65_536]).unwrap();
        // FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
        client.tell(Opcode::Fallocate, entry.node, &ask(3, 4096, 4096), b"").unwrap();
        assert_eq!(client.read(open.handle, 4095, 3).unwrap(), [1, 0, 0]);
        // FALLOC_FL_KEEP_SIZE
        client.tell(Opcode::Fallocate, entry.node, &ask(1, 65_536, 65_536), b"").unwrap();
        assert_eq!(client.getattr(entry.node).unwrap().attributes.size, 65_536);
        for mode in [1 << 20, u32::MAX] {
            let error = client.tell(Opcode::Fallocate, entry.node, &ask(mode, 0, 1), b"").unwrap_err();
            assert_eq!(error, libc::EOPNOTSUPP);
        }
        assert_eq!(client.tell(Opcode::Fallocate, entry.node, &ask(0, 0, 0), b"").unwrap_err(), libc::EINVAL);
    });
}

#[test]
fn data_and_holes_are_found() {
    with_client(|client| {
        let (entry, open) = client.create(ROOT_ID, "file", OFlags::RDWR, 0o644, 0).unwrap();
        client.write(open.handle, 1 << 20, &[1; 4096]).unwrap();
        let mut seek = |whence, offset| {
            let request = LseekIn { handle: open.handle, offset, whence, padding: 0 };
            client.ask::<LseekOut>(Opcode::Lseek, entry.node, &request, b"").map(|out| out.offset)
        };
        assert_eq!(seek(3, 0).unwrap(), 1 << 20);
        assert_eq!(seek(4, 1 << 20).unwrap(), (1 << 20) + 4096);
        assert_eq!(seek(3, 1 << 30).unwrap_err(), libc::ENXIO);
        for whence in [0, 1, 2, 5, u32::MAX] {
            assert_eq!(seek(whence, 0).unwrap_err(), libc::EINVAL);
        }
    });
}

#[test]
fn ranges_are_copied_between_files() {
    with_client(|client| {
        let (_, from) = client.create(ROOT_ID, "from", OFlags::RDWR, 0o644, 0).unwrap();
        let (entry, to) = client.create(ROOT_ID, "to", OFlags::RDWR, 0o644, 0).unwrap();
        client.write(from.handle, 0, b"0123456789").unwrap();
        let request = CopyFileRangeIn {
            handle_in: from.handle,
            offset_in: 2,
            node_out: entry.node,
            handle_out: to.handle,
            offset_out: 1,
            length: u64::MAX,
            flags: 0,
        };
        let copied: WriteOut = client.ask(Opcode::CopyFileRange, 0, &request, b"").unwrap();
        assert_eq!(copied.size, 8);
        assert_eq!(std::fs::read(client.host("to")).unwrap(), b"\x0023456789");
        let flagged = CopyFileRangeIn { flags: 1, ..request };
        assert_eq!(
            client.ask::<WriteOut>(Opcode::CopyFileRange, 0, &flagged, b"").unwrap_err(),
            libc::EINVAL
        );
        let lost = CopyFileRangeIn { handle_out: 99, ..request };
        assert_eq!(client.ask::<WriteOut>(Opcode::CopyFileRange, 0, &lost, b"").unwrap_err(), libc::EBADF);
    });
}

#[test]
fn files_and_the_file_system_are_brought_to_disk() {
    with_client(|client| {
        let (entry, open) = client.create(ROOT_ID, "file", OFlags::RDWR, 0o644, 0).unwrap();
        for flags in [0, 1] {
            let fsync = FsyncIn { handle: open.handle, flags, padding: 0 };
            client.tell(Opcode::Fsync, entry.node, &fsync, b"").unwrap();
        }
        client.call(Opcode::Syncfs, ROOT_ID, &[0; 8]).unwrap();
    });
}

#[test]
fn a_hole_of_4_gib_takes_no_space() {
    with_client(|client| {
        let (entry, open) = client.create(ROOT_ID, "sparse", OFlags::RDWR, 0o644, 0).unwrap();
        client.write(open.handle, (4 << 30) - 1, b"x").unwrap();
        assert_eq!(client.getattr(entry.node).unwrap().attributes.size, 4 << 30);
        let host = std::fs::File::open(client.host("sparse")).unwrap();
        assert!(host.metadata().unwrap().blocks() * 512 < 1 << 20);
        let mut byte = [0];
        host.read_exact_at(&mut byte, (4 << 30) - 1).unwrap();
        assert_eq!(byte, *b"x");
    });
}

#[test]
fn what_the_server_does_not_do_has_its_own_error() {
    with_client(|client| {
        let (entry, _) = client.create(ROOT_ID, "file", OFlags::RDWR, 0o644, 0).unwrap();
        assert_eq!(client.call(Opcode::Ioctl, entry.node, &[0; 32]).unwrap_err(), libc::ENOTTY);
        let locks = [Opcode::Getlk, Opcode::Setlk, Opcode::Setlkw, Opcode::Flush];
        let others = [Opcode::Bmap, Opcode::Poll, Opcode::Setupmapping, Opcode::Removemapping];
        for opcode in locks.into_iter().chain(others) {
            assert_eq!(client.call(opcode, entry.node, &[0; 64]).unwrap_err(), libc::ENOSYS, "{opcode:?}");
        }
    });
}
