//! More directories open in the guest than on the host.

use std::collections::BTreeSet;
use std::path::Path;

use rustix::mount::{MountFlags, mount};

use super::client::{Client, Setup, text, with_client, with_setup};
use super::directories::{list, opendir};
use super::submounts::with_mounts;
use crate::fs::DescriptorBudget;
use crate::fs::limits::MOST_OPEN_DIRECTORIES;
use crate::fs::wire::{FsyncIn, Opcode, ROOT_ID, ReleaseIn};

/// What one request of these tests asks for, in bytes: some ten names.
const PIECE: u32 = 400;

/// A reader of one open directory.
struct Reader {
    handle: u64,
    offset: u64,
    names: Vec<String>,
}

impl Reader {
    fn of(client: &mut Client, node: u64) -> Self {
        Self { handle: opendir(client, node), offset: 0, names: Vec::new() }
    }

    /// Reads one piece more; whether there was any.
    fn read(&mut self, client: &mut Client) -> bool {
        let listed = list(client, self.handle, self.offset, PIECE, false).unwrap();
        self.offset = listed.last().map_or(self.offset, |last| last.next);
        self.names.extend(listed.iter().map(|listed| listed.name.clone()));
        !listed.is_empty()
    }

    fn read_to_the_end(&mut self, client: &mut Client) {
        while self.read(client) {}
    }

    fn assert_has_seen(&self, expected: &BTreeSet<String>) {
        let seen: BTreeSet<String> = self.names.iter().cloned().collect();
        assert_eq!(seen.len(), self.names.len(), "a name twice: {:?}", self.names);
        let missed: Vec<_> = expected.difference(&seen).collect();
        assert!(missed.is_empty(), "missed: {missed:?}");
    }
}

fn fill(directory: &Path, prefix: &str, count: usize) -> BTreeSet<String> {
    let names: BTreeSet<String> = (0..count).map(|number| format!("{prefix}-{number:03}")).collect();
    for name in &names {
        std::fs::write(directory.join(name), b"").unwrap();
    }
    names
}

/// Has every directory closed that was open.
fn close_all(client: &mut Client) {
    for _ in 0..MOST_OPEN_DIRECTORIES {
        opendir(client, ROOT_ID);
    }
    assert_eq!(client.server.open_directories(), MOST_OPEN_DIRECTORIES);
}

#[test]
fn few_of_the_directories_that_a_guest_has_open_are_open_on_the_host_and_all_are_read_to_their_end() {
    let budget = DescriptorBudget { inodes: 100, handles: 300 };
    with_setup(Setup { budget, ..Setup::default() }, |client| {
        let expected = fill(&client.host(""), "file", 50);
        let mut readers: Vec<Reader> = (0..300).map(|_| Reader::of(client, ROOT_ID)).collect();
        assert_eq!(client.server.handles(), 300);
        while !readers.is_empty() {
            readers.retain_mut(|reader| {
                let more = reader.read(client);
                assert_eq!(client.server.open_directories(), MOST_OPEN_DIRECTORIES);
                if !more {
                    reader.assert_has_seen(&expected);
                }
                more
            });
        }
    });
}

#[test]
fn what_is_read_again_and_again_stays_open() {
    let budget = DescriptorBudget { inodes: 8, handles: 100 };
    with_setup(Setup { budget, ..Setup::default() }, |client| {
        let directory = client.mkdir(ROOT_ID, "d").unwrap().node;
        fill(&client.host("d"), "file", 400);
        let mut reader = Reader::of(client, directory);
        assert!(reader.read(client));
        // Whoever opened it anew would not find it: its inode's descriptor is given up for those of others.
        std::fs::rename(client.host("d"), client.outside("away")).unwrap();
        for name in fill(&client.host(""), "other", 24) {
            client.lookup(ROOT_ID, name).unwrap();
        }
        for _ in 0..2 * MOST_OPEN_DIRECTORIES {
            opendir(client, ROOT_ID);
            assert!(reader.read(client));
        }
        close_all(client);
        let stale = list(client, reader.handle, reader.offset, PIECE, false);
        assert_eq!(stale.err(), Some(libc::ESTALE));
    });
}

#[test]
fn a_position_from_before_holds_after_a_directory_was_opened_again() {
    with_setup(
        Setup { budget: DescriptorBudget { inodes: 100, handles: 100 }, ..Setup::default() },
        |client| {
            fill(&client.host(""), "file", 50);
            let mut reader = Reader::of(client, ROOT_ID);
            assert!(reader.read(client));
            let (position, seen) = (reader.offset, reader.names.len());
            reader.read_to_the_end(client);
            close_all(client);
            let mut again = Reader { handle: reader.handle, offset: position, names: Vec::new() };
            again.read_to_the_end(client);
            assert_eq!(again.names, reader.names[seen..]);
            // From the beginning there is what has come meanwhile.
            close_all(client);
            std::fs::write(client.host("new"), b"").unwrap();
            let mut anew = Reader { handle: reader.handle, offset: 0, names: Vec::new() };
            anew.read_to_the_end(client);
            assert!(anew.names.contains(&"new".to_owned()));
        },
    );
}

#[test]
fn a_directory_of_an_overlay_that_changes_while_it_is_closed_is_read_on_where_it_was() {
    with_mounts(|client| {
        for name in ["lower", "upper", "work", "merged"] {
            std::fs::create_dir(client.outside(name)).unwrap();
        }
        let lower = fill(&client.outside("lower"), "lower", 20);
        let upper = fill(&client.outside("upper"), "upper", 60);
        let layers = ["lower", "upper", "work"]
            .map(|layer| format!("{layer}dir={}", client.outside(layer).display()))
            .join(",");
        std::fs::create_dir(client.host("d")).unwrap();
        let options = std::ffi::CString::new(layers).unwrap();
        if mount("overlay", client.host("d"), "overlay", MountFlags::empty(), options.as_c_str()).is_err() {
            return;
        }
        let directory = client.lookup(ROOT_ID, "d").unwrap().node;
        let mut reader = Reader::of(client, directory);
        while reader.names.iter().filter(|name| name.starts_with("upper")).count() < 15 {
            assert!(reader.read(client));
        }
        // Overlayfs counts entries: without those that go, all others have lower numbers.
        let gone: Vec<String> = reader.names.iter().filter(|name| upper.contains(*name)).cloned().collect();
        for name in &gone {
            client.unlink(directory, name).unwrap();
        }
        close_all(client);
        reader.read_to_the_end(client);
        reader.assert_has_seen(&lower.union(&upper).cloned().collect());
        assert_eq!(reader.names.len(), 82, "with . and ..");
    });
}

#[test]
fn a_directory_that_is_removed_while_it_is_closed_has_come_to_its_end() {
    with_client(|client| {
        let directory = client.mkdir(ROOT_ID, "d").unwrap().node;
        let reader = Reader::of(client, directory);
        close_all(client);
        client.call(Opcode::Rmdir, ROOT_ID, &text(b"d")).unwrap();
        assert_eq!(list(client, reader.handle, 0, PIECE, false).err(), Some(libc::ENOENT));
        let release = ReleaseIn { handle: reader.handle, ..ReleaseIn::default() };
        assert_eq!(client.tell(Opcode::Releasedir, directory, &release, b""), Ok(()));
    });
}

#[test]
fn a_guest_that_forgets_a_directory_that_it_has_open_cannot_read_on_for_ever() {
    with_client(|client| {
        let directory = client.mkdir(ROOT_ID, "d").unwrap().node;
        let reader = Reader::of(client, directory);
        client.forget(directory, 1);
        assert!(list(client, reader.handle, 0, PIECE, false).is_ok());
        close_all(client);
        assert_eq!(list(client, reader.handle, 0, PIECE, false).err(), Some(libc::ESTALE));
    });
}

#[test]
fn a_directory_is_opened_again_to_be_brought_to_disk() {
    with_client(|client| {
        let reader = Reader::of(client, ROOT_ID);
        close_all(client);
        let request = FsyncIn { handle: reader.handle, ..FsyncIn::default() };
        assert_eq!(client.tell(Opcode::Fsyncdir, ROOT_ID, &request, b""), Ok(()));
    });
}
