//! The FUSE protocol's structures as bytes.
//!
//! Layouts, names and numbers come from `include/uapi/linux/fuse.h` of Linux 6.12 (protocol 7.41). Everything is
//! little-endian, which is what an x86-64 guest speaks. A structure is read from bytes that have already been
//! copied out of guest memory, field by field, so that neither alignment nor a hostile length matters.

mod attributes;
mod directory;
mod file;
mod header;
mod init;
mod opcode;

pub use attributes::{
    ATTR_SUBMOUNT, Attributes, AttributesOut, GETATTR_FH, GetattrIn, SetattrIn, SetattrValid, StatfsOut,
    StatxIn, StatxOut, StatxTime,
};
pub use directory::{
    BatchForgetIn, DIRECTORY_ENTRY_HEADER, Entry, EntryOut, ForgetIn, ForgetOne, LinkIn, MkdirIn, MknodIn,
    Rename2In, RenameIn, put_directory_entry,
};
pub use file::{
    AccessIn, CopyFileRangeIn, CreateIn, FSYNC_DATA_ONLY, FallocateIn, FsyncIn, GetxattrIn, GetxattrOut,
    LseekIn, LseekOut, OPEN_KILL_SUIDGID, OpenIn, OpenOut, OpenOutFlags, RELEASE_FLOCK_UNLOCK, ReadIn,
    ReleaseIn, SETXATTR_ACL_KILL_SGID, SETXATTR_IN_SHORT, SetxattrIn, WRITE_CACHE, WRITE_KILL_SUIDGID,
    WriteIn, WriteOut,
};
pub use header::{InHeader, OutHeader};
pub use init::{InitFlags, InitIn, InitOut, KERNEL_MINOR_VERSION, KERNEL_VERSION};
pub use opcode::Opcode;

/// The node id of the root.
pub const ROOT_ID: u64 = 1;

/// The bytes end before the structure does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Truncated;

/// A value with a fixed little-endian representation.
pub trait Wire: Sized {
    /// The length in bytes.
    const SIZE: usize;

    /// Takes the value off the front of `bytes`.
    ///
    /// # Errors
    /// When fewer than [`SIZE`](Self::SIZE) bytes are left.
    fn take(bytes: &mut &[u8]) -> Result<Self, Truncated>;

    /// Appends the value to `out`.
    fn put(&self, out: &mut Vec<u8>);
}

macro_rules! wire_integer {
    ($($integer:ty),*) => {$(
        impl Wire for $integer {
            const SIZE: usize = size_of::<$integer>();

            fn take(bytes: &mut &[u8]) -> Result<Self, Truncated> {
                let (head, rest) = bytes.split_first_chunk().ok_or(Truncated)?;
                *bytes = rest;
                Ok(Self::from_le_bytes(*head))
            }

            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}

wire_integer!(u16, u32, u64, i32, i64);

impl<const N: usize> Wire for [u32; N] {
    const SIZE: usize = 4 * N;

    fn take(bytes: &mut &[u8]) -> Result<Self, Truncated> {
        let mut array = [0; N];
        for item in &mut array {
            *item = u32::take(bytes)?;
        }
        Ok(array)
    }

    fn put(&self, out: &mut Vec<u8>) {
        self.iter().for_each(|item| item.put(out));
    }
}

impl<const N: usize> Wire for [u64; N] {
    const SIZE: usize = 8 * N;

    fn take(bytes: &mut &[u8]) -> Result<Self, Truncated> {
        let mut array = [0; N];
        for item in &mut array {
            *item = u64::take(bytes)?;
        }
        Ok(array)
    }

    fn put(&self, out: &mut Vec<u8>) {
        self.iter().for_each(|item| item.put(out));
    }
}

/// Defines a structure whose fields lie on the wire one after another, and holds it to the size that the header gives.
macro_rules! wire_struct {
    (
        $(#[$meta:meta])*
        pub struct $name:ident: $size:literal {
            $($(#[$field_meta:meta])* pub $field:ident: $type:ty,)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: $type,)*
        }

        impl $crate::fs::wire::Wire for $name {
            const SIZE: usize = 0 $(+ <$type as $crate::fs::wire::Wire>::SIZE)*;

            fn take(bytes: &mut &[u8]) -> Result<Self, $crate::fs::wire::Truncated> {
                Ok(Self { $($field: <$type as $crate::fs::wire::Wire>::take(bytes)?,)* })
            }

            fn put(&self, out: &mut Vec<u8>) {
                $(<$type as $crate::fs::wire::Wire>::put(&self.$field, out);)*
            }
        }

        const _: () = assert!(<$name as $crate::fs::wire::Wire>::SIZE == $size);
    };
}
use wire_struct;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_structure_reads_back_what_it_wrote_and_leaves_the_rest() {
        let link = LinkIn { old_node: 0x0102_0304_0506_0708 };
        let mut bytes = Vec::new();
        link.put(&mut bytes);
        bytes.extend_from_slice(b"name\0");
        let mut rest = bytes.as_slice();
        assert_eq!(LinkIn::take(&mut rest), Ok(link));
        assert_eq!(rest, b"name\0");
        assert_eq!(bytes.first(), Some(&8), "little-endian");
    }

    #[test]
    fn a_structure_cut_short_is_refused_at_every_length() {
        let mut bytes = Vec::new();
        SetattrIn::default().put(&mut bytes);
        for length in 0..bytes.len() {
            assert_eq!(SetattrIn::take(&mut &bytes[..length]), Err(Truncated), "{length} bytes");
        }
        assert!(SetattrIn::take(&mut bytes.as_slice()).is_ok());
    }
}
