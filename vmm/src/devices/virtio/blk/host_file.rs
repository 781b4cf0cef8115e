//! The host's device, or file, behind the guest's.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::FallocateFlags;

use crate::devices::virtio::chain::GuestSlices;

/// In which direction bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// From the host's device into guest memory.
    In,
    /// From guest memory to the host's device.
    Out,
}

/// How bytes are made zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Clearing {
    /// Their room is given back.
    Discard,
    /// They keep their room.
    Write,
}

/// What the host has.
#[derive(Debug)]
pub(super) struct HostFile(pub(super) OwnedFd);

impl HostFile {
    /// Moves all of `pieces`, which on the device begin at byte `offset`.
    ///
    /// # Errors
    /// What the host returned; it has moved a part or nothing then. `UnexpectedEof` where the device has become shorter.
    pub(super) fn transfer(
        &self,
        direction: Direction,
        mut pieces: GuestSlices<'_>,
        offset: u64,
    ) -> io::Result<()> {
        let mut offset = i64::try_from(offset).map_err(io::Error::other)?;
        while !pieces.is_empty() {
            let moved = self.transfer_some(direction, &pieces, offset)?;
            if moved == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            pieces.split_to(moved).map_err(io::Error::other)?;
            offset =
                i64::try_from(moved).ok().and_then(|moved| offset.checked_add(moved)).unwrap_or(i64::MAX);
        }
        Ok(())
    }

    fn transfer_some(
        &self,
        direction: Direction,
        pieces: &GuestSlices<'_>,
        offset: i64,
    ) -> io::Result<usize> {
        let vectors = pieces.iovecs();
        let count = libc::c_int::try_from(vectors.len()).map_err(io::Error::other)?;
        let file = self.0.as_raw_fd();
        let moved = match direction {
            // SAFETY: each vector lies in guest memory that `pieces` borrows for longer than this call and that Rust
            // code accesses as volatile memory only; the kernel writes to the vectors and to nothing else.
            Direction::In => unsafe { libc::preadv64(file, vectors.as_ptr(), count, offset) },
            // SAFETY: as above, and the kernel only reads the vectors.
            Direction::Out => unsafe { libc::pwritev64(file, vectors.as_ptr(), count, offset) },
        };
        usize::try_from(moved).map_err(|_| io::Error::last_os_error())
    }

    /// What was written is to outlive a loss of power.
    pub(super) fn flush(&self) -> io::Result<()> {
        Ok(rustix::fs::fdatasync(self.0.as_fd())?)
    }

    /// Makes `length` bytes from `offset` on zero.
    pub(super) fn clear(&self, how: Clearing, offset: u64, length: u64) -> io::Result<()> {
        let how = match how {
            Clearing::Discard => FallocateFlags::PUNCH_HOLE,
            Clearing::Write => FallocateFlags::ZERO_RANGE,
        };
        Ok(rustix::fs::fallocate(self.0.as_fd(), how | FallocateFlags::KEEP_SIZE, offset, length)?)
    }
}
