//! The memory that a request lies in and its reply goes to: a list of pieces of guest memory.

use vm_memory::VolatileSlice;

/// Bytes scattered over memory that somebody else may change at any time.
#[derive(Debug, Default)]
pub struct Segments<'m> {
    pieces: Vec<VolatileSlice<'m>>,
    length: usize,
}

impl<'m> Segments<'m> {
    /// No bytes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a piece.
    pub fn push(&mut self, piece: VolatileSlice<'m>) {
        // Pieces lie inside this process's address space and their number is bounded, so that saturation is out of
        // reach.
        self.length = self.length.saturating_add(piece.len());
        self.pieces.push(piece);
    }

    /// Drops all pieces and keeps the room for them.
    pub fn clear(&mut self) {
        self.pieces.clear();
        self.length = 0;
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// How many pieces there are.
    pub fn pieces(&self) -> usize {
        self.pieces.len()
    }

    /// Copies bytes from `offset` on into `bytes` and returns how many there were.
    pub fn copy_to(&self, offset: usize, bytes: &mut [u8]) -> usize {
        let mut rest = bytes;
        let mut copied = 0;
        for piece in self.rest_from(offset) {
            if rest.is_empty() {
                break;
            }
            let count = piece.copy_to(rest);
            copied += count;
            rest = rest.get_mut(count..).unwrap_or_default();
        }
        copied
    }

    /// Copies `bytes` to `offset` and on and returns how many found room.
    pub fn copy_from(&self, offset: usize, bytes: &[u8]) -> usize {
        let mut rest = bytes;
        for piece in self.rest_from(offset) {
            if rest.is_empty() {
                break;
            }
            let count = piece.len().min(rest.len());
            let (now, later) = rest.split_at(count);
            piece.copy_from(now);
            rest = later;
        }
        bytes.len() - rest.len()
    }

    /// Fills `vectors` with what `preadv` and `pwritev` need to reach up to `length` bytes from `offset` on, joining
    /// pieces that touch, and returns how many bytes that is.
    pub(super) fn io_vectors(&self, offset: usize, length: usize, vectors: &mut Vec<libc::iovec>) -> usize {
        vectors.clear();
        let mut wanted = length;
        for piece in self.rest_from(offset) {
            if wanted == 0 {
                break;
            }
            let count = piece.len().min(wanted);
            let start = piece.ptr_guard_mut().as_ptr();
            match vectors.last_mut() {
                Some(last) if last.iov_base.wrapping_byte_add(last.iov_len) == start.cast() => {
                    last.iov_len += count;
                }
                _ => vectors.push(libc::iovec { iov_base: start.cast(), iov_len: count }),
            }
            wanted -= count;
        }
        length - wanted
    }

    fn rest_from(&self, offset: usize) -> impl Iterator<Item = VolatileSlice<'m>> {
        let mut skip = offset;
        self.pieces.iter().filter_map(move |piece| {
            let skipped = skip.min(piece.len());
            skip -= skipped;
            piece.offset(skipped).ok().filter(|rest| !rest.is_empty())
        })
    }
}

/// One request: what the guest wrote and where it expects the reply.
#[derive(Debug, Default)]
pub struct Buffers<'m> {
    /// The request.
    pub readable: Segments<'m>,
    /// Room for the reply.
    pub writable: Segments<'m>,
}

impl Buffers<'_> {
    /// No bytes on either side.
    pub fn new() -> Self {
        Self::default()
    }

    /// Drops all pieces and keeps the room for them.
    pub fn clear(&mut self) {
        self.readable.clear();
        self.writable.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments<'m>(memory: &'m mut [u8], cuts: &[usize]) -> Segments<'m> {
        let whole = VolatileSlice::from(memory);
        let mut segments = Segments::new();
        let mut at = 0;
        for cut in cuts.iter().copied().chain([whole.len()]) {
            segments.push(whole.subslice(at, cut - at).unwrap());
            at = cut;
        }
        segments
    }

    #[test]
    fn bytes_are_read_and_written_across_pieces() {
        let mut memory: Vec<u8> = (0..100).collect();
        let segments = segments(&mut memory, &[1, 1, 7, 40]);
        assert!(!segments.is_empty() && Segments::new().is_empty());
        for offset in 0..=100 {
            let mut bytes = [0xff; 50];
            let copied = segments.copy_to(offset, &mut bytes);
            assert_eq!(copied, (100 - offset).min(50));
            let expected: Vec<u8> = (offset as u8..).take(copied).collect();
            assert_eq!(&bytes[..copied], expected);
        }
        assert_eq!(segments.copy_from(5, &[200; 60]), 60);
        assert_eq!(segments.copy_from(95, &[201; 60]), 5);
        assert_eq!(segments.copy_from(100, &[202; 60]), 0);
        assert_eq!(segments.copy_from(usize::MAX, &[202; 60]), 0);
        drop(segments);
        assert_eq!(memory[4], 4);
        assert!(memory[5..65].iter().all(|byte| *byte == 200));
        assert_eq!(memory[65], 65);
        assert_eq!(memory[94], 94);
        assert!(memory[95..].iter().all(|byte| *byte == 201));
    }

    #[test]
    fn pieces_that_touch_become_one_vector_and_others_do_not() {
        let mut memory = vec![0_u8; 64];
        let whole = VolatileSlice::from(memory.as_mut_slice());
        let mut segments = Segments::new();
        for (start, length) in [(0, 8), (8, 8), (32, 8), (16, 8), (24, 0), (24, 4)] {
            segments.push(whole.subslice(start, length).unwrap());
        }
        let mut vectors = Vec::new();
        assert_eq!(segments.io_vectors(4, 100, &mut vectors), 32);
        let lengths: Vec<usize> = vectors.iter().map(|vector| vector.iov_len).collect();
        assert_eq!(lengths, [12, 8, 12]);
        assert_eq!(segments.io_vectors(4, 14, &mut vectors), 14);
        let lengths: Vec<usize> = vectors.iter().map(|vector| vector.iov_len).collect();
        assert_eq!(lengths, [12, 2]);
    }
}
