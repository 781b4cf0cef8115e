use rustix::fs::OFlags;

use super::client::{Client, Setup, with_client, with_setup};
use crate::fs::wire::{EntryOut, InitFlags, InitIn, InitOut, Opcode, OpenOut, OpenOutFlags, ROOT_ID};
use crate::fs::{CachePolicy, CacheRule, Caching};

const DAY: u64 = 24 * 60 * 60;

fn regions() -> Setup {
    let rule = |name: &str, caching| CacheRule { first_component: name.into(), depth: 2, caching };
    let policy =
        CachePolicy::by_region(vec![rule("private", Caching::EXCLUSIVE), rule("live", Caching::SHARED)]);
    Setup { policy, ..Setup::default() }
}

fn prepare(client: &Client) {
    for path in ["private/c/rootfs/bin", "live/c/0/data"] {
        std::fs::create_dir_all(client.host(path)).unwrap();
        std::fs::write(client.host(path).join("file"), b"").unwrap();
    }
}

fn valid(entry: &EntryOut) -> (u64, u64) {
    (entry.entry_valid, entry.attributes_valid)
}

#[test]
fn each_region_has_its_own_time_to_live() {
    with_setup(regions(), |client| {
        prepare(client);
        for (path, expected) in [
            ("private", (0, 0)),
            ("private/c", (0, 0)),
            ("private/c/rootfs", (DAY, DAY)),
            ("private/c/rootfs/bin/file", (DAY, DAY)),
            ("live", (0, 0)),
            ("live/c", (0, 0)),
            ("live/c/0", (1, 1)),
            ("live/c/0/data/file", (1, 1)),
        ] {
            let entry = client.walk(path).unwrap();
            assert_eq!(valid(&entry), expected, "{path}");
            assert_eq!(client.getattr(entry.node).unwrap().valid, expected.1, "{path}");
        }
        assert_eq!(client.getattr(ROOT_ID).unwrap().valid, 0);
    });
}

#[test]
fn an_absent_name_is_cached_only_where_the_guest_alone_makes_names() {
    with_setup(regions(), |client| {
        prepare(client);
        let absent = client.walk("private/c/rootfs/absent").unwrap();
        assert_eq!((absent.node, absent.entry_valid), (0, DAY));
        for path in ["absent", "private/absent", "live/absent", "live/c/absent", "live/c/0/absent"] {
            assert_eq!(client.walk(path).unwrap_err(), libc::ENOENT, "{path}");
        }
    });
}

#[test]
fn contents_and_listings_are_kept_only_where_the_guest_alone_writes() {
    with_setup(regions(), |client| {
        prepare(client);
        for (path, kept) in [("private/c/rootfs/bin", true), ("live/c/0/data", false)] {
            let directory = client.walk(path).unwrap().node;
            let open: OpenOut = client.ask(Opcode::Opendir, directory, &0_u64, b"").unwrap();
            let flags = OpenOutFlags::from_bits_retain(open.flags);
            assert_eq!(flags.contains(OpenOutFlags::CACHE_DIR | OpenOutFlags::KEEP_CACHE), kept, "{path}");
            let file = client.lookup(directory, "file").unwrap().node;
            let open = client.open(file, OFlags::RDONLY).unwrap();
            let flags = OpenOutFlags::from_bits_retain(open.flags);
            assert_eq!(flags.contains(OpenOutFlags::KEEP_CACHE), kept, "{path}");
        }
    });
}

#[test]
fn a_container_that_the_host_adds_or_removes_is_seen_at_once() {
    with_setup(regions(), |client| {
        prepare(client);
        assert_eq!(client.walk("private/d").unwrap_err(), libc::ENOENT);
        std::fs::create_dir_all(client.host("private/d/rootfs")).unwrap();
        assert!(client.walk("private/d/rootfs").is_ok());
        std::fs::remove_dir_all(client.host("private/d")).unwrap();
        assert_eq!(client.walk("private/d").unwrap_err(), libc::ENOENT);
    });
}

#[test]
fn only_what_both_sides_want_is_agreed_on() {
    with_client(|client| {
        let agreed = InitFlags::from_bits_retain(u64::from(client.negotiated.flags));
        assert!(agreed.contains(InitFlags::SUBMOUNTS | InitFlags::HANDLE_KILLPRIV_V2 | InitFlags::MAX_PAGES));
        assert!(!agreed.contains(InitFlags::WRITEBACK_CACHE), "it was not allowed");
        assert_eq!((client.negotiated.major, client.negotiated.minor), (7, 38));
        assert_eq!((client.negotiated.max_write, client.negotiated.max_pages), (1 << 20, 256));
        let none = InitIn { major: 7, minor: 50, max_readahead: u32::MAX, flags: 0 };
        let out: InitOut = client.ask(Opcode::Init, 0, &none, b"").unwrap();
        assert_eq!((out.flags, out.minor, out.max_readahead), (0, 41, 1 << 20));
        let newer = InitIn { major: 8, minor: 0, ..none };
        let out: InitOut = client.ask(Opcode::Init, 0, &newer, b"").unwrap();
        assert_eq!(out.major, 7);
        for (major, minor) in [(6, 99), (7, 30)] {
            let old = InitIn { major, minor, ..none };
            assert_eq!(client.ask::<InitOut>(Opcode::Init, 0, &old, b"").unwrap_err(), libc::EPROTO);
        }
    });
}
