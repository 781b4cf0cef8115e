//! What the driver is told of the device before its first request.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::SECTOR;

/// Entries of the request queue.
pub(super) const QUEUE_SIZE: u16 = 128;
/// Pieces of memory in one request: the queue's entries without those for header and status.
const MOST_PIECES: u32 = QUEUE_SIZE as u32 - 2;
/// Sectors that one request reads, writes, discards or makes zero at most, 64 MiB: what comes after it waits for it, the machine's end
/// included, and a host's device that has no command for zeroes writes them for so long. Linux asks for 1,280 KiB of data, if it is not
/// told otherwise (`BLK_DEF_MAX_SECTORS_CAP`, linux/blkdev.h).
pub(super) const MOST_SECTORS: u32 = 128 * 1024;

/// Length of `struct virtio_blk_config` up to the fields for zeroes (virtio 1.2, 5.2.4).
const LENGTH: usize = 60;

/// The features on offer.
pub(super) fn features(read_only: bool) -> u64 {
    let always = [
        VIRTIO_F_VERSION_1,
        VIRTIO_RING_F_EVENT_IDX,
        VIRTIO_RING_F_INDIRECT_DESC,
        VIRTIO_BLK_F_SEG_MAX,
        VIRTIO_BLK_F_BLK_SIZE,
        VIRTIO_BLK_F_FLUSH,
    ];
    let access: &[u32] =
        if read_only { &[VIRTIO_BLK_F_RO] } else { &[VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES] };
    always.iter().chain(access).fold(0, |features, bit| features | 1 << bit)
}

/// The configuration space.
pub(super) fn space(sectors: u64, block_size: u32) -> [u8; LENGTH] {
    let mut space = [0; LENGTH];
    let mut put = |offset: usize, bytes: &[u8]| {
        for (to, from) in space.iter_mut().skip(offset).zip(bytes) {
            *to = *from;
        }
    };
    let alignment = u32::try_from(u64::from(block_size) / SECTOR).unwrap_or(1);
    put(0, &sectors.to_le_bytes());
    put(12, &MOST_PIECES.to_le_bytes());
    put(20, &block_size.to_le_bytes());
    // For discarding: sectors, segments, alignment. For zeroes: sectors, segments, whether they may be discarded.
    put(36, &MOST_SECTORS.to_le_bytes());
    put(40, &1_u32.to_le_bytes());
    put(44, &alignment.to_le_bytes());
    put(48, &MOST_SECTORS.to_le_bytes());
    put(52, &1_u32.to_le_bytes());
    put(56, &[1]);
    space
}
