use std::os::unix::fs::PermissionsExt;

use rustix::fs::OFlags;

use super::client::{Client, is_privileged, text, with_client};
use crate::fs::wire::{
    GetxattrIn, GetxattrOut, InitFlags, InitIn, InitOut, Opcode, ROOT_ID, SETXATTR_ACL_KILL_SGID, SetxattrIn,
    Wire,
};

fn set(client: &mut Client, node: u64, name: &str, value: &[u8], flags: u32, kill: u32) -> Result<(), i32> {
    let request = SetxattrIn { size: value.len() as u32, flags, setxattr_flags: kill, padding: 0 };
    client.tell(Opcode::Setxattr, node, &request, &[text(name.as_bytes()), value.to_vec()].concat())
}

fn get(client: &mut Client, node: u64, name: &str, size: u32) -> Result<Vec<u8>, i32> {
    let mut body = Vec::new();
    GetxattrIn { size, padding: 0 }.put(&mut body);
    body.extend(text(name.as_bytes()));
    client.call(Opcode::Getxattr, node, &body)
}

/// Whether the scratch directory's file system has user attributes.
fn supported(client: &Client) -> bool {
    rustix::fs::setxattr(client.host(""), "user.probe", b"", rustix::fs::XattrFlags::empty()).is_ok()
}

#[test]
fn an_attribute_is_set_read_listed_and_removed() {
    with_client(|client| {
        if !supported(client) {
            return;
        }
        let (entry, _) = client.create(ROOT_ID, "file", OFlags::RDWR, 0o644, 0).unwrap();
        set(client, entry.node, "user.a", b"value", 0, 0).unwrap();
        assert_eq!(get(client, entry.node, "user.a", 100).unwrap(), b"value");
        assert_eq!(get(client, entry.node, "user.a", 5).unwrap(), b"value");
        assert_eq!(get(client, entry.node, "user.a", 4).unwrap_err(), libc::ERANGE);
        assert_eq!(get(client, entry.node, "user.b", 100).unwrap_err(), libc::ENODATA);
        let length = get(client, entry.node, "user.a", 0).unwrap();
        assert_eq!(GetxattrOut::take(&mut length.as_slice()).unwrap().size, 5);
        // XATTR_CREATE, XATTR_REPLACE.
        assert_eq!(set(client, entry.node, "user.a", b"", 1, 0).unwrap_err(), libc::EEXIST);
        assert_eq!(set(client, entry.node, "user.b", b"", 2, 0).unwrap_err(), libc::ENODATA);
        assert_eq!(set(client, entry.node, "user.b", b"", 8, 0).unwrap_err(), libc::EINVAL);
        let mut body = Vec::new();
        GetxattrIn { size: 1000, padding: 0 }.put(&mut body);
        let names = client.call(Opcode::Listxattr, entry.node, &body).unwrap();
        assert!(names.split(|byte| *byte == 0).any(|name| name == b"user.a"), "{names:?}");
        let mut body = Vec::new();
        GetxattrIn::default().put(&mut body);
        let length = client.call(Opcode::Listxattr, entry.node, &body).unwrap();
        assert_eq!(GetxattrOut::take(&mut length.as_slice()).unwrap().size as usize, names.len());
        client.call(Opcode::Removexattr, entry.node, &text(b"user.a")).unwrap();
        assert_eq!(get(client, entry.node, "user.a", 100).unwrap_err(), libc::ENODATA);
    });
}

#[test]
fn a_symbolic_links_attributes_are_its_own() {
    if !is_privileged() {
        return;
    }
    with_client(|client| {
        let (target, _) = client.create(ROOT_ID, "target", OFlags::RDWR, 0o644, 0).unwrap();
        let link = client.symlink(ROOT_ID, "link", "target").unwrap();
        // Symbolic links cannot have user attributes; trusted ones they can, where the file system has them at all.
        if set(client, target.node, "trusted.probe", b"", 0, 0).is_err() {
            return;
        }
        set(client, link.node, "trusted.link", b"own", 0, 0).unwrap();
        assert_eq!(get(client, link.node, "trusted.link", 10).unwrap(), b"own");
        assert_eq!(get(client, target.node, "trusted.link", 10).unwrap_err(), libc::ENODATA);
        let outside = client.outside("secret");
        std::fs::write(&outside, b"").unwrap();
        let link = client.symlink(ROOT_ID, "out", "../secret").unwrap();
        set(client, link.node, "trusted.link", b"own", 0, 0).unwrap();
        let mut value = [0; 10];
        assert!(rustix::fs::getxattr(&outside, "trusted.link", &mut value[..]).is_err());
    });
}

#[test]
fn labels_that_guard_the_host_cannot_be_changed() {
    with_client(|client| {
        let (entry, _) = client.create(ROOT_ID, "file", OFlags::RDWR, 0o644, 0).unwrap();
        for name in
            ["security.selinux", "security.ima", "security.capability2", "system.other", "user", "userx.a"]
        {
            assert_eq!(set(client, entry.node, name, b"x", 0, 0).unwrap_err(), libc::EOPNOTSUPP, "{name}");
            let removed = client.call(Opcode::Removexattr, entry.node, &text(name.as_bytes()));
            assert_eq!(removed.unwrap_err(), libc::EOPNOTSUPP, "{name}");
        }
    });
}

#[test]
fn names_and_values_are_bounded() {
    with_client(|client| {
        let long = format!("user.{}", "x".repeat(251));
        assert_eq!(set(client, ROOT_ID, &long, b"", 0, 0).unwrap_err(), libc::ENAMETOOLONG);
        assert_eq!(set(client, ROOT_ID, "user.big", &[0; 65_537], 0, 0).unwrap_err(), libc::E2BIG);
        let request = SetxattrIn { size: 10, ..SetxattrIn::default() };
        let short = client.tell(Opcode::Setxattr, ROOT_ID, &request, b"user.a\0short");
        assert_eq!(short.unwrap_err(), libc::EINVAL);
        let absurd = SetxattrIn { size: u32::MAX, ..SetxattrIn::default() };
        let absurd = client.tell(Opcode::Setxattr, ROOT_ID, &absurd, b"user.a\0short");
        assert_eq!(absurd.unwrap_err(), libc::E2BIG);
        // However much room the guest claims to have.
        assert!(matches!(get(client, ROOT_ID, "user.none", u32::MAX), Err(libc::ENODATA | libc::EOPNOTSUPP)));
    });
}

#[test]
fn a_default_access_list_takes_the_place_of_the_umask() {
    with_client(|client| {
        let directory = client.mkdir(ROOT_ID, "d").unwrap().node;
        // Version 2; user::rwx, group::r-x, other::r-x (linux/posix_acl_xattr.h).
        let mut list = vec![2, 0, 0, 0];
        for (tag, permissions) in [(1_u16, 7_u16), (4, 5), (0x20, 5)] {
            tag.put(&mut list);
            permissions.put(&mut list);
            u32::MAX.put(&mut list);
        }
        if set(client, directory, "system.posix_acl_default", &list, 0, 0).is_err() {
            return;
        }
        let (entry, _) = client.create(directory, "file", OFlags::RDWR, 0o777, 0o077).unwrap();
        assert_eq!(entry.attributes.mode & 0o777, 0o755);
        let (entry, _) = client.create(ROOT_ID, "file", OFlags::RDWR, 0o777, 0o077).unwrap();
        assert_eq!(entry.attributes.mode & 0o777, 0o700);
    });
}

#[test]
fn setting_an_access_list_clears_the_group_bit_when_it_is_to() {
    with_client(|client| {
        let (entry, _) = client.create(ROOT_ID, "file", OFlags::RDWR, 0o755, 0).unwrap();
        let mut list = vec![2, 0, 0, 0];
        for (tag, permissions) in [(1_u16, 7_u16), (4, 5), (0x20, 5)] {
            tag.put(&mut list);
            permissions.put(&mut list);
            u32::MAX.put(&mut list);
        }
        for (kill, mode) in [(0, 0o2755), (SETXATTR_ACL_KILL_SGID, 0o755)] {
            std::fs::set_permissions(client.host("file"), PermissionsExt::from_mode(0o2755)).unwrap();
            if set(client, entry.node, "system.posix_acl_access", &list, 0, kill).is_err() {
                return;
            }
            let attributes = client.getattr(entry.node).unwrap().attributes;
            assert_eq!(attributes.mode & 0o7777, mode);
        }
    });
}

#[test]
fn a_client_that_does_not_know_the_long_form_uses_the_short_one() {
    with_client(|client| {
        if !supported(client) {
            return;
        }
        let flags = InitFlags::all().difference(InitFlags::SETXATTR_EXT).bits() as u32;
        let init = InitIn { major: 7, minor: 38, max_readahead: 1 << 17, flags };
        client.ask::<InitOut>(Opcode::Init, 0, &init, b"").unwrap();
        // Size and flags, and the name follows at once.
        let mut short = |flags| {
            let request = u64::from(5_u32) | u64::from(flags) << 32;
            client.tell(Opcode::Setxattr, ROOT_ID, &request, b"user.short\0value")
        };
        assert_eq!(short(libc::XATTR_REPLACE as u32), Err(libc::ENODATA));
        assert_eq!(short(libc::XATTR_CREATE as u32), Ok(()));
        assert_eq!(short(libc::XATTR_CREATE as u32), Err(libc::EEXIST));
        assert_eq!(get(client, ROOT_ID, "user.short", 100).unwrap(), b"value");
    });
}

#[test]
fn an_attribute_leaves_set_id_bits_alone_unless_it_is_to_clear_one() {
    with_client(|client| {
        if !supported(client) {
            return;
        }
        let (entry, _) = client.create(ROOT_ID, "file", OFlags::RDWR, 0o755, 0).unwrap();
        std::fs::set_permissions(client.host("file"), PermissionsExt::from_mode(0o6755)).unwrap();
        for (kill, mode) in [(0, 0o6755), (SETXATTR_ACL_KILL_SGID, 0o4755)] {
            set(client, entry.node, "user.a", b"value", 0, kill).unwrap();
            assert_eq!(client.getattr(entry.node).unwrap().attributes.mode & 0o7777, mode);
        }
    });
}
