//! How the server reaches the host's files.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Statx, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::path::DecInt;

use super::wire::Attributes;

/// What makes an inode that inode. The mount belongs to it: the same file seen through two mounts can be writable in
/// one and read-only in the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Identity {
    /// Major and minor number of the file system.
    pub(super) device: (u32, u32),
    /// The file system's number for it.
    pub(super) inode: u64,
    /// The mount it was reached through.
    pub(super) mount: u64,
}

/// When a file was made, in seconds and nanoseconds. It tells apart files that had the same inode number one after
/// another.
pub(super) type Birth = (i64, u32);

/// An inode's identity, type and attributes.
#[derive(Debug, Clone)]
pub(super) struct Status {
    /// Which file.
    pub(super) identity: Identity,
    /// What kind of file.
    pub(super) file_type: FileType,
    /// When it was made, where the host's file system says.
    pub(super) birth: Option<Birth>,
    /// Its attributes as the protocol has them.
    pub(super) attributes: Attributes,
}

impl Status {
    /// What `statx` is asked for.
    const WANTED: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::MNT_ID).union(StatxFlags::BTIME);

    /// The status of an open file, also of one that was opened with `O_PATH`.
    ///
    /// # Errors
    /// What `statx` returned.
    pub(super) fn of(descriptor: impl AsFd) -> Result<Self, Errno> {
        Self::of_name(descriptor, c"", AtFlags::EMPTY_PATH)
    }

    /// The status of `name` in `directory`; a link is not followed.
    ///
    /// # Errors
    /// What `statx` returned.
    pub(super) fn of_entry(directory: impl AsFd, name: &CStr) -> Result<Self, Errno> {
        Self::of_name(directory, name, AtFlags::NO_AUTOMOUNT)
    }

    fn of_name(directory: impl AsFd, name: &CStr, flags: AtFlags) -> Result<Self, Errno> {
        let status = rustix::fs::statx(directory, name, flags | AtFlags::SYMLINK_NOFOLLOW, Self::WANTED)?;
        Ok(Self::from(&status))
    }
}

impl From<&Statx> for Status {
    fn from(status: &Statx) -> Self {
        let mode = u32::from(status.stx_mode);
        Self {
            identity: Identity {
                device: (status.stx_dev_major, status.stx_dev_minor),
                inode: status.stx_ino,
                mount: status.stx_mnt_id,
            },
            file_type: FileType::from_raw_mode(mode),
            birth: (status.stx_mask & StatxFlags::BTIME.bits() != 0)
                .then_some((status.stx_btime.tv_sec, status.stx_btime.tv_nsec)),
            attributes: Attributes {
                inode: status.stx_ino,
                size: status.stx_size,
                blocks: status.stx_blocks,
                // Times before 1970 go over the wire as two's complement.
                atime: status.stx_atime.tv_sec.cast_unsigned(),
                mtime: status.stx_mtime.tv_sec.cast_unsigned(),
                ctime: status.stx_ctime.tv_sec.cast_unsigned(),
                atime_nanoseconds: status.stx_atime.tv_nsec,
                mtime_nanoseconds: status.stx_mtime.tv_nsec,
                ctime_nanoseconds: status.stx_ctime.tv_nsec,
                mode,
                links: status.stx_nlink,
                uid: status.stx_uid,
                gid: status.stx_gid,
                device: encode_device(status.stx_rdev_major, status.stx_rdev_minor),
                block_size: status.stx_blksize,
                flags: 0,
            },
        }
    }
}

/// A device number in the kernel's 32-bit encoding (`new_encode_dev`, linux/kdev_t.h).
fn encode_device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & !0xff) << 12)
}

/// The device number as system calls take it, from the kernel's 32-bit encoding (`new_decode_dev`, linux/kdev_t.h).
pub(super) fn decode_device(device: u32) -> rustix::fs::Dev {
    rustix::fs::makedev((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xfff00))
}

/// Opens `name` in `directory` as an `O_PATH` descriptor, whatever it is. A link is not followed: its own descriptor
/// comes back.
///
/// # Errors
/// What `openat2` returned.
pub(super) fn reach(directory: impl AsFd, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    open_beneath(directory, name, flags, Mode::empty())
}

/// Opens `name` in `directory` without leaving the directory and without following any link.
///
/// # Errors
/// What `openat2` returned.
pub(super) fn open_beneath(
    directory: impl AsFd,
    name: &CStr,
    flags: OFlags,
    mode: Mode,
) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(directory, name, flags | OFlags::CLOEXEC, mode, resolve)
}

/// `/proc/self/fd` of this process: the way from an `O_PATH` descriptor to one that can read and write.
#[derive(Debug)]
pub(super) struct DescriptorDirectory {
    directory: OwnedFd,
}

impl DescriptorDirectory {
    /// Takes an open `/proc/self/fd`, after checking that it is that of this very process.
    ///
    /// # Errors
    /// `EINVAL` when it is something else; else what the check's system calls returned.
    pub(super) fn new(directory: OwnedFd) -> Result<Self, Errno> {
        let itself = Status::of(&directory)?;
        let through =
            rustix::fs::statx(&directory, DecInt::from_fd(&directory), AtFlags::empty(), Status::WANTED);
        match through {
            Ok(status) if Status::from(&status).identity == itself.identity => Ok(Self { directory }),
            _ => Err(Errno::INVAL),
        }
    }

    /// The directory itself.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Opens the file behind `descriptor` anew. The caller has seen that it is a regular file or a directory: opening
    /// anything else could have effects on the host.
    ///
    /// # Errors
    /// What `openat` returned.
    pub(super) fn reopen(&self, descriptor: impl AsFd, flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY;
        rustix::fs::openat(&self.directory, name_of(descriptor), flags, Mode::empty())
    }
}

/// The name of a descriptor in `/proc/self/fd`.
pub(super) fn name_of(descriptor: impl AsFd) -> DecInt {
    DecInt::new(descriptor.as_fd().as_raw_fd())
}

/// The attributes of `statx` that are of use to a guest (linux/stat.h).
pub(super) const GUEST_ATTRIBUTES: StatxAttributes = StatxAttributes::COMPRESSED
    .union(StatxAttributes::IMMUTABLE)
    .union(StatxAttributes::APPEND)
    .union(StatxAttributes::NODUMP)
    .union(StatxAttributes::ENCRYPTED);

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn open(path: &std::path::Path) -> OwnedFd {
        rustix::fs::open(path, OFlags::PATH, Mode::empty()).unwrap()
    }

    #[test]
    fn device_numbers_survive_the_wire() {
        for (major, minor) in [(0, 0), (1, 3), (259, 1), (4095, 0xf_ffff), (8, 256)] {
            let device = decode_device(encode_device(major, minor));
            assert_eq!((rustix::fs::major(device), rustix::fs::minor(device)), (major, minor));
        }
    }

    #[test]
    fn a_time_of_birth_counts_where_the_file_system_has_one() {
        let root = open("/".as_ref());
        let mut status = rustix::fs::statx(&root, c"", AtFlags::EMPTY_PATH, Status::WANTED).unwrap();
        (status.stx_btime.tv_sec, status.stx_btime.tv_nsec) = (1, 2);
        for (mask, birth) in [(StatxFlags::BASIC_STATS, None), (StatxFlags::BTIME, Some((1, 2)))] {
            status.stx_mask = mask.bits();
            assert_eq!(Status::from(&status).birth, birth);
        }
    }

    #[test]
    fn no_name_leaves_its_directory() {
        let scratch = tempfile::tempdir().unwrap();
        let share = scratch.path().join("share");
        std::fs::create_dir(&share).unwrap();
        std::fs::write(scratch.path().join("secret"), b"secret").unwrap();
        symlink("../secret", share.join("relative")).unwrap();
        symlink("/etc/passwd", share.join("absolute")).unwrap();
        let share = open(&share);
        for name in [c"..", c"../secret", c"/etc/passwd", c"relative/x"] {
            assert!(reach(&share, name).is_err(), "{name:?}");
        }
        for name in [c"relative", c"absolute"] {
            let link = reach(&share, name).unwrap();
            assert_eq!(Status::of(&link).unwrap().file_type, FileType::Symlink);
            let error = open_beneath(&share, name, OFlags::RDONLY, Mode::empty()).unwrap_err();
            assert_eq!(error, Errno::LOOP);
        }
    }

    #[test]
    fn only_the_descriptors_of_this_process_are_accepted() {
        assert!(DescriptorDirectory::new(open("/proc/self/fd".as_ref())).is_ok());
        for path in ["/", "/proc", "/proc/1/fd"] {
            if let Ok(directory) = rustix::fs::open(path, OFlags::PATH, Mode::empty()) {
                assert_eq!(DescriptorDirectory::new(directory).unwrap_err(), Errno::INVAL, "{path}");
            }
        }
    }
}
