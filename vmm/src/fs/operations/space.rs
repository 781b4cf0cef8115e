//! The space in files: FALLOCATE, LSEEK, COPY_FILE_RANGE and SYNCFS.

use rustix::fs::{FallocateFlags, OFlags, SeekFrom};
use rustix::io::Errno;

use crate::fs::file_system::FileSystem;
use crate::fs::implicit_files::Access;
use crate::fs::limits::COPY_BYTES;
use crate::fs::wire::{CopyFileRangeIn, FallocateIn, LseekIn};

/// `SEEK_DATA` and `SEEK_HOLE` (linux/fs.h).
const SEEK_DATA: u32 = 3;
const SEEK_HOLE: u32 = 4;

impl FileSystem {
    /// Reserves or frees space of an open file. Set-id bits stay: the request cannot say whether they are to go, so the guest has cleared
    /// them where they are.
    ///
    /// # Errors
    /// `EOPNOTSUPP` for an unknown mode; `EBADF` or `EISDIR` for a handle that is not an open file's; else what
    /// `fallocate` returned.
    pub(in crate::fs) fn fallocate(&mut self, node: u64, request: &FallocateIn) -> Result<(), Errno> {
        let mode = FallocateFlags::from_bits(request.mode).ok_or(Errno::OPNOTSUPP)?;
        self.credentials.keep_set_id(true)?;
        let file = self.open_file(node, request.handle, Access::Write)?;
        rustix::fs::fallocate(file, mode, request.offset, request.length)
    }

    /// Finds the next data or hole of an open file.
    ///
    /// # Errors
    /// `EINVAL` for another kind of seek, which the guest does by itself; else what `lseek` returned.
    pub(in crate::fs) fn lseek(&mut self, node: u64, request: &LseekIn) -> Result<u64, Errno> {
        let to = match request.whence {
            SEEK_DATA => SeekFrom::Data(request.offset),
            SEEK_HOLE => SeekFrom::Hole(request.offset),
            _ => return Err(Errno::INVAL),
        };
        // All reads and writes name their offset, so that moving the host's file position does no harm.
        rustix::fs::seek(self.open_file(node, request.handle, Access::Read)?, to)
    }

    /// Copies between two open files and returns how many bytes it was; it may be fewer than asked for. Set-id bits stay, as with
    /// [`fallocate`](Self::fallocate).
    ///
    /// # Errors
    /// `EINVAL` for unknown flags; `EBADF` or `EISDIR` for handles that are not open files'; else what
    /// `copy_file_range` returned.
    pub(in crate::fs) fn copy_file_range(
        &mut self,
        node: u64,
        request: &CopyFileRangeIn,
    ) -> Result<u32, Errno> {
        if request.flags != 0 {
            return Err(Errno::INVAL);
        }
        self.credentials.keep_set_id(true)?;
        let to = self.open_file(request.node_out, request.handle_out, Access::Write)?.try_clone()?;
        let from = self.open_file(node, request.handle_in, Access::Read)?;
        let (mut offset_in, mut offset_out) = (request.offset_in, request.offset_out);
        let length = usize::try_from(request.length.min(COPY_BYTES)).unwrap_or(usize::MAX);
        let copied =
            rustix::fs::copy_file_range(from, Some(&mut offset_in), to, Some(&mut offset_out), length)?;
        // Not more than COPY_BYTES.
        u32::try_from(copied).map_err(|_| Errno::IO)
    }

    /// Brings the file system that `node` lies on to disk.
    ///
    /// # Errors
    /// What the host returned.
    pub(in crate::fs) fn syncfs(&mut self, node: u64) -> Result<(), Errno> {
        rustix::fs::syncfs(self.open_node(node, OFlags::RDONLY)?)
    }
}
