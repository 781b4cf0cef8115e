//! Frames to the guest.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::os::fd::BorrowedFd;

use super::tap::{HEADER_SIZE, read_frame};
use crate::devices::virtio::Interrupt;
use crate::devices::virtio::chain::{Chain, GuestSlices, MAX_DESCRIPTORS};
use crate::devices::virtio::ring::{Ring, RingError};
use crate::memory::GuestMemory;

/// Looks at tap and ring before others get their turn.
const ROUNDS_AT_ONCE: usize = 128;
/// Pieces of guest memory that one read takes, leaving one of `IOV_MAX` for [`Receiver::excess`].
const MOST_PIECES: usize = MAX_DESCRIPTORS - 1;
/// Where `num_buffers` lies in the header (virtio 1.2, 5.1.6).
const NUM_BUFFERS: usize = 10;

/// A buffer that the driver has made available and that nothing is in yet.
struct Buffer {
    head: u16,
    slices: GuestSlices<'static>,
}

/// The queue of frames to the guest.
pub(super) struct Receiver {
    ring: Ring,
    buffers: Buffers,
    /// Whether a frame may take several buffers (`VIRTIO_NET_F_MRG_RXBUF`).
    merges: bool,
    /// Room that the largest frame takes.
    largest_frame: usize,
    /// The tap may have frames.
    readable: bool,
    iovecs: Vec<libc::iovec>,
    excess: Box<[u8; 1]>,
}

/// What reading the tap came to.
enum Round {
    /// A frame was delivered, or dropped.
    Frame,
    /// The tap has none.
    Empty,
    /// The guest has no room for one.
    NoRoom,
}

impl Receiver {
    pub(super) fn new(ring: Ring, memory: GuestMemory, merges: bool, largest_frame: usize) -> Self {
        let buffers = Buffers { waiting: VecDeque::new(), capacity: 0, memory };
        Self {
            ring,
            buffers,
            merges,
            largest_frame,
            readable: true,
            iovecs: Vec::new(),
            excess: Box::default(),
        }
    }

    /// Where the driver notifies that it has made buffers available.
    pub(super) fn notification(&self) -> BorrowedFd<'_> {
        self.ring.notification()
    }

    /// The tap has become readable.
    pub(super) fn on_readable(&mut self) {
        self.readable = true;
    }

    /// Delivers frames as long as the tap has some and the guest has room. True: there may be more.
    pub(super) fn work(&mut self, tap: BorrowedFd<'_>, interrupt: &Interrupt) -> Result<bool, RingError> {
        self.ring.suppress_notifications()?;
        let mut armed = false;
        for _ in 0..ROUNDS_AT_ONCE {
            if !self.readable || armed {
                break;
            }
            match self.receive(tap)? {
                Round::Frame => {}
                Round::Empty => self.readable = false,
                // While the guest has no room the tap is left alone, until the driver notifies.
                Round::NoRoom => armed = !self.ring.request_notification()?,
            }
        }
        self.ring.signal(interrupt)?;
        Ok(self.readable && !armed)
    }

    fn receive(&mut self, tap: BorrowedFd<'_>) -> Result<Round, RingError> {
        self.fill()?;
        let room = self.buffers.gather(self.merges, self.largest_frame, &mut self.iovecs);
        // A driver that offers all it has, and still less than the largest frame takes, gets the frames that fit.
        if room.bytes < self.largest_frame && !room.is_limited && !self.is_drained() {
            return Ok(Round::NoRoom);
        }
        // One byte more, to tell a frame that fits exactly from one that was cut off.
        let excess = self.excess.as_mut_ptr().cast();
        self.iovecs.push(libc::iovec { iov_base: excess, iov_len: self.excess.len() });
        match read_frame(tap, &self.iovecs) {
            Ok(length) if length > room.bytes => Ok(Round::Frame),
            Ok(length) => {
                self.deliver(length)?;
                Ok(Round::Frame)
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(Round::Frame),
            // Nothing there; or the device is gone or down, of which an event will tell if that changes.
            Err(_) => Ok(Round::Empty),
        }
    }

    /// Whether the driver has nothing more to offer for the next frame before something is given back to it.
    fn is_drained(&self) -> bool {
        let waiting = self.buffers.waiting.len();
        if self.merges { waiting >= usize::from(self.ring.size()) } else { waiting > 0 }
    }

    /// Takes buffers from the driver until the largest frame has room, or there are no more.
    fn fill(&mut self) -> Result<(), RingError> {
        for _ in 0..self.ring.size() {
            if self.buffers.capacity >= self.largest_frame || !self.merges && self.is_drained() {
                break;
            }
            let memory = &self.buffers.memory;
            let Some(chain) = self.ring.pop(memory)? else { break };
            let head = chain.head_index();
            match Chain::parse(memory, chain, self.ring.size()) {
                Ok(Chain { writable, .. }) if writable.len() >= HEADER_SIZE => {
                    // SAFETY: the slices stay in `buffers`, next to its own clone of the memory that they lie in.
                    let slices = unsafe { writable.detach() };
                    self.buffers.push(Buffer { head, slices });
                }
                // Of no use for anything; given back so that the driver notices.
                _ => self.ring.push_used(head, 0)?,
            }
        }
        Ok(())
    }

    /// Gives the buffers that now hold a frame of `length` bytes back to the driver.
    fn deliver(&mut self, length: usize) -> Result<(), RingError> {
        let count = self.buffers.holding(length);
        if let Some(first) = self.buffers.waiting.front() {
            let number = u16::try_from(count).unwrap_or(u16::MAX).to_le_bytes();
            write_at(&first.slices, NUM_BUFFERS, &number);
        }
        let mut left = length;
        let holding = (0..count).filter_map(|_| self.buffers.pop()).map(|buffer| {
            let used = buffer.slices.len().min(left);
            left -= used;
            (buffer.head, u32::try_from(used).unwrap_or(u32::MAX))
        });
        // The driver may be looking: it must not see the first of them without the others.
        self.ring.push_used_together(holding)
    }
}

fn write_at(slices: &GuestSlices<'_>, offset: usize, bytes: &[u8]) {
    let mut slices = slices.clone();
    if slices.split_to(offset).is_ok() {
        // A header always fits: shorter buffers are not kept.
        let _ = slices.copy_from(bytes);
    }
}

/// The memory that the next frame may go to.
struct Room {
    bytes: usize,
    /// There is more, in more pieces than one read takes. No driver in its senses cuts its buffers so small.
    is_limited: bool,
}

/// Buffers in the order in which the driver offered them.
struct Buffers {
    waiting: VecDeque<Buffer>,
    /// Bytes in all of them.
    capacity: usize,
    /// What keeps the memory mapped that the buffers lie in.
    memory: GuestMemory,
}

impl Buffers {
    fn push(&mut self, buffer: Buffer) {
        self.capacity += buffer.slices.len();
        self.waiting.push_back(buffer);
    }

    fn pop(&mut self) -> Option<Buffer> {
        let buffer = self.waiting.pop_front()?;
        self.capacity -= buffer.slices.len();
        Some(buffer)
    }

    /// Lists the memory that the next frame may go to, up to `wanted` bytes and the rest of a buffer.
    fn gather(&self, merges: bool, wanted: usize, iovecs: &mut Vec<libc::iovec>) -> Room {
        iovecs.clear();
        let mut bytes = 0;
        let most = if merges { usize::MAX } else { 1 };
        for buffer in self.waiting.iter().take(most) {
            let before = iovecs.len();
            buffer.slices.append_iovecs(iovecs);
            if iovecs.len() > MOST_PIECES {
                iovecs.truncate(before);
                return Room { bytes, is_limited: true };
            }
            bytes += buffer.slices.len();
            if bytes >= wanted {
                break;
            }
        }
        Room { bytes, is_limited: false }
    }

    /// How many buffers a frame of `length` bytes takes, the first ones.
    fn holding(&self, length: usize) -> usize {
        let mut left = length;
        let mut count = 0;
        for buffer in &self.waiting {
            count += 1;
            if left <= buffer.slices.len() {
                break;
            }
            left -= buffer.slices.len();
        }
        count
    }
}
