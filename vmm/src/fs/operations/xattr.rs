//! Extended attributes: SETXATTR, GETXATTR, LISTXATTR and REMOVEXATTR.
//!
//! There are no such calls for `O_PATH` descriptors. They are made on the name of the descriptor in `/proc/self/fd`,
//! which is the working directory of this thread: its link leads to the inode itself, also when that is a symbolic
//! link.

use std::ffi::CStr;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use crate::fs::file_system::FileSystem;
use crate::fs::host::{Status, name_of};
use crate::fs::limits::XATTR_BYTES;
use crate::fs::wire::{SETXATTR_ACL_KILL_SGID, SetxattrIn};

/// The attributes that a guest may change. Labels and hashes that guard the host itself (`security.selinux`,
/// `security.ima`, …) are not among them.
const CHANGEABLE: [&[u8]; 5] =
    [b"user.", b"trusted.", b"security.capability", b"system.posix_acl_access", b"system.posix_acl_default"];

/// What a read of an attribute returns.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::fs) enum Xattr {
    /// The length of the value.
    Length(usize),
    /// The value was appended to the output.
    Value,
}

impl FileSystem {
    /// Sets an attribute.
    ///
    /// # Errors
    /// `EOPNOTSUPP` for an attribute that a guest may not change; else what `setxattr` returned.
    pub(in crate::fs) fn setxattr(
        &mut self,
        node: u64,
        name: &CStr,
        value: &[u8],
        request: &SetxattrIn,
    ) -> Result<(), Errno> {
        require_changeable(name)?;
        let flags = XattrFlags::from_bits(request.flags).ok_or(Errno::INVAL)?;
        self.credentials.keep_set_id(true)?;
        rustix::fs::setxattr(name_of(self.inodes.get(node)?), name, value, flags)?;
        if request.setxattr_flags & SETXATTR_ACL_KILL_SGID != 0 {
            let mode = Status::of(self.inodes.get(node)?)?.attributes.mode;
            if mode & libc::S_ISGID != 0 {
                self.set_mode(node, mode & !libc::S_ISGID)?;
            }
        }
        Ok(())
    }

    /// Reads an attribute into `out`, or its length when there is `room` for nothing.
    ///
    /// # Errors
    /// `ERANGE` when the value does not fit into `room` bytes; else what `getxattr` returned.
    pub(in crate::fs) fn getxattr(
        &mut self,
        node: u64,
        name: &CStr,
        room: usize,
        out: &mut Vec<u8>,
    ) -> Result<Xattr, Errno> {
        let path = name_of(self.inodes.get(node)?);
        if room == 0 {
            return rustix::fs::getxattr_query(path, name).map(Xattr::Length);
        }
        append(out, room, |value| rustix::fs::getxattr(path, name, value))
    }

    /// Lists attributes into `out`, or the list's length when there is `room` for nothing.
    ///
    /// # Errors
    /// `ERANGE` when the list does not fit into `room` bytes; else what `listxattr` returned.
    pub(in crate::fs) fn listxattr(
        &mut self,
        node: u64,
        room: usize,
        out: &mut Vec<u8>,
    ) -> Result<Xattr, Errno> {
        let path = name_of(self.inodes.get(node)?);
        if room == 0 {
            return rustix::fs::listxattr_query(path).map(Xattr::Length);
        }
        append(out, room, |list| rustix::fs::listxattr(path, list))
    }

    /// Removes an attribute.
    ///
    /// # Errors
    /// `EOPNOTSUPP` for an attribute that a guest may not change; else what `removexattr` returned.
    pub(in crate::fs) fn removexattr(&mut self, node: u64, name: &CStr) -> Result<(), Errno> {
        require_changeable(name)?;
        self.credentials.keep_set_id(true)?;
        rustix::fs::removexattr(name_of(self.inodes.get(node)?), name)
    }
}

fn require_changeable(name: &CStr) -> Result<(), Errno> {
    let name = name.to_bytes();
    let changeable = CHANGEABLE.iter().any(|family| match family.last() {
        Some(b'.') => name.starts_with(family),
        _ => name == *family,
    });
    match changeable {
        true => Ok(()),
        false => Err(Errno::OPNOTSUPP),
    }
}

fn append(
    out: &mut Vec<u8>,
    room: usize,
    read: impl FnOnce(&mut [u8]) -> Result<usize, Errno>,
) -> Result<Xattr, Errno> {
    let begin = out.len();
    out.resize(begin + room.min(XATTR_BYTES), 0);
    let length = read(out.get_mut(begin..).unwrap_or_default())?;
    out.truncate(begin + length);
    Ok(Xattr::Value)
}
