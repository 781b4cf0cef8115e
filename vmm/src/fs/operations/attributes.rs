//! GETATTR, SETATTR, STATX, ACCESS and STATFS.

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Statx, StatxFlags, StatxTimestamp, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::Caller;
use crate::fs::file_system::FileSystem;
use crate::fs::host::{GUEST_ATTRIBUTES, Status, name_of};
use crate::fs::implicit_files::Access;
use crate::fs::wire::{AttributesOut, SetattrIn, SetattrValid, StatfsOut, StatxOut, StatxTime};

impl FileSystem {
    /// The attributes of `node`.
    ///
    /// # Errors
    /// `ESTALE` for an unknown number; else what `statx` returned.
    pub(in crate::fs) fn getattr(&mut self, node: u64) -> Result<AttributesOut, Errno> {
        let inode = self.inodes.get(node)?;
        let valid = self.cache_policy.inode(inode.place()).attributes;
        Ok(AttributesOut {
            valid: valid.as_secs(),
            valid_nanoseconds: valid.subsec_nanos(),
            padding: 0,
            attributes: Status::of(inode)?.attributes,
        })
    }

    /// Changes attributes of `node`, and returns them all.
    ///
    /// # Errors
    /// `ESTALE` for an unknown number; else what the host returned. What was changed before the error stays changed.
    pub(in crate::fs) fn setattr(&mut self, node: u64, request: &SetattrIn) -> Result<AttributesOut, Errno> {
        let valid = SetattrValid::from_bits_truncate(request.valid);
        // The owner comes first, since the host clears set-id bits with it.
        if valid.intersects(SetattrValid::UID | SetattrValid::GID) {
            self.set_owner(node, valid, request)?;
        }
        if valid.contains(SetattrValid::MODE) {
            self.set_mode(node, request.mode)?;
        }
        if valid.contains(SetattrValid::SIZE) {
            self.set_size(node, valid, request)?;
        }
        let times =
            SetattrValid::ATIME | SetattrValid::MTIME | SetattrValid::ATIME_NOW | SetattrValid::MTIME_NOW;
        if valid.intersects(times) {
            self.set_times(node, valid, request)?;
        }
        self.getattr(node)
    }

    /// The attributes of `node` with its time of birth.
    ///
    /// # Errors
    /// `ESTALE` for an unknown number; else what `statx` returned.
    pub(in crate::fs) fn statx(&mut self, node: u64, mask: u32) -> Result<StatxOut, Errno> {
        let inode = self.inodes.get(node)?;
        let known = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
        let wanted = StatxFlags::from_bits_truncate(mask) & known;
        let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
        let status = rustix::fs::statx(inode, c"", flags, wanted | StatxFlags::BASIC_STATS)?;
        let valid = self.cache_policy.inode(inode.place()).attributes;
        let out = StatxOut {
            valid: valid.as_secs(),
            valid_nanoseconds: valid.subsec_nanos(),
            ..statx_out(&status)
        };
        Ok(StatxOut { mask: out.mask & known.bits(), ..out })
    }

    /// Whether `caller` may do with `node` what `mask` says (`R_OK`, `W_OK`, `X_OK`), by its permission bits.
    ///
    /// # Errors
    /// `EACCES` when not; `ESTALE` for an unknown number; else what `statx` returned.
    pub(in crate::fs) fn access(&mut self, node: u64, mask: u32, caller: Caller) -> Result<(), Errno> {
        let attributes = Status::of(self.inodes.get(node)?)?.attributes;
        let wanted = mask & 0o7;
        let granted = match caller.uid {
            // Root may read and write everything, and execute what anybody may.
            0 if attributes.mode & 0o111 != 0 => 0o7,
            0 => 0o6,
            uid if uid == attributes.uid => attributes.mode >> 6,
            _ if caller.gid == attributes.gid => attributes.mode >> 3,
            _ => attributes.mode,
        };
        match wanted & !granted {
            0 => Ok(()),
            _ => Err(Errno::ACCESS),
        }
    }

    /// The figures of the file system that `node` lies on.
    ///
    /// # Errors
    /// `ESTALE` for an unknown number; else what `fstatfs` returned.
    pub(in crate::fs) fn statfs(&mut self, node: u64) -> Result<StatfsOut, Errno> {
        let figures = rustix::fs::fstatvfs(self.inodes.get(node)?)?;
        let small = |figure: u64| u32::try_from(figure).unwrap_or(u32::MAX);
        Ok(StatfsOut {
            blocks: figures.f_blocks,
            blocks_free: figures.f_bfree,
            blocks_available: figures.f_bavail,
            files: figures.f_files,
            files_free: figures.f_ffree,
            block_size: small(figures.f_bsize),
            name_length: small(figures.f_namemax),
            fragment_size: small(figures.f_frsize),
            ..StatfsOut::default()
        })
    }

    fn set_owner(&mut self, node: u64, valid: SetattrValid, request: &SetattrIn) -> Result<(), Errno> {
        // The number that stands for "leave it" can be nobody's.
        let given = |flag, id: u32| match valid.contains(flag) {
            true if id == u32::MAX => Err(Errno::INVAL),
            true => Ok(Some(id)),
            false => Ok(None),
        };
        let owner = given(SetattrValid::UID, request.uid)?.map(Uid::from_raw);
        let group = given(SetattrValid::GID, request.gid)?.map(Gid::from_raw);
        let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::chownat(self.inodes.get(node)?, c"", owner, group, flags)
    }

    pub(super) fn set_mode(&mut self, node: u64, mode: u32) -> Result<(), Errno> {
        // The guest's kernel has cleared the set-group-id bit where its user may not set it.
        self.credentials.keep_set_id(true)?;
        let name = name_of(self.inodes.get(node)?);
        let mode = Mode::from_raw_mode(mode & 0o7777);
        rustix::fs::chmodat(self.descriptors.as_fd(), name, mode, AtFlags::empty())
    }

    fn set_size(&mut self, node: u64, valid: SetattrValid, request: &SetattrIn) -> Result<(), Errno> {
        self.credentials.keep_set_id(!valid.contains(SetattrValid::KILL_SUIDGID))?;
        if valid.contains(SetattrValid::FH) {
            let file = self.open_file(node, request.handle, Access::Write)?;
            if file.is_writable() {
                return rustix::fs::ftruncate(file, request.size);
            }
        }
        rustix::fs::ftruncate(self.open_node(node, OFlags::WRONLY)?, request.size)
    }

    fn set_times(&mut self, node: u64, valid: SetattrValid, request: &SetattrIn) -> Result<(), Errno> {
        let time = |set, now, seconds: u64, nanoseconds: u32| match (valid.contains(now), valid.contains(set))
        {
            (true, _) => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
            (false, true) => Timespec { tv_sec: seconds.cast_signed(), tv_nsec: i64::from(nanoseconds) },
            (false, false) => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        };
        let times = Timestamps {
            last_access: time(
                SetattrValid::ATIME,
                SetattrValid::ATIME_NOW,
                request.atime,
                request.atime_nanoseconds,
            ),
            last_modification: time(
                SetattrValid::MTIME,
                SetattrValid::MTIME_NOW,
                request.mtime,
                request.mtime_nanoseconds,
            ),
        };
        let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::utimensat(self.inodes.get(node)?, c"", &times, flags)
    }
}

fn statx_out(status: &Statx) -> StatxOut {
    let time =
        |time: StatxTimestamp| StatxTime { seconds: time.tv_sec, nanoseconds: time.tv_nsec, reserved: 0 };
    StatxOut {
        mask: status.stx_mask,
        block_size: status.stx_blksize,
        attributes: (status.stx_attributes & GUEST_ATTRIBUTES).bits(),
        links: status.stx_nlink,
        uid: status.stx_uid,
        gid: status.stx_gid,
        mode: status.stx_mode,
        inode: status.stx_ino,
        size: status.stx_size,
        blocks: status.stx_blocks,
        attributes_mask: (status.stx_attributes_mask & GUEST_ATTRIBUTES).bits(),
        atime: time(status.stx_atime),
        btime: time(status.stx_btime),
        ctime: time(status.stx_ctime),
        mtime: time(status.stx_mtime),
        device_major: status.stx_rdev_major,
        device_minor: status.stx_rdev_minor,
        file_system_major: status.stx_dev_major,
        file_system_minor: status.stx_dev_minor,
        ..StatxOut::default()
    }
}
