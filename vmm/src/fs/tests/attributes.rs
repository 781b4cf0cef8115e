use std::os::unix::fs::{MetadataExt, PermissionsExt};

use rustix::fs::{AtFlags, CWD, OFlags, StatxFlags, StatxTimestamp, Timespec, Timestamps};

use super::client::{Setup, is_privileged, text, with_client, with_setup};
use crate::fs::host::GUEST_ATTRIBUTES;
use crate::fs::wire::{
    AccessIn, CopyFileRangeIn, FallocateIn, MkdirIn, OPEN_KILL_SUIDGID, Opcode, OpenIn, OpenOut, ROOT_ID,
    SetattrIn, SetattrValid, StatfsOut, StatxIn, StatxOut, StatxTime, WRITE_KILL_SUIDGID, WriteIn, WriteOut,
};
use crate::fs::{CachePolicy, Caching};

#[test]
fn attributes_are_those_of_the_host() {
    with_client(|client| {
        std::fs::write(client.host("file"), [0; 5000]).unwrap();
        let entry = client.lookup(ROOT_ID, "file").unwrap();
        let host = std::fs::metadata(client.host("file")).unwrap();
        for attributes in [entry.attributes, client.getattr(entry.node).unwrap().attributes] {
            assert_eq!(attributes.inode, host.ino());
            assert_eq!(attributes.size, 5000);
            assert_eq!(attributes.blocks, host.blocks());
            assert_eq!(attributes.mode, host.mode());
            assert_eq!(attributes.links, 1);
            assert_eq!((attributes.uid, attributes.gid), (host.uid(), host.gid()));
            assert_eq!(attributes.mtime as i64, host.mtime());
            assert_eq!(i64::from(attributes.mtime_nanoseconds), host.mtime_nsec());
        }
        let request = StatxIn { statx_mask: 0xfff, ..StatxIn::default() };
        let status: StatxOut = client.ask(Opcode::Statx, entry.node, &request, b"").unwrap();
        assert_eq!((status.inode, status.size, u32::from(status.mode)), (host.ino(), 5000, host.mode()));
        if let Ok(created) = host.created() {
            let birth = created.duration_since(std::time::UNIX_EPOCH).unwrap();
            assert_eq!(status.btime.seconds as u64, birth.as_secs());
            assert_ne!(status.mask & 0x800, 0);
        }
    });
}

#[test]
fn an_extended_status_has_all_fields_of_the_hosts_that_are_of_use_to_a_guest() {
    with_setup(Setup { policy: CachePolicy::uniform(Caching::SHARED), ..Setup::default() }, |client| {
        std::fs::write(client.host("file"), [0; 5000]).unwrap();
        std::fs::hard_link(client.host("file"), client.host("second name")).unwrap();
        let path = client.host("file");
        let [last_access, last_modification] =
            [1_000_000_001, 1_000_000_002].map(|tv_sec| Timespec { tv_sec, tv_nsec: 5 });
        let times = Timestamps { last_access, last_modification };
        rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty()).unwrap();
        if is_privileged() {
            std::os::unix::fs::chown(&path, Some(10), Some(20)).unwrap();
            client.mknod(ROOT_ID, "device", libc::S_IFCHR | 0o600, 0x0103).unwrap();
        }
        // Not every file system has such attributes.
        let file = std::fs::File::open(&path).unwrap();
        let _ = rustix::fs::ioctl_setflags(&file, rustix::fs::IFlags::NODUMP);
        for name in ["file", "device"] {
            let Ok(entry) = client.lookup(ROOT_ID, name) else { continue };
            let request = StatxIn { statx_mask: 0xfff, ..StatxIn::default() };
            let status: StatxOut = client.ask(Opcode::Statx, entry.node, &request, b"").unwrap();
            let known = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
            let host = rustix::fs::statx(CWD, client.host(name), AtFlags::SYMLINK_NOFOLLOW, known).unwrap();
            let time = |time: &StatxTime| (time.seconds, time.nanoseconds);
            let host_time = |time: StatxTimestamp| (time.tv_sec, time.tv_nsec);
            assert_eq!((status.valid, status.valid_nanoseconds), (1, 0));
            assert_eq!(status.mask, host.stx_mask & known.bits());
            assert_eq!((status.inode, status.mode), (host.stx_ino, host.stx_mode));
            assert_eq!((status.size, status.blocks), (host.stx_size, host.stx_blocks));
            assert_eq!((status.links, status.block_size), (host.stx_nlink, host.stx_blksize));
            assert_eq!((status.uid, status.gid), (host.stx_uid, host.stx_gid));
            assert_eq!(time(&status.atime), host_time(host.stx_atime));
            assert_eq!(time(&status.btime), host_time(host.stx_btime));
            assert_eq!(time(&status.ctime), host_time(host.stx_ctime));
            assert_eq!(time(&status.mtime), host_time(host.stx_mtime));
            assert_eq!(
                (status.device_major, status.device_minor),
                (host.stx_rdev_major, host.stx_rdev_minor)
            );
            let file_system = (status.file_system_major, status.file_system_minor);
            assert_eq!(file_system, (host.stx_dev_major, host.stx_dev_minor));
            assert_eq!(status.attributes, (host.stx_attributes & GUEST_ATTRIBUTES).bits());
            assert_eq!(status.attributes_mask, (host.stx_attributes_mask & GUEST_ATTRIBUTES).bits());
        }
    });
}

#[test]
fn the_figures_of_a_file_system_are_the_hosts() {
    with_client(|client| {
        let figures: StatfsOut = client.ask(Opcode::Statfs, ROOT_ID, &0_u64, b"").unwrap();
        let host = rustix::fs::statvfs(client.host("")).unwrap();
        assert_eq!((figures.name_length, figures.blocks), (255, host.f_blocks));
        assert_eq!(u64::from(figures.block_size), host.f_bsize);
        assert_eq!(u64::from(figures.fragment_size), host.f_frsize);
        // Others may make and remove files meanwhile.
        assert_eq!(figures.files == 0, host.f_files == 0);
        assert_eq!(figures.files_free == 0, host.f_ffree == 0);
        assert_eq!(figures.blocks_free == 0, host.f_bfree == 0);
        assert_eq!(figures.blocks_available == 0, host.f_bavail == 0);
        assert!(figures.blocks >= figures.blocks_free);
    });
}

#[test]
fn attributes_are_set() {
    with_client(|client| {
        std::fs::write(client.host("file"), [1; 100]).unwrap();
        let node = client.lookup(ROOT_ID, "file").unwrap().node;
        let valid = SetattrValid::MODE | SetattrValid::SIZE | SetattrValid::ATIME | SetattrValid::MTIME;
        let out = client
            .setattr(
                node,
                SetattrIn {
                    valid: valid.bits(),
                    mode: libc::S_IFREG | 0o711,
                    size: 200,
                    atime: 5,
                    atime_nanoseconds: 6,
                    mtime: u64::MAX,
                    mtime_nanoseconds: 8,
                    ..SetattrIn::default()
                },
            )
            .unwrap()
            .attributes;
        assert_eq!((out.size, out.mode), (200, libc::S_IFREG | 0o711));
        assert_eq!((out.atime, out.atime_nanoseconds), (5, 6));
        assert_eq!((out.mtime as i64, out.mtime_nanoseconds), (-1, 8), "before 1970");
        let now = SetattrIn { valid: SetattrValid::MTIME_NOW.bits(), ..SetattrIn::default() };
        let out = client.setattr(node, now).unwrap().attributes;
        assert!((out.mtime as i64) > 1_000_000_000);
        assert_eq!(out.atime, 5, "the other time stays");
        let bad = SetattrIn {
            valid: SetattrValid::MTIME.bits(),
            mtime_nanoseconds: 1_000_000_000,
            ..SetattrIn::default()
        };
        assert_eq!(client.setattr(node, bad).unwrap_err(), libc::EINVAL);
    });
}

#[test]
fn a_symbolic_links_own_times_and_owner_are_set() {
    with_client(|client| {
        std::fs::write(client.host("target"), b"").unwrap();
        let link = client.symlink(ROOT_ID, "link", "target").unwrap().node;
        let times = SetattrIn { valid: SetattrValid::MTIME.bits(), mtime: 1234, ..SetattrIn::default() };
        assert_eq!(client.setattr(link, times).unwrap().attributes.mtime, 1234);
        assert_ne!(std::fs::metadata(client.host("target")).unwrap().mtime(), 1234);
        if is_privileged() {
            let owner = SetattrIn { valid: SetattrValid::UID.bits(), uid: 77, ..SetattrIn::default() };
            assert_eq!(client.setattr(link, owner).unwrap().attributes.uid, 77);
            assert_eq!(std::fs::metadata(client.host("target")).unwrap().uid(), 0);
        }
    });
}

#[test]
fn what_a_user_makes_belongs_to_that_user() {
    if !is_privileged() {
        return;
    }
    with_client(|client| {
        std::fs::set_permissions(client.host(""), PermissionsExt::from_mode(0o700)).unwrap();
        (client.uid, client.gid) = (999, 998);
        client.create(ROOT_ID, "file", OFlags::RDWR, 0o666, 0o027).unwrap();
        client.mkdir(ROOT_ID, "directory").unwrap();
        client.symlink(ROOT_ID, "link", "x").unwrap();
        client.mknod(ROOT_ID, "fifo", libc::S_IFIFO | 0o600, 0).unwrap();
        for name in ["file", "directory", "link", "fifo"] {
            let host = std::fs::symlink_metadata(client.host(name)).unwrap();
            assert_eq!((host.uid(), host.gid()), (999, 998), "{name}");
        }
        assert_eq!(std::fs::metadata(client.host("file")).unwrap().mode() & 0o7777, 0o640);
        (client.uid, client.gid) = (0, 0);
        let entry = client.mkdir(ROOT_ID, "roots").unwrap();
        assert_eq!((entry.attributes.uid, entry.attributes.gid), (0, 0));
    });
}

#[test]
fn a_set_group_id_directory_hands_on_its_group() {
    if !is_privileged() {
        return;
    }
    with_client(|client| {
        let directory = client.mkdir(ROOT_ID, "d").unwrap().node;
        std::os::unix::fs::chown(client.host("d"), Some(1), Some(1234)).unwrap();
        std::fs::set_permissions(client.host("d"), PermissionsExt::from_mode(0o2777)).unwrap();
        (client.uid, client.gid) = (999, 998);
        let (file, open) = client.create(directory, "file", OFlags::RDWR, 0o2755, 0).unwrap();
        assert_eq!((file.attributes.uid, file.attributes.gid), (999, 1234));
        // The guest's kernel knows its user's groups and would have cleared the bit.
        assert_eq!(file.attributes.mode & 0o7777, 0o2755);
        // Also after a write that was to clear it.
        let write_flags = WRITE_KILL_SUIDGID;
        let request = WriteIn { handle: open.handle, size: 1, write_flags, ..WriteIn::default() };
        client.write_with(request, b"x").unwrap();
        let (file, _) = client.create(directory, "another", OFlags::RDWR, 0o2755, 0).unwrap();
        assert_eq!(file.attributes.mode & 0o7777, 0o2755);
        let request = MkdirIn { mode: 0o755, umask: 0 };
        let entry: crate::fs::wire::EntryOut =
            client.ask(Opcode::Mkdir, directory, &request, &text(b"sub")).unwrap();
        assert_eq!((entry.attributes.gid, entry.attributes.mode & 0o7777), (1234, 0o2755));
    });
}

#[test]
fn a_request_that_makes_no_file_acts_as_its_user_too() {
    if !is_privileged() {
        return;
    }
    with_client(|client| {
        (client.uid, client.gid) = (999, 998);
        client.getattr(ROOT_ID).unwrap();
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        // Real, effective, saved and file system id.
        assert!(status.contains("\nUid:\t0\t0\t0\t999\n"), "{status}");
        assert!(status.contains("\nGid:\t0\t0\t0\t998\n"), "{status}");
    });
}

#[test]
fn set_id_bits_go_when_they_are_to() {
    if !is_privileged() {
        return;
    }
    with_client(|client| {
        let (entry, open) = client.create(ROOT_ID, "file", OFlags::RDWR, 0o755, 0).unwrap();
        let set = SetattrIn { valid: SetattrValid::MODE.bits(), mode: 0o6755, ..SetattrIn::default() };
        let bits = |client: &mut super::client::Client, change: &dyn Fn(&mut super::client::Client)| {
            assert_eq!(client.setattr(entry.node, set).unwrap().attributes.mode & 0o7777, 0o6755);
            change(client);
            client.getattr(entry.node).unwrap().attributes.mode & 0o7777
        };
        let write = move |write_flags| {
            move |client: &mut super::client::Client| {
                let request = WriteIn { handle: open.handle, size: 1, write_flags, ..WriteIn::default() };
                assert_eq!(client.write_with(request, b"x").unwrap(), 1);
            }
        };
        assert_eq!(bits(client, &write(0)), 0o6755);
        assert_eq!(bits(client, &write(WRITE_KILL_SUIDGID)), 0o755);
        let size = |valid: SetattrValid| {
            move |client: &mut super::client::Client| {
                let request = SetattrIn { valid: valid.bits(), size: 5, ..SetattrIn::default() };
                client.setattr(entry.node, request).unwrap();
            }
        };
        assert_eq!(bits(client, &size(SetattrValid::SIZE)), 0o6755);
        assert_eq!(bits(client, &size(SetattrValid::SIZE | SetattrValid::KILL_SUIDGID)), 0o755);
        let truncate = |open_flags| {
            move |client: &mut super::client::Client| {
                let request = OpenIn { flags: (OFlags::WRONLY | OFlags::TRUNC).bits(), open_flags };
                client.ask::<OpenOut>(Opcode::Open, entry.node, &request, b"").unwrap();
            }
        };
        assert_eq!(bits(client, &truncate(0)), 0o6755);
        assert_eq!(bits(client, &truncate(OPEN_KILL_SUIDGID)), 0o755);
        let owner = |client: &mut super::client::Client| {
            let valid = SetattrValid::UID | SetattrValid::KILL_SUIDGID;
            client
                .setattr(entry.node, SetattrIn { valid: valid.bits(), uid: 5, ..SetattrIn::default() })
                .unwrap();
        };
        assert_eq!(bits(client, &owner), 0o755);
    });
}

/// What these requests do to set-id bits must not depend on the request before.
#[test]
fn set_id_bits_stay_where_a_request_cannot_say_that_they_are_to_go() {
    if !is_privileged() {
        return;
    }
    with_client(|client| {
        let (entry, open) = client.create(ROOT_ID, "file", OFlags::RDWR, 0o755, 0).unwrap();
        let (_, other) = client.create(ROOT_ID, "other", OFlags::RDWR, 0o644, 0).unwrap();
        let set = SetattrIn { valid: SetattrValid::MODE.bits(), mode: 0o6755, ..SetattrIn::default() };
        client.setattr(entry.node, set).unwrap();
        let write_flags = WRITE_KILL_SUIDGID;
        let clearing = WriteIn { handle: other.handle, size: 1, write_flags, ..WriteIn::default() };

        client.write_with(clearing, b"x").unwrap();
        let reserve = FallocateIn { handle: open.handle, offset: 0, length: 10, mode: 0, padding: 0 };
        client.tell(Opcode::Fallocate, entry.node, &reserve, b"").unwrap();
        assert_eq!(client.getattr(entry.node).unwrap().attributes.mode & 0o7777, 0o6755);

        client.write_with(clearing, b"x").unwrap();
        let copy = CopyFileRangeIn {
            handle_in: other.handle,
            offset_in: 0,
            node_out: entry.node,
            handle_out: open.handle,
            offset_out: 0,
            length: 1,
            flags: 0,
        };
        assert_eq!(client.ask::<WriteOut>(Opcode::CopyFileRange, 0, &copy, b"").unwrap().size, 1);
        assert_eq!(client.getattr(entry.node).unwrap().attributes.mode & 0o7777, 0o6755);
    });
}

#[test]
fn nobody_owns_a_file_by_accident() {
    with_client(|client| {
        for valid in [SetattrValid::UID, SetattrValid::GID] {
            let request =
                SetattrIn { valid: valid.bits(), uid: u32::MAX, gid: u32::MAX, ..SetattrIn::default() };
            assert_eq!(client.setattr(ROOT_ID, request).unwrap_err(), libc::EINVAL);
        }
    });
}

#[test]
fn access_follows_the_permission_bits() {
    if !is_privileged() {
        return;
    }
    with_client(|client| {
        let (entry, _) = client.create(ROOT_ID, "file", OFlags::RDWR, 0o640, 0).unwrap();
        std::os::unix::fs::chown(client.host("file"), Some(10), Some(20)).unwrap();
        let of_file = [(10, 1, 0o6), (11, 20, 0o4), (11, 21, 0), (0, 0, 0o6)];
        let of_program = [(10, 1, 0o7), (11, 20, 0o5), (11, 21, 0o1), (0, 0, 0o7)];
        for (mode, callers) in [(0o640, of_file), (0o751, of_program)] {
            std::fs::set_permissions(client.host("file"), PermissionsExt::from_mode(mode)).unwrap();
            for (uid, gid, granted) in callers {
                (client.uid, client.gid) = (uid, gid);
                for mask in 0..8 {
                    let answer = client.tell(Opcode::Access, entry.node, &AccessIn { mask, padding: 0 }, b"");
                    let expected = if mask & !granted == 0 { Ok(()) } else { Err(libc::EACCES) };
                    assert_eq!(answer, expected, "{mode:o} {uid}:{gid} {mask:o}");
                }
            }
        }
    });
}
