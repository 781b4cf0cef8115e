use rustix::fs::OFlags;

use super::client::{Client, Setup, with_client, with_setup};
use crate::fs::wire::{EntryOut, InitFlags, InitIn, InitOut, Opcode, OpenOut, OpenOutFlags, ROOT_ID};
use crate::fs::{CachePolicy, Caching};

const DAY: u64 = 24 * 60 * 60;

fn below_the_containers(caching: Caching) -> Setup {
    Setup { policy: CachePolicy::below(1, caching), ..Setup::default() }
}

fn prepare(client: &Client) {
    std::fs::create_dir_all(client.host("c/rootfs/bin")).unwrap();
    std::fs::write(client.host("c/rootfs/bin/file"), b"").unwrap();
}

fn valid(entry: &EntryOut) -> (u64, u64) {
    (entry.entry_valid, entry.attributes_valid)
}

#[test]
fn names_and_attributes_live_as_long_as_the_policy_says() {
    for (caching, life) in [(Caching::EXCLUSIVE, DAY), (Caching::SHARED, 1)] {
        with_setup(below_the_containers(caching), move |client| {
            prepare(client);
            for (path, life) in [("c", 0), ("c/rootfs", life), ("c/rootfs/bin/file", life)] {
                let entry = client.walk(path).unwrap();
                assert_eq!(valid(&entry), (life, life), "{path}");
                assert_eq!(client.getattr(entry.node).unwrap().valid, life, "{path}");
            }
            assert_eq!(client.getattr(ROOT_ID).unwrap().valid, 0);
        });
    }
}

#[test]
fn an_absent_name_is_cached_only_where_the_guest_alone_makes_names() {
    with_setup(below_the_containers(Caching::EXCLUSIVE), |client| {
        prepare(client);
        let absent = client.walk("c/rootfs/absent").unwrap();
        assert_eq!((absent.node, absent.entry_valid), (0, DAY));
        assert_eq!(client.walk("absent").unwrap_err(), libc::ENOENT);
    });
    with_setup(below_the_containers(Caching::SHARED), |client| {
        prepare(client);
        for path in ["absent", "c/absent", "c/rootfs/absent"] {
            assert_eq!(client.walk(path).unwrap_err(), libc::ENOENT, "{path}");
        }
    });
}

#[test]
fn contents_and_listings_are_kept_only_where_the_guest_alone_writes() {
    for (caching, kept) in [(Caching::EXCLUSIVE, true), (Caching::SHARED, false)] {
        with_setup(below_the_containers(caching), move |client| {
            prepare(client);
            let directory = client.walk("c/rootfs/bin").unwrap().node;
            let open: OpenOut = client.ask(Opcode::Opendir, directory, &0_u64, b"").unwrap();
            let flags = OpenOutFlags::from_bits_retain(open.flags);
            assert_eq!(flags.contains(OpenOutFlags::CACHE_DIR | OpenOutFlags::KEEP_CACHE), kept);
            let file = client.lookup(directory, "file").unwrap().node;
            let open = client.open(file, OFlags::RDONLY).unwrap();
            let flags = OpenOutFlags::from_bits_retain(open.flags);
            assert_eq!(flags.contains(OpenOutFlags::KEEP_CACHE), kept);
        });
    }
}

#[test]
fn a_container_that_the_host_adds_or_removes_is_seen_at_once() {
    with_setup(below_the_containers(Caching::EXCLUSIVE), |client| {
        prepare(client);
        assert_eq!(client.walk("d").unwrap_err(), libc::ENOENT);
        std::fs::create_dir_all(client.host("d/rootfs")).unwrap();
        assert!(client.walk("d/rootfs").is_ok());
        std::fs::remove_dir_all(client.host("d")).unwrap();
        assert_eq!(client.walk("d").unwrap_err(), libc::ENOENT);
    });
}

#[test]
fn only_what_both_sides_want_is_agreed_on() {
    with_client(|client| {
        let agreed = InitFlags::from_bits_retain(u64::from(client.negotiated.flags));
        let permissions = InitFlags::POSIX_ACL | InitFlags::DONT_MASK | InitFlags::HANDLE_KILLPRIV_V2;
        let reads = InitFlags::ASYNC_READ | InitFlags::ASYNC_DIO | InitFlags::AUTO_INVAL_DATA;
        let requests = InitFlags::MAX_PAGES | InitFlags::BIG_WRITES | InitFlags::PARALLEL_DIROPS;
        let names = InitFlags::DO_READDIRPLUS | InitFlags::READDIRPLUS_AUTO | InitFlags::CACHE_SYMLINKS;
        let forms = InitFlags::SUBMOUNTS | InitFlags::SETXATTR_EXT | InitFlags::INIT_EXT;
        // Not WRITEBACK_CACHE, which was not allowed, nor ATOMIC_O_TRUNC, with which a program that runs would be truncated.
        assert_eq!(agreed, permissions | reads | requests | names | forms);
        assert_eq!((client.negotiated.major, client.negotiated.minor), (7, 38));
        assert_eq!((client.negotiated.max_write, client.negotiated.max_pages), (1 << 20, 256));
        let none = InitIn { major: 7, minor: 50, max_readahead: u32::MAX, flags: 0 };
        let out: InitOut = client.ask(Opcode::Init, 0, &none, b"").unwrap();
        assert_eq!((out.flags, out.minor, out.max_readahead), (0, 41, 1 << 20));
        assert_eq!((out.max_background, out.congestion_threshold, out.time_granularity), (64, 48, 1));
        let oldest: InitOut = client.ask(Opcode::Init, 0, &InitIn { minor: 31, ..none }, b"").unwrap();
        assert_eq!((oldest.major, oldest.minor), (7, 31));
        let newer = InitIn { major: 8, minor: 0, ..none };
        let out: InitOut = client.ask(Opcode::Init, 0, &newer, b"").unwrap();
        assert_eq!((out.major, out.minor), (7, 41));
        for (major, minor) in [(6, 99), (7, 30)] {
            let old = InitIn { major, minor, ..none };
            assert_eq!(client.ask::<InitOut>(Opcode::Init, 0, &old, b"").unwrap_err(), libc::EPROTO);
        }
    });
}
