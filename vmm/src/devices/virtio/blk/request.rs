//! One request (virtio 1.2, 5.2.6): a header, data in one direction, and a byte for how it went.

use std::io;
use std::ops::Range;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use super::SECTOR;
use super::configuration::MOST_SECTORS;
use super::host_file::{Clearing, Direction, HostFile};
use crate::devices::virtio::chain::{Chain, GuestSlices, TooShort};

/// Type, reserved, sector.
const HEADER: usize = 16;
/// First sector, number of sectors, flags.
const SEGMENT: usize = 16;
/// How a serial number is passed: padded with zeroes.
const ID_BYTES: usize = VIRTIO_BLK_ID_BYTES as usize;

/// The device that requests are for.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) file: HostFile,
    pub(super) sectors: u64,
    pub(super) read_only: bool,
    pub(super) id: String,
}

/// Why a request has failed.
#[derive(Debug)]
enum Failure {
    /// It makes no sense, or the host could not do it.
    Refused,
    /// The device cannot do this at all.
    NotSupported,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EOPNOTSUPP) => Self::NotSupported,
            _ => Self::Refused,
        }
    }
}

impl From<TooShort> for Failure {
    fn from(_: TooShort) -> Self {
        Self::Refused
    }
}

impl Disk {
    /// Does what the chain asks for and says in its last writable byte how it went. Returns how many bytes it has
    /// written to the chain, 0 where there is no place for the answer.
    pub(super) fn serve(&self, chain: Chain<'_>) -> u32 {
        let Chain { readable, writable: mut into } = chain;
        let Some(room) = into.len().checked_sub(1) else { return 0 };
        let mut status = into;
        let Ok(data) = status.split_to(room) else { return 0 };
        into = data;
        let (answer, filled) = match self.execute(readable, into) {
            Ok(filled) => (VIRTIO_BLK_S_OK, filled),
            Err(Failure::Refused) => (VIRTIO_BLK_S_IOERR, 0),
            Err(Failure::NotSupported) => (VIRTIO_BLK_S_UNSUPP, 0),
        };
        let answer = u8::try_from(answer).unwrap_or(u8::MAX);
        match status.copy_from(&[answer]) {
            Ok(()) => u32::try_from(filled).unwrap_or(u32::MAX).saturating_add(1),
            Err(_) => 0,
        }
    }

    /// Executes a request and returns how many bytes of `into` are filled.
    fn execute(&self, mut from: GuestSlices<'_>, into: GuestSlices<'_>) -> Result<usize, Failure> {
        let [kind, sector] = header(&from.split_to(HEADER)?)?;
        match u32::try_from(kind).unwrap_or(u32::MAX) {
            VIRTIO_BLK_T_IN => {
                let length = into.len();
                let bytes = self.bytes(sector, length)?;
                self.file.transfer(Direction::In, into, bytes.start)?;
                Ok(length)
            }
            VIRTIO_BLK_T_OUT => {
                self.require_writable()?;
                let bytes = self.bytes(sector, from.len())?;
                self.file.transfer(Direction::Out, from, bytes.start)?;
                Ok(0)
            }
            VIRTIO_BLK_T_FLUSH => {
                self.file.flush()?;
                Ok(0)
            }
            VIRTIO_BLK_T_GET_ID => {
                let mut id: Vec<u8> = self.id.bytes().take(ID_BYTES).collect();
                id.resize(ID_BYTES.min(into.len()), 0);
                into.copy_from(&id)?;
                Ok(id.len())
            }
            VIRTIO_BLK_T_DISCARD => self.clear(&from, |flags| (flags == 0).then_some(Clearing::Discard)),
            VIRTIO_BLK_T_WRITE_ZEROES => self.clear(&from, |flags| match flags {
                0 => Some(Clearing::Write),
                VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP => Some(Clearing::Discard),
                _ => None,
            }),
            _ => Err(Failure::NotSupported),
        }
    }

    /// Clears the one segment that `from` holds.
    fn clear(
        &self,
        from: &GuestSlices<'_>,
        how: impl FnOnce(u32) -> Option<Clearing>,
    ) -> Result<usize, Failure> {
        self.require_writable()?;
        let mut segment = [0; SEGMENT];
        if from.len() != SEGMENT {
            return Err(Failure::Refused);
        }
        from.copy_to(&mut segment)?;
        let segment = u128::from_le_bytes(segment);
        let sector = u64::try_from(segment & u128::from(u64::MAX)).unwrap_or_default();
        let count = u32::try_from(segment >> 64 & u128::from(u32::MAX)).unwrap_or_default();
        let flags = u32::try_from(segment >> 96).unwrap_or_default();
        let how = how(flags).ok_or(Failure::NotSupported)?;
        if count == 0 {
            return Err(Failure::Refused);
        }
        let length = u64::from(count) * SECTOR;
        let bytes = self.bytes(sector, usize::try_from(length).map_err(|_| Failure::Refused)?)?;
        self.file.clear(how, bytes.start, length)?;
        Ok(0)
    }

    fn require_writable(&self) -> Result<(), Failure> {
        if self.read_only { Err(Failure::Refused) } else { Ok(()) }
    }

    /// Where on the device `length` bytes from `sector` on lie: whole sectors, not too many, none beyond the end.
    fn bytes(&self, sector: u64, length: usize) -> Result<Range<u64>, Failure> {
        let length = u64::try_from(length).map_err(|_| Failure::Refused)?;
        let count = Some(length / SECTOR).filter(|count| *count <= MOST_SECTORS.into());
        let end = count.and_then(|count| sector.checked_add(count)).filter(|end| *end <= self.sectors);
        match end {
            // What the device holds has been found to be countable in bytes.
            Some(end) if length % SECTOR == 0 => Ok(sector * SECTOR..end * SECTOR),
            _ => Err(Failure::Refused),
        }
    }
}

/// Type and sector.
fn header(from: &GuestSlices<'_>) -> Result<[u64; 2], TooShort> {
    let mut bytes = [0; HEADER];
    from.copy_to(&mut bytes)?;
    let header = u128::from_le_bytes(bytes);
    let kind = u64::try_from(header & u128::from(u32::MAX)).unwrap_or_default();
    let sector = u64::try_from(header >> 64).unwrap_or_default();
    Ok([kind, sector])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_request_does_not_keep_the_others_waiting_for_gigabytes() {
        let file = HostFile(tempfile::tempfile().unwrap().into());
        let disk = Disk { file, sectors: 1 << 40, read_only: false, id: String::new() };
        let most = MOST_SECTORS as usize * SECTOR as usize;
        assert_eq!(disk.bytes(1, most).unwrap(), SECTOR..SECTOR + most as u64);
        assert!(disk.bytes(1, most + SECTOR as usize).is_err());
    }
}
