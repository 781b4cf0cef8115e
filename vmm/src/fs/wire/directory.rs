//! Names, entries and links.

use super::{Attributes, Wire, wire_struct};

wire_struct! {
    /// `struct fuse_entry_out`.
    pub struct EntryOut: 128 {
        /// The inode; zero for a name that does not exist.
        pub node: u64,
        /// Tells apart inodes that had the same number one after another.
        pub generation: u64,
        /// How long the name may be cached, seconds.
        pub entry_valid: u64,
        /// How long the attributes may be cached, seconds.
        pub attributes_valid: u64,
        /// How long the name may be cached, nanoseconds.
        pub entry_valid_nanoseconds: u32,
        /// How long the attributes may be cached, nanoseconds.
        pub attributes_valid_nanoseconds: u32,
        /// The inode's attributes.
        pub attributes: Attributes,
    }
}

wire_struct! {
    /// `struct fuse_forget_in`.
    pub struct ForgetIn: 8 {
        /// How many lookups are given up.
        pub lookups: u64,
    }
}

wire_struct! {
    /// `struct fuse_forget_one`.
    pub struct ForgetOne: 16 {
        /// The inode.
        pub node: u64,
        /// How many lookups are given up.
        pub lookups: u64,
    }
}

wire_struct! {
    /// `struct fuse_batch_forget_in`, followed by `count` [`ForgetOne`]s.
    pub struct BatchForgetIn: 8 {
        /// How many follow.
        pub count: u32,
        /// Zero.
        pub dummy: u32,
    }
}

wire_struct! {
    /// `struct fuse_mknod_in`, followed by the name.
    pub struct MknodIn: 16 {
        /// Type and permissions.
        pub mode: u32,
        /// Device number.
        pub device: u32,
        /// The caller's umask.
        pub umask: u32,
        /// Zero.
        pub padding: u32,
    }
}

wire_struct! {
    /// `struct fuse_mkdir_in`, followed by the name.
    pub struct MkdirIn: 8 {
        /// Permissions.
        pub mode: u32,
        /// The caller's umask.
        pub umask: u32,
    }
}

wire_struct! {
    /// `struct fuse_rename_in`, followed by the old and the new name.
    pub struct RenameIn: 8 {
        /// The directory of the new name.
        pub new_directory: u64,
    }
}

wire_struct! {
    /// `struct fuse_rename2_in`, followed by the old and the new name.
    pub struct Rename2In: 16 {
        /// The directory of the new name.
        pub new_directory: u64,
        /// `RENAME_*`.
        pub flags: u32,
        /// Zero.
        pub padding: u32,
    }
}

wire_struct! {
    /// `struct fuse_link_in`, followed by the new name.
    pub struct LinkIn: 8 {
        /// The inode that gets another name.
        pub old_node: u64,
    }
}

/// The length of `struct fuse_dirent` before the name.
pub const DIRECTORY_ENTRY_HEADER: usize = 24;

/// One entry of a directory, as `READDIR` returns it.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// Inode number.
    pub inode: u64,
    /// Where the next entry is found.
    pub next_offset: u64,
    /// `DT_*`.
    pub file_type: u32,
    /// The name, without a NUL.
    pub name: &'a [u8],
}

impl Entry<'_> {
    /// The length on the wire: header and name, rounded up to 8 bytes (`FUSE_DIRENT_ALIGN`).
    pub fn wire_length(&self) -> usize {
        (DIRECTORY_ENTRY_HEADER + self.name.len()).next_multiple_of(8)
    }
}

/// Appends `struct fuse_dirent`, name and padding.
pub fn put_directory_entry(entry: &Entry<'_>, out: &mut Vec<u8>) {
    let end = out.len() + entry.wire_length();
    entry.inode.put(out);
    entry.next_offset.put(out);
    // A name comes from the host's getdents64 and is at most 255 bytes long.
    u32::try_from(entry.name.len()).unwrap_or(0).put(out);
    entry.file_type.put(out);
    out.extend_from_slice(entry.name);
    out.resize(end, 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_padded_to_eight_bytes() {
        for (name, length) in [(&b"a"[..], 32), (b"12345678", 32), (b"123456789", 40)] {
            let mut out = vec![0xff; 3];
            let entry = Entry { inode: 7, next_offset: 9, file_type: 4, name };
            put_directory_entry(&entry, &mut out);
            assert_eq!(out.len() - 3, length);
            assert_eq!(entry.wire_length(), length);
            assert_eq!(&out[3 + 24..3 + 24 + name.len()], name);
            assert!(out[3 + 24 + name.len()..].iter().all(|byte| *byte == 0));
        }
    }
}
