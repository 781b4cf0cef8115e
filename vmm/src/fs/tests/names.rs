use std::os::unix::fs::{FileTypeExt, MetadataExt};

use super::client::{is_privileged, text, with_client};
use crate::fs::wire::{BatchForgetIn, EntryOut, ForgetOne, LinkIn, Opcode, ROOT_ID, RenameIn, Wire};

const NOREPLACE: u32 = 1;
const EXCHANGE: u32 = 2;

#[test]
fn names_of_one_file_are_one_inode() {
    with_client(|client| {
        std::fs::write(client.host("a"), b"").unwrap();
        std::fs::hard_link(client.host("a"), client.host("b")).unwrap();
        let a = client.lookup(ROOT_ID, "a").unwrap();
        let b = client.lookup(ROOT_ID, "b").unwrap();
        assert_eq!(a.node, b.node);
        let c: EntryOut =
            client.ask(Opcode::Link, ROOT_ID, &LinkIn { old_node: a.node }, &text(b"c")).unwrap();
        assert_eq!(c.node, a.node);
        assert_eq!(c.attributes.links, 3);
    });
}

#[test]
fn a_link_to_a_symbolic_link_is_that_link() {
    with_client(|client| {
        let link = client.symlink(ROOT_ID, "link", "nowhere").unwrap();
        let again: EntryOut =
            client.ask(Opcode::Link, ROOT_ID, &LinkIn { old_node: link.node }, &text(b"again")).unwrap();
        assert_eq!(again.node, link.node);
        assert_eq!(std::fs::read_link(client.host("again")).unwrap().to_str(), Some("nowhere"));
    });
}

#[test]
fn a_renamed_file_keeps_its_inode() {
    with_client(|client| {
        let directory = client.mkdir(ROOT_ID, "d").unwrap().node;
        std::fs::write(client.host("a"), b"data").unwrap();
        let node = client.lookup(ROOT_ID, "a").unwrap().node;
        client.rename((ROOT_ID, "a"), (directory, "b"), 0).unwrap();
        assert_eq!(client.lookup(directory, "b").unwrap().node, node);
        assert_eq!(client.lookup(ROOT_ID, "a").unwrap_err(), libc::ENOENT);
        assert_eq!(client.getattr(node).unwrap().attributes.size, 4);
        // Renamed behind the server's back, too.
        std::fs::rename(client.host("d/b"), client.host("c")).unwrap();
        assert_eq!(client.getattr(node).unwrap().attributes.size, 4);
    });
}

#[test]
fn rename_honours_its_flags() {
    with_client(|client| {
        std::fs::write(client.host("a"), b"a").unwrap();
        std::fs::write(client.host("b"), b"bb").unwrap();
        assert_eq!(client.rename((ROOT_ID, "a"), (ROOT_ID, "b"), NOREPLACE).unwrap_err(), libc::EEXIST);
        client.rename((ROOT_ID, "a"), (ROOT_ID, "b"), EXCHANGE).unwrap();
        assert_eq!(std::fs::read(client.host("a")).unwrap(), b"bb");
        for flags in [8, 1 << 31, NOREPLACE | EXCHANGE] {
            assert_eq!(client.rename((ROOT_ID, "a"), (ROOT_ID, "b"), flags).unwrap_err(), libc::EINVAL);
        }
        client.rename((ROOT_ID, "a"), (ROOT_ID, "b"), 0).unwrap();
        assert!(!client.host("a").exists());
    });
}

#[test]
fn what_is_not_a_name_is_refused() {
    with_client(|client| {
        let node = client.mkdir(ROOT_ID, "d").unwrap().node;
        for name in ["", ".", "..", "/", "a/b", "../share", "d/", "/etc"] {
            for opcode in [Opcode::Lookup, Opcode::Unlink, Opcode::Rmdir] {
                let error = client.call(opcode, node, &text(name.as_bytes())).unwrap_err();
                assert_eq!(error, libc::EINVAL, "{opcode:?} {name:?}");
            }
            assert_eq!(client.mkdir(node, name).unwrap_err(), libc::EINVAL, "{name:?}");
            assert_eq!(client.symlink(node, name, "x").unwrap_err(), libc::EINVAL, "{name:?}");
            assert_eq!(client.rename((ROOT_ID, "d"), (node, name), 0).unwrap_err(), libc::EINVAL, "{name:?}");
            assert_eq!(client.rename((node, name), (ROOT_ID, "d"), 0).unwrap_err(), libc::EINVAL, "{name:?}");
        }
        // No NUL at all, and a name that is too long.
        assert_eq!(client.call(Opcode::Lookup, node, b"name").unwrap_err(), libc::EINVAL);
        assert_eq!(client.lookup(node, [b'x'; 256]).unwrap_err(), libc::ENAMETOOLONG);
        assert_eq!(client.lookup(node, [b'x'; 255]).unwrap_err(), libc::ENOENT);
    });
}

#[test]
fn a_name_may_have_any_other_byte() {
    with_client(|client| {
        for byte in (1..=255).filter(|byte| *byte != b'/' && *byte != b'.') {
            let body = [&[0xed, 1, 0, 0, 0, 0, 0, 0, byte][..], b"\0"].concat();
            client.call(Opcode::Mkdir, ROOT_ID, &body).unwrap();
            let node = client.lookup(ROOT_ID, [byte]).unwrap().node;
            client.forget(node, 2);
        }
        assert_eq!(std::fs::read_dir(client.host("")).unwrap().count(), 253);
    });
}

#[test]
fn a_symbolic_link_is_read_and_never_followed() {
    with_client(|client| {
        std::fs::create_dir(client.outside("secret")).unwrap();
        std::fs::write(client.outside("secret/file"), b"").unwrap();
        let link = client.symlink(ROOT_ID, "link", "../secret").unwrap();
        assert_eq!(client.call(Opcode::Readlink, link.node, b"").unwrap(), b"../secret");
        assert_eq!(client.lookup(link.node, "file").unwrap_err(), libc::ENOTDIR);
        assert_eq!(client.mkdir(link.node, "d").unwrap_err(), libc::ENOTDIR);
        assert_eq!(client.open(link.node, rustix::fs::OFlags::RDONLY).unwrap_err(), libc::EINVAL);
        assert_eq!(client.call(Opcode::Readlink, ROOT_ID, b"").unwrap_err(), libc::EINVAL);
        let long = "x".repeat(4095);
        let link = client.symlink(ROOT_ID, "long", &long).unwrap();
        assert_eq!(client.call(Opcode::Readlink, link.node, b"").unwrap(), long.as_bytes());
        assert_eq!(client.symlink(ROOT_ID, "longer", &"x".repeat(4096)).unwrap_err(), libc::ENAMETOOLONG);
    });
}

#[test]
fn nodes_of_every_type_are_made() {
    with_client(|client| {
        for (name, kind) in [("fifo", libc::S_IFIFO), ("socket", libc::S_IFSOCK), ("file", libc::S_IFREG)] {
            let entry = client.mknod(ROOT_ID, name, kind | 0o640, 0).unwrap();
            assert_eq!(entry.attributes.mode, kind | 0o640, "{name}");
        }
        assert!(std::fs::metadata(client.host("fifo")).unwrap().file_type().is_fifo());
        for kind in [libc::S_IFDIR, libc::S_IFLNK, 0, libc::S_IFMT] {
            assert_eq!(client.mknod(ROOT_ID, "other", kind | 0o640, 0).unwrap_err(), libc::EINVAL);
        }
        if is_privileged() {
            let entry = client.mknod(ROOT_ID, "null", libc::S_IFCHR | 0o666, 0x103).unwrap();
            assert_eq!(entry.attributes.device, 0x103);
            assert_eq!(std::fs::metadata(client.host("null")).unwrap().rdev(), libc::makedev(1, 3));
        }
    });
}

#[test]
fn forgotten_inodes_go_and_the_root_stays() {
    with_client(|client| {
        std::fs::write(client.host("a"), b"").unwrap();
        let node = client.lookup(ROOT_ID, "a").unwrap().node;
        assert_eq!(client.lookup(ROOT_ID, "a").unwrap().node, node);
        assert_eq!((client.server.inodes(), client.server.inode_descriptors()), (2, 2));
        client.forget(node, 1);
        assert!(client.getattr(node).is_ok());
        client.forget(node, 1);
        assert_eq!(client.getattr(node).unwrap_err(), libc::ESTALE);
        assert_eq!((client.server.inodes(), client.server.inode_descriptors()), (1, 1));
        client.forget(ROOT_ID, u64::MAX);
        assert!(client.getattr(ROOT_ID).is_ok());
        let again = client.lookup(ROOT_ID, "a").unwrap().node;
        assert_ne!(again, node, "no number is given out twice");
        let mut list = Vec::new();
        ForgetOne { node: again, lookups: 7 }.put(&mut list);
        ForgetOne { node: 12345, lookups: 1 }.put(&mut list);
        client.tell(Opcode::BatchForget, 0, &BatchForgetIn { count: u32::MAX, dummy: 0 }, &list).unwrap();
        assert_eq!(client.server.inodes(), 1);
    });
}

#[test]
fn a_new_session_knows_nothing_of_the_last() {
    with_client(|client| {
        std::fs::write(client.host("a"), b"").unwrap();
        let node = client.lookup(ROOT_ID, "a").unwrap().node;
        client.open(node, rustix::fs::OFlags::RDONLY).unwrap();
        client.call(Opcode::Destroy, 0, b"").unwrap();
        assert_eq!((client.server.inodes(), client.server.handles()), (1, 0));
        client.mount();
        assert_eq!(client.getattr(node).unwrap_err(), libc::ESTALE);
        assert!(client.lookup(ROOT_ID, "a").is_ok());
    });
}

#[test]
fn a_directory_is_removed_when_it_is_empty_and_a_file_is_no_directory() {
    with_client(|client| {
        let directory = client.mkdir(ROOT_ID, "d").unwrap();
        client.mknod(directory.node, "f", libc::S_IFREG | 0o600, 0).unwrap();
        let mut rmdir = |parent, name: &[u8]| client.call(Opcode::Rmdir, parent, &text(name));
        assert_eq!(rmdir(ROOT_ID, b"d").unwrap_err(), libc::ENOTEMPTY);
        assert_eq!(rmdir(directory.node, b"f").unwrap_err(), libc::ENOTDIR);
        assert_eq!(client.unlink(ROOT_ID, "d").unwrap_err(), libc::EISDIR);
        client.unlink(directory.node, "f").unwrap();
        assert_eq!(client.call(Opcode::Rmdir, ROOT_ID, &text(b"d")), Ok(Vec::new()));
        assert!(!client.host("d").exists());
    });
}

#[test]
fn the_older_rename_moves_a_file_over_another() {
    with_client(|client| {
        let directory = client.mkdir(ROOT_ID, "d").unwrap();
        std::fs::write(client.host("old"), b"content").unwrap();
        std::fs::write(client.host("d/new"), b"other").unwrap();
        let request = RenameIn { new_directory: directory.node };
        let names = [text(b"old"), text(b"new")].concat();
        client.tell(Opcode::Rename, ROOT_ID, &request, &names).unwrap();
        assert!(!client.host("old").exists());
        assert_eq!(std::fs::read(client.host("d/new")).unwrap(), b"content");
    });
}
