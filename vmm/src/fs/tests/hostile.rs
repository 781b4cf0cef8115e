//! Requests that no kernel would send.

use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;
use rustix::fs::OFlags;

use super::client::{Client, Setup, with_client, with_setup};
use crate::fs::DescriptorBudget;
use crate::fs::limits::REQUEST_BYTES;
use crate::fs::wire::{AttributesOut, InHeader, Opcode, OutHeader, ROOT_ID, Wire};

const INODES: usize = 30;
const BUDGET: DescriptorBudget = DescriptorBudget { inodes: 10, handles: 5 };

fn setup() -> Setup {
    Setup { budget: BUDGET, most_inodes: INODES, ..Setup::default() }
}

fn request(opcode: u32, node: u64, length: u32, extension_length: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    InHeader {
        length,
        opcode,
        unique: 77,
        node,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        pid: 1,
        extension_length,
        padding: 0,
    }
    .put(&mut bytes);
    bytes.extend_from_slice(body);
    bytes
}

/// A reply is nothing, or a header that fits it.
fn assert_well_formed(reply: &[u8]) {
    if reply.is_empty() {
        return;
    }
    let header = OutHeader::take(&mut &*reply).unwrap();
    assert_eq!(header.length as usize, reply.len());
    assert_eq!(header.unique, 77);
    assert!((-4095..=0).contains(&header.error), "{}", header.error);
    assert!(header.error == 0 || reply.len() == OutHeader::SIZE);
}

fn assert_bounded(client: &Client) {
    assert_within(client, BUDGET, INODES);
}

fn assert_within(client: &Client, budget: DescriptorBudget, most_inodes: usize) {
    assert!(client.server.inodes() <= most_inodes);
    assert!(client.server.inode_descriptors() <= budget.inodes);
    // As many again may be open without having been announced.
    assert!(client.server.handles() <= 2 * budget.handles);
    assert!(client.server.open_directories() <= client.server.handles());
}

#[test]
fn of_a_million_lookups_and_opens_that_are_never_given_up_the_last_are_answered_within_the_same_bounds() {
    const FILES: usize = 2000;
    const MOST_INODES: usize = 1000;
    let budget = DescriptorBudget { inodes: 100, handles: 200 };
    with_setup(Setup { budget, most_inodes: MOST_INODES, ..Setup::default() }, move |client| {
        for file in 0..FILES {
            std::fs::write(client.host(file.to_string()), b"").unwrap();
        }
        let (mut found, mut opened) = (0, 0);
        for lookup in 0..1_000_000 {
            if let Ok(entry) = client.lookup(ROOT_ID, (lookup % FILES).to_string()) {
                found += 1;
                opened += usize::from(client.open(entry.node, OFlags::RDONLY).is_ok());
            }
            if lookup % FILES == 0 {
                assert_within(client, budget, MOST_INODES);
            }
        }
        assert_within(client, budget, MOST_INODES);
        // The share's root is one of those that are known.
        assert_eq!((found, opened), ((MOST_INODES - 1) * 1_000_000 / FILES, budget.handles));
    });
}

#[test]
fn a_header_that_lies_about_its_length_is_refused() {
    with_client(|client| {
        let body = 16_usize;
        for length in [0, 1, 39, 41 + body as u32, 1000, u32::MAX] {
            let mut bytes = request(Opcode::Getattr.number(), ROOT_ID, length, 0, &vec![0; body]);
            let reply = client.send(&mut bytes);
            assert_eq!(OutHeader::take(&mut reply.as_slice()).unwrap().error, -libc::EINVAL, "{length}");
        }
        for extension in [3, u16::MAX] {
            let mut bytes = request(Opcode::Getattr.number(), ROOT_ID, 56, extension, &vec![0; body]);
            let reply = client.send(&mut bytes);
            assert_eq!(OutHeader::take(&mut reply.as_slice()).unwrap().error, -libc::EINVAL, "{extension}");
        }
    });
}

#[test]
fn a_request_of_absurd_size_is_refused() {
    with_client(|client| {
        for opcode in [Opcode::Setxattr, Opcode::BatchForget, Opcode::Lookup, Opcode::Symlink] {
            let mut bytes = request(opcode.number(), ROOT_ID, 40 + (1 << 20), 0, &vec![b'x'; 1 << 20]);
            let reply = client.send(&mut bytes);
            assert_well_formed(&reply);
            if opcode != Opcode::BatchForget {
                assert_eq!(
                    OutHeader::take(&mut reply.as_slice()).unwrap().error,
                    -libc::EINVAL,
                    "{opcode:?}"
                );
            }
        }
    });
}

#[test]
fn a_request_may_have_so_many_bytes_and_no_more() {
    with_client(|client| {
        for (length, error) in [(REQUEST_BYTES, 0), (REQUEST_BYTES + 1, -libc::EINVAL)] {
            let header = (InHeader::SIZE + length) as u32;
            let reply =
                client.send(&mut request(Opcode::Getattr.number(), ROOT_ID, header, 0, &vec![0; length]));
            assert_eq!(OutHeader::take(&mut reply.as_slice()).unwrap().error, error, "{length}");
        }
    });
}

#[test]
fn unknown_opcodes_are_not_implemented() {
    with_client(|client| {
        for opcode in [0, 7, 19, 53, 4096, 1_048_576, u32::MAX] {
            let mut bytes = request(opcode, ROOT_ID, 40, 0, b"");
            let reply = client.send(&mut bytes);
            assert_eq!(OutHeader::take(&mut reply.as_slice()).unwrap().error, -libc::ENOSYS, "{opcode}");
        }
    });
}

#[test]
fn a_reply_that_does_not_fit_is_an_error_and_one_without_room_for_that_is_none() {
    with_client(|client| {
        let fits = OutHeader::SIZE + AttributesOut::SIZE;
        for (room, error) in [
            (0, None),
            (15, None),
            (16, Some(-libc::EINVAL)),
            (fits - 1, Some(-libc::EINVAL)),
            (fits, Some(0)),
        ] {
            client.room = room;
            let reply = client.send(&mut request(Opcode::Getattr.number(), ROOT_ID, 56, 0, &[0; 16]));
            assert_eq!(
                OutHeader::take(&mut reply.as_slice()).ok().map(|header| header.error),
                error,
                "{room}"
            );
            assert_well_formed(&reply);
        }
    });
}

#[test]
fn every_request_cut_short_at_any_length_is_answered() {
    with_client(|client| {
        for opcode in Opcode::ALL {
            // A destroyed session would be no test of what follows.
            if matches!(opcode, Opcode::Destroy | Opcode::Init) {
                continue;
            }
            for length in 0..100 {
                let mut bytes = request(opcode.number(), ROOT_ID, 40 + length as u32, 0, &vec![0; length]);
                assert_well_formed(&client.send(&mut bytes));
            }
        }
        assert_eq!(client.server.inodes(), 1);
        assert_eq!(std::fs::read_dir(client.host("")).unwrap().count(), 0);
    });
}

fn tree(at: &Path, into: &mut BTreeMap<String, Vec<u8>>) {
    for entry in std::fs::read_dir(at).unwrap() {
        let path = entry.unwrap().path();
        let kind = path.symlink_metadata().unwrap();
        let contents = if kind.is_file() { std::fs::read(&path).unwrap() } else { Vec::new() };
        into.insert(path.to_string_lossy().into_owned(), contents);
        if kind.is_dir() {
            tree(&path, into);
        }
    }
}

/// What a hostile guest might put into a request: small numbers, so that some of them mean something, names that are
/// there, and names that are none.
fn body() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        4 => (0..12_u64).prop_map(|number| number.to_le_bytes().to_vec()),
        1 => any::<u64>().prop_map(|number| number.to_le_bytes().to_vec()),
        1 => Just(u64::MAX.to_le_bytes().to_vec()),
        1 => (0..3_u64, 0..12_u64).prop_map(|(high, low)| (high << 32 | low).to_le_bytes().to_vec()),
        1 => Just((0o100_644_u64 | 1 << 35).to_le_bytes().to_vec()),
        1 => any::<u32>().prop_map(|number| number.to_le_bytes().to_vec()),
    ];
    let name = prop_oneof![
        4 => prop::sample::select(vec!["a", "b", "d", "link", "fifo", "out"]).prop_map(|name| name.as_bytes().to_vec()),
        1 => prop::sample::select(vec!["", ".", "..", "a/b", "/", "../outside", "user.x", "trusted.y"])
            .prop_map(|name| name.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..300),
    ]
    .prop_map(|mut name| {
        name.push(0);
        name
    });
    (prop::collection::vec(word, 0..9), prop::collection::vec(name, 0..3))
        .prop_map(|(words, names)| words.into_iter().chain(names).flatten().collect())
}

fn opcode() -> impl Strategy<Value = u32> {
    // Syncfs would bring this machine's disk to its knees, and mean nothing here.
    let known: Vec<u32> = Opcode::ALL
        .iter()
        .filter(|opcode| **opcode != Opcode::Syncfs)
        .map(|opcode| opcode.number())
        .collect();
    prop_oneof![20 => prop::sample::select(known), 1 => any::<u32>().prop_filter("syncfs", |number| *number != 50)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn whatever_is_sent_the_server_lives_within_its_bounds_and_its_share(
        requests in prop::collection::vec((opcode(), 0..8_u64, body(), any::<bool>()), 1..200),
        implicit_opens in any::<bool>(),
        writeback in any::<bool>(),
    ) {
        with_setup(Setup { implicit_opens, writeback, ..setup() }, move |client| {
            std::fs::create_dir(client.outside("outside")).unwrap();
            std::fs::write(client.outside("outside/file"), b"untouched").unwrap();
            std::fs::write(client.host("a"), b"a").unwrap();
            std::fs::create_dir(client.host("d")).unwrap();
            std::os::unix::fs::symlink("../outside", client.host("out")).unwrap();
            client.mknod(ROOT_ID, "fifo", libc::S_IFIFO | 0o600, 0).unwrap();
            client.room = 5000;
            for (opcode, node, body, honest) in requests {
                let length = if honest { 40 + body.len() as u32 } else { body.len() as u32 };
                let mut bytes = request(opcode, node, length, 0, &body);
                assert_well_formed(&client.send(&mut bytes));
                assert_bounded(client);
            }
            let mut beside = BTreeMap::new();
            tree(&client.outside("outside"), &mut beside);
            assert_eq!(beside.into_values().collect::<Vec<_>>(), [b"untouched".to_vec()]);
            let names: Vec<_> = std::fs::read_dir(client.outside("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert_eq!(names.len(), 2, "{names:?}");
            // And it still serves.
            client.mount();
            assert!(client.getattr(ROOT_ID).is_ok());
        });
    }

    #[test]
    fn noise_is_answered_or_dropped(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        with_setup(setup(), move |client| {
            let mut bytes = bytes.clone();
            let reply = client.send(&mut bytes);
            assert!(reply.is_empty() || reply.len() >= OutHeader::SIZE);
        });
    }
}
