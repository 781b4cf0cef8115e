//! Names: MKNOD, MKDIR, SYMLINK, LINK, UNLINK, RMDIR, RENAME, RENAME2 and READLINK.

use std::ffi::CStr;

use rustix::fs::{AtFlags, FileType, Mode, RenameFlags};
use rustix::io::Errno;

use super::Caller;
use crate::fs::file_system::FileSystem;
use crate::fs::host::{Status, decode_device, name_of, reach};
use crate::fs::limits::PATH_BYTES;
use crate::fs::wire::{EntryOut, MkdirIn, MknodIn};

impl FileSystem {
    /// Makes a regular file, a device node, a fifo or a socket.
    ///
    /// # Errors
    /// `EINVAL` for another type; else what the host returned.
    pub(in crate::fs) fn mknod(
        &mut self,
        parent: u64,
        name: &CStr,
        request: &MknodIn,
        caller: Caller,
    ) -> Result<EntryOut, Errno> {
        let file_type = FileType::from_raw_mode(request.mode);
        if matches!(file_type, FileType::Directory | FileType::Symlink | FileType::Unknown) {
            return Err(Errno::INVAL);
        }
        self.act_as(caller, request.umask, request.mode)?;
        let mode = Mode::from_raw_mode(request.mode & 0o7777);
        let directory = self.inodes.directory_to_add_to(parent)?;
        rustix::fs::mknodat(directory, name, file_type, mode, decode_device(request.device))?;
        self.made(parent, name)
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// What the host returned.
    pub(in crate::fs) fn mkdir(
        &mut self,
        parent: u64,
        name: &CStr,
        request: &MkdirIn,
        caller: Caller,
    ) -> Result<EntryOut, Errno> {
        self.act_as(caller, request.umask, request.mode)?;
        let mode = Mode::from_raw_mode(request.mode & 0o7777);
        rustix::fs::mkdirat(self.inodes.directory_to_add_to(parent)?, name, mode)?;
        self.made(parent, name)
    }

    /// Makes a symbolic link to `target`, which is any text.
    ///
    /// # Errors
    /// What the host returned.
    pub(in crate::fs) fn symlink(
        &mut self,
        parent: u64,
        name: &CStr,
        target: &CStr,
        caller: Caller,
    ) -> Result<EntryOut, Errno> {
        self.credentials.assume(caller.uid, caller.gid)?;
        rustix::fs::symlinkat(target, self.inodes.directory_to_add_to(parent)?, name)?;
        self.made(parent, name)
    }

    /// Gives `node` another name.
    ///
    /// # Errors
    /// What the host returned.
    pub(in crate::fs) fn link(&mut self, node: u64, parent: u64, name: &CStr) -> Result<EntryOut, Errno> {
        let (directory, old) = self.inodes.get_pair(parent, node)?;
        // The link of /proc/self/fd leads to the inode itself, and is followed no further.
        rustix::fs::linkat(self.descriptors.as_fd(), name_of(old), directory, name, AtFlags::SYMLINK_FOLLOW)?;
        self.made(parent, name)
    }

    /// Removes a name that is not a directory's.
    ///
    /// # Errors
    /// What the host returned.
    pub(in crate::fs) fn unlink(&mut self, parent: u64, name: &CStr) -> Result<(), Errno> {
        self.remove(parent, name, AtFlags::empty())
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// What the host returned.
    pub(in crate::fs) fn rmdir(&mut self, parent: u64, name: &CStr) -> Result<(), Errno> {
        self.remove(parent, name, AtFlags::REMOVEDIR)
    }

    /// Renames, with `RENAME_*` flags.
    ///
    /// # Errors
    /// `EINVAL` for an unknown flag; else what the host returned.
    pub(in crate::fs) fn rename(
        &mut self,
        (old_parent, old_name): (u64, &CStr),
        (new_parent, new_name): (u64, &CStr),
        flags: u32,
        caller: Caller,
    ) -> Result<(), Errno> {
        let flags = RenameFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        let known = RenameFlags::NOREPLACE | RenameFlags::EXCHANGE | RenameFlags::WHITEOUT;
        if !known.contains(flags) {
            return Err(Errno::INVAL);
        }
        if flags.contains(RenameFlags::WHITEOUT) {
            // A whiteout is a new file.
            self.credentials.assume(caller.uid, caller.gid)?;
        }
        let moved = self.known_at(old_parent, old_name)?;
        let replaced = self.known_at(new_parent, new_name)?;
        let (old, new) = self.inodes.directories(old_parent, new_parent)?;
        rustix::fs::renameat_with(old, old_name, new, new_name, flags)?;
        if moved.is_some() && moved == replaced {
            // Two names of one file: nothing happens (rename(2)).
            return Ok(());
        }
        if let Some(replaced) = replaced {
            self.inodes.lose_name(replaced, new_parent, new_name);
            if flags.contains(RenameFlags::EXCHANGE) {
                self.inodes.set_name(replaced, old_parent, old_name);
            }
        }
        if let Some(moved) = moved {
            self.inodes.set_name(moved, new_parent, new_name);
        }
        Ok(())
    }

    /// Appends the target of a symbolic link to `out`.
    ///
    /// # Errors
    /// `EINVAL` for anything else; else what the host returned.
    pub(in crate::fs) fn readlink(&mut self, node: u64, out: &mut Vec<u8>) -> Result<(), Errno> {
        let inode = self.inodes.get(node)?;
        if inode.file_type() != FileType::Symlink {
            return Err(Errno::INVAL);
        }
        let begin = out.len();
        out.resize(begin + PATH_BYTES, 0);
        let target = out.get_mut(begin..).unwrap_or_default();
        let length = rustix::fs::readlinkat_raw(inode, c"", target)?;
        out.truncate(begin + length);
        Ok(())
    }

    /// Makes the next file belong to `caller`, with exactly the bits of `mode` that `umask` leaves.
    pub(super) fn act_as(&mut self, caller: Caller, umask: u32, mode: u32) -> Result<(), Errno> {
        if mode & (libc::S_ISUID | libc::S_ISGID) != 0 {
            // The guest's kernel has cleared the set-group-id bit where its user may not set it.
            self.credentials.keep_set_id(true)?;
        }
        self.credentials.assume(caller.uid, caller.gid)?;
        self.credentials.mask(umask);
        Ok(())
    }

    fn remove(&mut self, parent: u64, name: &CStr, flags: AtFlags) -> Result<(), Errno> {
        let removed = self.known_at(parent, name)?;
        rustix::fs::unlinkat(self.inodes.directory(parent)?, name, flags)?;
        if let Some(removed) = removed {
            self.inodes.lose_name(removed, parent, name);
        }
        Ok(())
    }

    /// The inode that `name` stands for, if the guest knows it; it is held then, since the name is about to change.
    fn known_at(&mut self, parent: u64, name: &CStr) -> Result<Option<u64>, Errno> {
        let identity = match Status::of_entry(self.inodes.directory(parent)?, name) {
            Ok(status) => status.identity,
            // Whatever is wrong shows in the operation itself.
            Err(_) => return Ok(None),
        };
        let Some(number) = self.inodes.number_of(&identity) else { return Ok(None) };
        self.inodes.prepare_loss(number, parent, name)?;
        Ok(Some(number))
    }

    fn made(&mut self, parent: u64, name: &CStr) -> Result<EntryOut, Errno> {
        let descriptor = reach(self.inodes.directory(parent)?, name)?;
        self.entry(parent, name, descriptor)
    }
}
