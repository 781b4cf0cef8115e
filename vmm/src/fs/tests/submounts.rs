//! Mounts of the host within the share.

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::client::{Client, with_client};
use crate::fs::wire::{ATTR_SUBMOUNT, EntryOut, InitFlags, InitIn, InitOut, Opcode, ROOT_ID};

/// Runs `test` where mounts can be made that nobody else sees; not at all where this process may not make any.
pub(super) fn with_mounts(test: impl FnOnce(&mut Client) + Send + 'static) {
    let thread = std::thread::spawn(|| {
        // SAFETY: no memory and no descriptor table is unshared, so that nothing is taken away that other code relies on.
        if unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.is_err() {
            return;
        }
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        with_client(test);
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn is_announced(entry: &EntryOut) -> bool {
    entry.attributes.flags & ATTR_SUBMOUNT != 0
}

#[test]
fn a_directory_on_another_mount_is_announced_as_one_and_nothing_else_is() {
    with_mounts(|client| {
        for name in ["mount", "plain"] {
            std::fs::create_dir(client.host(name)).unwrap();
        }
        std::fs::write(client.host("file"), b"").unwrap();
        mount("none", client.host("mount"), "tmpfs", MountFlags::empty(), None).unwrap();
        mount_bind(client.host("file"), client.host("file")).unwrap();
        std::fs::create_dir(client.host("mount/inner")).unwrap();
        for (path, announced) in [("mount", true), ("mount/inner", false), ("plain", false), ("file", false)]
        {
            assert_eq!(is_announced(&client.walk(path).unwrap()), announced, "{path}");
        }
        // A client that does not know of submounts has one file system.
        let flags = InitFlags::all().difference(InitFlags::SUBMOUNTS).bits() as u32;
        let init = InitIn { major: 7, minor: 38, max_readahead: 1 << 17, flags };
        client.ask::<InitOut>(Opcode::Init, 0, &init, b"").unwrap();
        assert!(!is_announced(&client.walk("mount").unwrap()));
    });
}

#[test]
fn a_mount_over_a_known_directory_is_another_inode() {
    with_mounts(|client| {
        std::fs::create_dir(client.host("d")).unwrap();
        let below = client.lookup(ROOT_ID, "d").unwrap().node;
        mount("none", client.host("d"), "tmpfs", MountFlags::empty(), None).unwrap();
        let above = client.lookup(ROOT_ID, "d").unwrap();
        assert_ne!(above.node, below);
        std::fs::create_dir(client.host("d/in the mount")).unwrap();
        assert!(client.lookup(above.node, "in the mount").is_ok());
        assert_eq!(client.lookup(below, "in the mount").unwrap_err(), libc::ENOENT);
    });
}
