//! What a request asks for.

macro_rules! opcodes {
    ($($(#[$meta:meta])* $name:ident = $number:literal,)*) => {
        /// `enum fuse_opcode`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Opcode {
            $($(#[$meta])* $name,)*
        }

        impl Opcode {
            /// Every opcode that this server knows by name.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The opcode with this number, if it is known.
            pub fn from_number(number: u32) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// The opcode's number.
            pub fn number(self) -> u32 {
                match self {
                    $(Self::$name => $number,)*
                }
            }
        }
    };
}

opcodes! {
    /// Find a name in a directory.
    Lookup = 1,
    /// Give up lookups of one inode. Has no reply.
    Forget = 2,
    /// Read attributes.
    Getattr = 3,
    /// Change attributes.
    Setattr = 4,
    /// Read a symbolic link.
    Readlink = 5,
    /// Make a symbolic link.
    Symlink = 6,
    /// Make a file of any type but directory and symbolic link.
    Mknod = 8,
    /// Make a directory.
    Mkdir = 9,
    /// Remove a name that is not a directory's.
    Unlink = 10,
    /// Remove a directory.
    Rmdir = 11,
    /// Rename.
    Rename = 12,
    /// Make a hard link.
    Link = 13,
    /// Open a file.
    Open = 14,
    /// Read from an open file.
    Read = 15,
    /// Write to an open file.
    Write = 16,
    /// Read the file system's figures.
    Statfs = 17,
    /// Close an open file.
    Release = 18,
    /// Bring a file to disk.
    Fsync = 20,
    /// Set an extended attribute.
    Setxattr = 21,
    /// Read an extended attribute.
    Getxattr = 22,
    /// List extended attributes.
    Listxattr = 23,
    /// Remove an extended attribute.
    Removexattr = 24,
    /// A descriptor of an open file was closed.
    Flush = 25,
    /// Agree on version and features.
    Init = 26,
    /// Open a directory.
    Opendir = 27,
    /// Read names from an open directory.
    Readdir = 28,
    /// Close an open directory.
    Releasedir = 29,
    /// Bring a directory to disk.
    Fsyncdir = 30,
    /// Test for a lock.
    Getlk = 31,
    /// Take a lock or fail.
    Setlk = 32,
    /// Take a lock or wait for it.
    Setlkw = 33,
    /// Check permissions.
    Access = 34,
    /// Make and open a file.
    Create = 35,
    /// Give up waiting for a request.
    Interrupt = 36,
    /// Map a block.
    Bmap = 37,
    /// The file system was unmounted.
    Destroy = 38,
    /// Device control.
    Ioctl = 39,
    /// Wait for readiness.
    Poll = 40,
    /// The answer to a notification.
    NotifyReply = 41,
    /// Give up lookups of many inodes. Has no reply.
    BatchForget = 42,
    /// Reserve or free space.
    Fallocate = 43,
    /// Read names and look each one up.
    Readdirplus = 44,
    /// Rename with flags.
    Rename2 = 45,
    /// Find data or a hole.
    Lseek = 46,
    /// Copy between two open files.
    CopyFileRange = 47,
    /// Map a file range into the DAX window.
    Setupmapping = 48,
    /// Remove mappings from the DAX window.
    Removemapping = 49,
    /// Bring the file system to disk.
    Syncfs = 50,
    /// Make and open a file without a name.
    Tmpfile = 51,
    /// Read extended attributes of the `statx` kind.
    Statx = 52,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_opcode_is_found_by_its_number_and_others_are_not() {
        for opcode in Opcode::ALL {
            assert_eq!(Opcode::from_number(opcode.number()), Some(*opcode));
        }
        for number in [0, 7, 19, 53, 4096, u32::MAX] {
            assert_eq!(Opcode::from_number(number), None, "{number}");
        }
    }
}
