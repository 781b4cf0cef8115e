use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::OFlags;

use super::client::with_client;
use crate::fs::FsConfig;
use crate::fs::wire::ROOT_ID;

/// Swaps two names for as long as it lives.
struct Swapper {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<u64>>,
}

impl Swapper {
    fn new(a: &Path, b: &Path) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (told, a, b) = (Arc::clone(&stop), a.to_owned(), b.to_owned());
        let thread = std::thread::spawn(move || {
            let mut swaps = 0;
            while !told.load(Ordering::Relaxed) {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(rustix::fs::CWD, &a, rustix::fs::CWD, &b, flags).unwrap();
                swaps += 1;
            }
            swaps
        });
        Self { stop, thread: Some(thread) }
    }

    fn stop(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

#[test]
fn no_race_between_a_directory_and_a_link_leads_outside() {
    with_client(|client| {
        let outside = client.outside("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("file"), b"secret").unwrap();
        std::fs::create_dir(client.host("inside")).unwrap();
        std::fs::write(client.host("inside/file"), b"public").unwrap();
        symlink(&outside, client.host("link")).unwrap();
        let swapper = Swapper::new(&client.host("inside"), &client.host("link"));
        let (mut reads, mut made) = (0, 0);
        for round in 0..20_000 {
            let Ok(directory) = client.lookup(ROOT_ID, "inside") else { continue };
            if let Ok(file) = client.lookup(directory.node, "file") {
                if let Ok(open) = client.open(file.node, OFlags::RDONLY) {
                    assert_eq!(client.read(open.handle, 0, 100).unwrap(), b"public");
                    client.release(open.handle).unwrap();
                    reads += 1;
                }
                client.forget(file.node, 1);
            }
            let name = format!("made-{round}");
            if let Ok((entry, open)) = client.create(directory.node, &name, OFlags::RDWR, 0o600, 0) {
                client.release(open.handle).unwrap();
                client.unlink(directory.node, &name).unwrap();
                client.forget(entry.node, 1);
                made += 1;
            }
            client.forget(directory.node, 1);
            if reads >= 500 && made >= 500 {
                break;
            }
        }
        let swaps = swapper.stop();
        assert!(swaps > 0 && reads > 0 && made > 0, "{swaps} swaps, {reads} reads, {made} files made");
        let names: Vec<_> =
            std::fs::read_dir(&outside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["file"]);
        assert_eq!(std::fs::read(outside.join("file")).unwrap(), b"secret");
    });
}

#[test]
fn the_directory_of_descriptors_can_be_walked_by_nobody_else_and_read_by_nobody() {
    let directory = FsConfig::open_descriptor_directory().unwrap();
    assert!(rustix::io::fcntl_getfd(&directory).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
    assert!(rustix::fs::fcntl_getfl(&directory).unwrap().contains(OFlags::PATH));
}

#[test]
fn a_magic_link_in_the_share_is_only_a_text() {
    with_client(|client| {
        // What a bind mount of /proc into the share would show.
        symlink(format!("/proc/self/fd/{}", 0), client.host("magic")).unwrap();
        let link = client.lookup(ROOT_ID, "magic").unwrap();
        assert_eq!(client.open(link.node, OFlags::RDONLY).unwrap_err(), libc::EINVAL);
        assert_eq!(client.lookup(link.node, "x").unwrap_err(), libc::ENOTDIR);
        // Creating through it makes nothing and follows nothing.
        assert!(client.create(ROOT_ID, "magic", OFlags::RDWR, 0o600, 0).is_err());
    });
}

#[test]
fn a_directory_that_is_moved_out_of_the_share_takes_nobody_along() {
    with_client(|client| {
        std::fs::create_dir(client.host("d")).unwrap();
        let node = client.lookup(ROOT_ID, "d").unwrap().node;
        std::fs::rename(client.host("d"), client.outside("d")).unwrap();
        std::fs::write(client.outside("secret"), b"").unwrap();
        // The guest keeps what it had, and gets no further.
        assert_eq!(client.lookup(node, "..").unwrap_err(), libc::EINVAL);
        assert_eq!(client.lookup(node, "../secret").unwrap_err(), libc::EINVAL);
    });
}
