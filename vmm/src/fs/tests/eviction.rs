use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::OFlags;

use super::client::{Client, Setup, text, with_setup};
use crate::fs::DescriptorBudget;
use crate::fs::wire::{EntryOut, LinkIn, Opcode, ROOT_ID};

const DESCRIPTORS: usize = 8;

fn few_descriptors() -> Setup {
    Setup { budget: DescriptorBudget { inodes: DESCRIPTORS, handles: 20 }, ..Setup::default() }
}

/// Makes the server give up the descriptors of everything that it can.
fn evict_all(client: &mut Client) {
    // What is known already would take nobody's descriptor.
    static NEW: AtomicU64 = AtomicU64::new(0);
    for _ in 0..3 * DESCRIPTORS {
        let name = format!("filler-{}", NEW.fetch_add(1, Ordering::Relaxed));
        std::fs::write(client.host(&name), b"").unwrap();
        client.lookup(ROOT_ID, name).unwrap();
    }
    assert!(client.server.inode_descriptors() <= DESCRIPTORS);
}

#[test]
fn a_guest_may_know_more_inodes_than_there_are_descriptors() {
    with_setup(few_descriptors(), |client| {
        let mut nodes = Vec::new();
        for number in 0..100 {
            let name = number.to_string();
            std::fs::write(client.host(&name), vec![0; number]).unwrap();
            nodes.push(client.lookup(ROOT_ID, name).unwrap().node);
        }
        for (size, node) in nodes.iter().enumerate() {
            assert_eq!(client.getattr(*node).unwrap().attributes.size, size as u64);
            assert!(client.server.inode_descriptors() <= DESCRIPTORS);
        }
        assert_eq!(client.server.inodes(), 101);
        for node in nodes {
            client.forget(node, 1);
        }
        assert_eq!((client.server.inodes(), client.server.inode_descriptors()), (1, 1));
    });
}

#[test]
fn a_deep_tree_is_walked_again() {
    with_setup(few_descriptors(), |client| {
        let path = "d/".repeat(50);
        std::fs::create_dir_all(client.host(&path)).unwrap();
        let deepest = client.walk(&path).unwrap();
        evict_all(client);
        let again = client.getattr(deepest.node).unwrap().attributes;
        assert_eq!(again.inode, deepest.attributes.inode);
        client.mkdir(deepest.node, "more").unwrap();
        assert!(client.host(path).join("more").exists());
    });
}

#[test]
fn renames_are_followed_without_a_descriptor() {
    with_setup(few_descriptors(), |client| {
        let (a, b) = (client.mkdir(ROOT_ID, "a").unwrap().node, client.mkdir(ROOT_ID, "b").unwrap().node);
        std::fs::write(client.host("a/file"), b"file").unwrap();
        let file = client.lookup(a, "file").unwrap().node;
        let other = client.mkdir(b, "other").unwrap().node;
        evict_all(client);
        client.rename((a, "file"), (b, "moved"), 0).unwrap();
        evict_all(client);
        assert_eq!(client.getattr(file).unwrap().attributes.size, 4);
        client.rename((ROOT_ID, "b"), (a, "inner"), 0).unwrap();
        evict_all(client);
        assert_eq!(client.getattr(file).unwrap().attributes.size, 4);
        // RENAME_EXCHANGE
        client.rename((b, "moved"), (b, "other"), 2).unwrap();
        evict_all(client);
        assert_eq!(client.getattr(file).unwrap().attributes.size, 4);
        assert!(client.mkdir(other, "x").is_ok());
        assert!(client.host("a/inner/moved/x").exists());
    });
}

#[test]
fn a_file_that_loses_its_name_keeps_its_descriptor() {
    with_setup(few_descriptors(), |client| {
        for (name, size) in [("unlinked", 1), ("replaced", 2), ("linked", 3)] {
            std::fs::write(client.host(name), vec![0; size]).unwrap();
        }
        let unlinked = client.lookup(ROOT_ID, "unlinked").unwrap().node;
        let replaced = client.lookup(ROOT_ID, "replaced").unwrap().node;
        let linked = client.lookup(ROOT_ID, "linked").unwrap().node;
        let link = LinkIn { old_node: linked };
        client.ask::<EntryOut>(Opcode::Link, ROOT_ID, &link, &text(b"second name")).unwrap();
        evict_all(client);
        client.unlink(ROOT_ID, "unlinked").unwrap();
        std::fs::write(client.host("new"), b"").unwrap();
        client.rename((ROOT_ID, "new"), (ROOT_ID, "replaced"), 0).unwrap();
        client.unlink(ROOT_ID, "second name").unwrap();
        evict_all(client);
        for (node, size) in [(unlinked, 1), (replaced, 2), (linked, 3)] {
            assert_eq!(client.getattr(node).unwrap().attributes.size, size);
        }
        let open = client.open(unlinked, OFlags::RDWR).unwrap();
        client.write(open.handle, 0, b"xx").unwrap();
        assert_eq!(client.getattr(unlinked).unwrap().attributes.size, 2);
    });
}

#[test]
fn a_name_goes_although_the_host_has_taken_the_one_by_which_the_file_was_found() {
    with_setup(few_descriptors(), |client| {
        std::fs::write(client.host("found"), b"").unwrap();
        std::fs::hard_link(client.host("found"), client.host("other")).unwrap();
        client.lookup(ROOT_ID, "found").unwrap();
        evict_all(client);
        std::fs::remove_file(client.host("found")).unwrap();
        client.unlink(ROOT_ID, "other").unwrap();
        assert!(!client.host("other").exists());
    });
}

#[test]
fn a_rename_of_two_names_of_one_file_changes_nothing() {
    with_setup(few_descriptors(), |client| {
        std::fs::write(client.host("a"), b"x").unwrap();
        std::fs::hard_link(client.host("a"), client.host("b")).unwrap();
        let node = client.lookup(ROOT_ID, "a").unwrap().node;
        client.rename((ROOT_ID, "a"), (ROOT_ID, "b"), 0).unwrap();
        evict_all(client);
        assert_eq!(client.getattr(node).unwrap().attributes.links, 2);
    });
}

#[test]
fn what_the_host_moves_away_is_stale_until_it_is_looked_up_anew() {
    with_setup(few_descriptors(), |client| {
        std::fs::create_dir(client.host("d")).unwrap();
        std::fs::write(client.host("d/file"), b"old").unwrap();
        let old = client.walk("d/file").unwrap().node;
        evict_all(client);
        std::fs::rename(client.host("d"), client.host("e")).unwrap();
        assert_eq!(client.getattr(old).unwrap_err(), libc::ESTALE);
        let found = client.walk("e/file").unwrap().node;
        assert_eq!(found, old, "it is the same inode still");
        assert_eq!(client.getattr(old).unwrap().attributes.size, 3);
    });
}

#[test]
fn a_file_that_the_host_puts_in_anothers_place_is_not_taken_for_it() {
    with_setup(few_descriptors(), |client| {
        std::fs::write(client.host("file"), b"old").unwrap();
        let old = client.lookup(ROOT_ID, "file").unwrap().node;
        evict_all(client);
        // The new file may well get the old one's inode number.
        std::fs::remove_file(client.host("file")).unwrap();
        std::fs::write(client.host("file"), b"newer").unwrap();
        assert_eq!(client.getattr(old).unwrap_err(), libc::ESTALE);
        let new = client.lookup(ROOT_ID, "file").unwrap().node;
        assert_ne!(new, old);
        assert_eq!(client.getattr(new).unwrap().attributes.size, 5);
        client.forget(old, 1);
        assert_eq!(client.getattr(new).unwrap().attributes.size, 5);
    });
}

#[test]
fn what_cannot_be_told_to_the_guest_is_not_made() {
    let setup =
        Setup { most_inodes: 3, budget: DescriptorBudget { inodes: 8, handles: 1 }, ..few_descriptors() };
    with_setup(setup, |client| {
        let (file, _) = client.create(ROOT_ID, "file", OFlags::RDWR, 0o600, 0).unwrap();
        // No handle is left.
        assert_eq!(client.create(ROOT_ID, "other", OFlags::RDWR, 0o600, 0).unwrap_err(), libc::ENFILE);
        client.mkdir(ROOT_ID, "d").unwrap();
        // No inode is left.
        assert_eq!(client.mkdir(ROOT_ID, "e").unwrap_err(), libc::ENFILE);
        assert_eq!(client.symlink(ROOT_ID, "e", "x").unwrap_err(), libc::ENFILE);
        assert_eq!(client.mknod(ROOT_ID, "e", libc::S_IFIFO | 0o600, 0).unwrap_err(), libc::ENFILE);
        let link = LinkIn { old_node: file.node };
        assert!(client.ask::<EntryOut>(Opcode::Link, ROOT_ID, &link, &text(b"link")).is_ok());
        let mut names: Vec<_> =
            std::fs::read_dir(client.host("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["d", "file", "link"]);
    });
}

#[test]
fn a_guest_that_keeps_everything_gets_an_error_not_more() {
    let setup = Setup { most_inodes: 10, ..few_descriptors() };
    with_setup(setup, |client| {
        let mut nodes = Vec::new();
        let error = loop {
            let name = nodes.len().to_string();
            std::fs::write(client.host(&name), b"").unwrap();
            match client.lookup(ROOT_ID, name) {
                Ok(entry) => nodes.push(entry.node),
                Err(error) => break error,
            }
        };
        assert_eq!((error, nodes.len()), (libc::ENFILE, 9));
        client.forget(nodes[0], 1);
        assert!(client.lookup(ROOT_ID, "9").is_ok());
        // Names that were unlinked hold on to their descriptors, and those are bounded, too.
        let mut failed = false;
        for (number, node) in nodes.iter().enumerate().skip(1) {
            failed |= client.unlink(ROOT_ID, &number.to_string()).is_err();
            let _ = node;
        }
        assert!(client.server.inode_descriptors() <= DESCRIPTORS);
        assert!(failed, "eight descriptors cannot hold nine files without names");
    });
}
