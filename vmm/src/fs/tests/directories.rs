use std::collections::BTreeSet;

use super::client::{Client, with_client};
use crate::fs::wire::{EntryOut, FsyncIn, Opcode, OpenOut, ROOT_ID, ReadIn, ReleaseIn, Wire};

/// One entry of a listing.
pub(super) struct Listed {
    entry: Option<EntryOut>,
    inode: u64,
    pub(super) next: u64,
    pub(super) name: String,
}

fn parse(mut bytes: &[u8], plus: bool) -> Vec<Listed> {
    let mut listed = Vec::new();
    while !bytes.is_empty() {
        let entry = plus.then(|| EntryOut::take(&mut bytes).unwrap());
        let inode = u64::take(&mut bytes).unwrap();
        let next = u64::take(&mut bytes).unwrap();
        let length = u32::take(&mut bytes).unwrap() as usize;
        let _file_type = u32::take(&mut bytes).unwrap();
        let name = String::from_utf8(bytes[..length].to_vec()).unwrap();
        bytes = &bytes[(24 + length).next_multiple_of(8) - 24..];
        listed.push(Listed { entry, inode, next, name });
    }
    listed
}

pub(super) fn opendir(client: &mut Client, node: u64) -> u64 {
    client.ask::<OpenOut>(Opcode::Opendir, node, &0_u64, b"").unwrap().handle
}

pub(super) fn list(
    client: &mut Client,
    handle: u64,
    offset: u64,
    size: u32,
    plus: bool,
) -> Result<Vec<Listed>, i32> {
    let mut body = Vec::new();
    ReadIn { handle, offset, size, ..ReadIn::default() }.put(&mut body);
    let opcode = if plus { Opcode::Readdirplus } else { Opcode::Readdir };
    client.call(opcode, ROOT_ID, &body).map(|bytes| {
        assert!(bytes.len() <= size as usize);
        parse(&bytes, plus)
    })
}

fn list_all(client: &mut Client, handle: u64, size: u32, plus: bool) -> Vec<Listed> {
    let mut all: Vec<Listed> = Vec::new();
    loop {
        let offset = all.last().map_or(0, |last| last.next);
        let more = list(client, handle, offset, size, plus).unwrap();
        if more.is_empty() {
            return all;
        }
        all.extend(more);
    }
}

#[test]
fn a_listing_in_pieces_of_any_size_has_every_name_once() {
    with_client(|client| {
        let expected: BTreeSet<String> =
            (0..300).map(|number| format!("{number}{}", "x".repeat(number % 200))).collect();
        for name in &expected {
            std::fs::write(client.host(name), b"").unwrap();
        }
        let handle = opendir(client, ROOT_ID);
        for size in [232, 300, 1000, 4096, 100_000] {
            let all = list_all(client, handle, size, false);
            let mut names: Vec<String> = all.into_iter().map(|listed| listed.name).collect();
            names.retain(|name| name != "." && name != "..");
            assert_eq!(names.len(), expected.len(), "{size}");
            assert_eq!(names.into_iter().collect::<BTreeSet<_>>(), expected, "{size}");
        }
    });
}

#[test]
fn a_listing_with_lookups_counts_them() {
    with_client(|client| {
        for number in 0..30 {
            std::fs::write(client.host(number.to_string()), vec![0; number]).unwrap();
        }
        let known = client.lookup(ROOT_ID, "7").unwrap().node;
        let handle = opendir(client, ROOT_ID);
        for round in 1..3 {
            let all = list_all(client, handle, 4096, true);
            assert_eq!(all.len(), 32);
            for listed in all {
                let entry = listed.entry.unwrap();
                if listed.name == "." || listed.name == ".." {
                    assert_eq!(entry.node, 0, "the guest knows {:?} itself", listed.name);
                    continue;
                }
                assert_eq!(entry.attributes.size.to_string(), listed.name);
                assert_eq!(entry.attributes.inode, listed.inode);
                if listed.name == "7" {
                    assert_eq!(entry.node, known);
                }
                if round == 2 {
                    client.forget(entry.node, 2);
                }
            }
        }
        // Only the lookup that came first is left.
        assert_eq!(client.server.inodes(), 2);
        client.forget(known, 1);
        assert_eq!(client.server.inodes(), 1);
    });
}

#[test]
fn a_listing_goes_on_where_it_stopped_although_names_go() {
    with_client(|client| {
        for number in 0..100 {
            std::fs::write(client.host(format!("file-{number:03}")), b"").unwrap();
        }
        let handle = opendir(client, ROOT_ID);
        let first = list(client, handle, 0, 600, false).unwrap();
        let mut seen: BTreeSet<String> = first.iter().map(|listed| listed.name.clone()).collect();
        for name in &seen {
            let _ = std::fs::remove_file(client.host(name));
        }
        let mut offset = first.last().unwrap().next;
        loop {
            let more = list(client, handle, offset, 600, false).unwrap();
            let Some(last) = more.last() else { break };
            offset = last.next;
            for listed in more {
                assert!(seen.insert(listed.name), "no name twice");
            }
        }
        assert_eq!(seen.len(), 102);
    });
}

#[test]
fn a_buffer_that_is_too_small_is_an_error_not_the_end() {
    with_client(|client| {
        std::fs::write(client.host("x".repeat(200)), b"").unwrap();
        let handle = opendir(client, ROOT_ID);
        assert_eq!(list(client, handle, 0, 8, false).err(), Some(libc::EINVAL));
        let offset = list_all(client, handle, 4096, false)
            .iter()
            .position(|listed| listed.name.starts_with('x'))
            .unwrap();
        if offset == 0 {
            assert_eq!(list(client, handle, 0, 100, false).err(), Some(libc::EINVAL));
        }
    });
}

#[test]
fn names_that_were_read_before_their_directory_went_come_before_the_error() {
    with_client(|client| {
        let directory = client.mkdir(ROOT_ID, "d").unwrap().node;
        for number in 0..20 {
            std::fs::write(client.host(format!("d/{number}")), b"").unwrap();
        }
        let handle = opendir(client, directory);
        let first = list(client, handle, 0, 200, false).unwrap();
        std::fs::remove_dir_all(client.host("d")).unwrap();
        let next = |listed: &[Listed]| listed.last().unwrap().next;
        let rest = list(client, handle, next(&first), 4096, false).unwrap();
        assert_eq!(first.len() + rest.len(), 22);
        assert_eq!(list(client, handle, next(&rest), 4096, false).err(), Some(libc::ENOENT));
    });
}

#[test]
fn a_listing_with_lookups_fits_where_there_is_room_for_one_entry() {
    with_client(|client| {
        std::fs::write(client.host("x".repeat(8)), b"").unwrap();
        let handle = opendir(client, ROOT_ID);
        // An entry, a record of 24 bytes and at most eight more for the name.
        assert_eq!(list_all(client, handle, 128 + 32, true).len(), 3);
        assert_eq!(list(client, handle, 0, 128 + 24, true).err(), Some(libc::EINVAL));
    });
}

#[test]
fn wrong_directory_handles_are_refused() {
    with_client(|client| {
        let (_, open) = client.create(ROOT_ID, "file", rustix::fs::OFlags::RDWR, 0o644, 0).unwrap();
        assert_eq!(list(client, open.handle, 0, 4096, false).err(), Some(libc::ENOTDIR));
        assert_eq!(list(client, 99, 0, 4096, true).err(), Some(libc::EBADF));
        let handle = opendir(client, ROOT_ID);
        let release = ReleaseIn { handle, ..ReleaseIn::default() };
        client.tell(Opcode::Releasedir, ROOT_ID, &release, b"").unwrap();
        assert_eq!(list(client, handle, 0, 4096, false).err(), Some(libc::EBADF));
        let release = ReleaseIn { handle: open.handle, ..release };
        assert_eq!(client.tell(Opcode::Releasedir, ROOT_ID, &release, b"").unwrap_err(), libc::ENOTDIR);
    });
}

#[test]
fn an_offset_made_up_is_harmless() {
    with_client(|client| {
        for number in 0..10 {
            std::fs::write(client.host(number.to_string()), b"").unwrap();
        }
        let handle = opendir(client, ROOT_ID);
        for offset in [1, 12345, i64::MAX as u64, 1 << 63, u64::MAX] {
            if let Ok(listed) = list(client, handle, offset, 4096, true) {
                assert!(listed.len() <= 12);
            }
        }
        assert_eq!(list_all(client, handle, 4096, false).len(), 12);
    });
}

#[test]
fn an_open_directory_is_brought_to_disk() {
    with_client(|client| {
        let handle = opendir(client, ROOT_ID);
        let mut fsyncdir =
            |handle| client.tell(Opcode::Fsyncdir, ROOT_ID, &FsyncIn { handle, ..FsyncIn::default() }, b"");
        assert_eq!(fsyncdir(handle), Ok(()));
        assert_eq!(fsyncdir(handle + 1), Err(libc::EBADF));
    });
}
