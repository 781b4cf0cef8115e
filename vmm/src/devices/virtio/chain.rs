//! A descriptor chain as two lists of guest memory: what the device may read and what it may write.
//!
//! A driver is free to cut its buffers into descriptors as it likes (virtio 1.2, 2.7.4.1), so nothing here knows
//! of "the header descriptor". Everything in a chain is the driver's claim: it is checked before it is used.

use std::ops::Deref;

use virtio_queue::DescriptorChain;
use vm_memory::{GuestAddress, GuestMemory as _, Permissions, VolatileSlice};

use crate::memory::GuestMemory;

/// The most descriptors that one chain may have: what one `readv` or `writev` takes (`IOV_MAX`, <limits.h>).
pub const MAX_DESCRIPTORS: usize = 1024;

/// What is wrong with a descriptor chain.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ChainError {
    /// No descriptor could be read at all.
    #[error(
        "the chain's first descriptor is outside the table or outside memory, or its indirect table is malformed"
    )]
    Empty,
    /// The chain promises a next descriptor that is not there.
    #[error(
        "the chain breaks off after {0} descriptors: a loop, an index outside the table, or a malformed indirect table"
    )]
    Broken(usize),
    /// More descriptors than the queue's size, or than [`MAX_DESCRIPTORS`].
    #[error("the chain has more than {0} descriptors")]
    TooLong(usize),
    /// A buffer is not within guest memory.
    #[error("the buffer of {length} bytes at guest address {address:#x} is not in memory")]
    OutsideMemory {
        /// Where the driver says that it starts.
        address: u64,
        /// Its length in bytes.
        length: u32,
    },
    /// A device-readable descriptor follows a device-writable one (virtio 1.2, 2.7.4.2).
    #[error("a readable descriptor follows a writable one")]
    ReadableAfterWritable,
}

/// A list of guest memory pieces holds fewer bytes than are asked of it.
#[derive(Debug, Clone, Copy, thiserror::Error, PartialEq, Eq)]
#[error("{wanted} bytes are wanted of a buffer of {available}")]
pub struct TooShort {
    /// Bytes asked for.
    pub wanted: usize,
    /// Bytes there.
    pub available: usize,
}

/// Pieces of guest memory that read as one buffer. The guest may change the bytes at any time.
#[derive(Debug, Clone, Default)]
pub struct GuestSlices<'m> {
    slices: Vec<VolatileSlice<'m>>,
    length: usize,
}

impl<'m> GuestSlices<'m> {
    /// Bytes in all pieces together.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Appends `length` bytes at `address`, which may lie in several memory regions.
    fn push(
        &mut self,
        memory: &'m GuestMemory,
        address: GuestAddress,
        length: u32,
    ) -> Result<(), ChainError> {
        let outside = || ChainError::OutsideMemory { address: address.0, length };
        // The permission only matters to an IOMMU, and there is none.
        let pieces =
            memory.get_slices(address, length as usize, Permissions::ReadWrite).map_err(|_| outside())?;
        for piece in pieces {
            let piece = piece.map_err(|_| outside())?;
            self.length += piece.len();
            self.slices.push(piece);
        }
        Ok(())
    }

    /// Drops everything beyond the first `length` bytes.
    pub fn truncate(&mut self, length: usize) {
        let mut left = length;
        self.slices.retain_mut(|slice| {
            let keep = slice.len().min(left);
            left -= keep;
            if let Ok(kept) = slice.subslice(0, keep) {
                *slice = kept;
            }
            keep > 0
        });
        self.length = self.length.min(length);
    }

    /// Takes the first `count` bytes off and returns them.
    ///
    /// # Errors
    /// There are fewer; then nothing is taken.
    pub fn split_to(&mut self, count: usize) -> Result<GuestSlices<'m>, TooShort> {
        if count > self.length {
            return Err(TooShort { wanted: count, available: self.length });
        }
        let mut front = GuestSlices { slices: Vec::new(), length: count };
        let mut left = count;
        self.slices.retain_mut(|slice| {
            let taken = slice.len().min(left);
            left -= taken;
            match (slice.subslice(0, taken), slice.offset(taken)) {
                (Ok(head), Ok(rest)) => {
                    if taken > 0 {
                        front.slices.push(head);
                    }
                    *slice = rest;
                }
                // `taken` is at most the slice's length, for which both succeed.
                _ => *slice = slice.subslice(0, 0).unwrap_or(*slice),
            }
            !slice.is_empty()
        });
        self.length -= count;
        Ok(front)
    }

    /// Copies the first `into.len()` bytes out.
    ///
    /// # Errors
    /// There are fewer; then nothing is copied.
    pub fn copy_to(&self, into: &mut [u8]) -> Result<(), TooShort> {
        if into.len() > self.length {
            return Err(TooShort { wanted: into.len(), available: self.length });
        }
        let mut rest = into;
        for slice in &self.slices {
            let copied = slice.copy_to(rest);
            rest = rest.get_mut(copied..).unwrap_or_default();
        }
        Ok(())
    }

    /// Copies `from` to the first bytes.
    ///
    /// # Errors
    /// There is less room; then nothing is copied.
    pub fn copy_from(&self, from: &[u8]) -> Result<(), TooShort> {
        if from.len() > self.length {
            return Err(TooShort { wanted: from.len(), available: self.length });
        }
        let mut rest = from;
        for slice in &self.slices {
            slice.copy_from(rest);
            rest = rest.get(slice.len()..).unwrap_or_default();
        }
        Ok(())
    }

    /// The pieces as the kernel's vector I/O takes them: at most [`MAX_DESCRIPTORS`] plus one for every memory
    /// region's end that a piece crosses. The pointers are valid as long as `'m`.
    pub fn iovecs(&self) -> Vec<libc::iovec> {
        let mut iovecs = Vec::with_capacity(self.slices.len());
        self.append_iovecs(&mut iovecs);
        iovecs
    }

    /// Appends what [`iovecs`](Self::iovecs) returns to a list that is used again and again.
    pub fn append_iovecs(&self, iovecs: &mut Vec<libc::iovec>) {
        iovecs.extend(self.slices.iter().map(|slice| libc::iovec {
            iov_base: slice.ptr_guard_mut().as_ptr().cast(),
            iov_len: slice.len(),
        }));
    }

    /// The same pieces without a borrow of the memory, for buffers that are kept.
    ///
    /// # Safety
    /// The result must not be used, nor copied from, after the last clone of the guest memory that the pieces lie
    /// in has been dropped.
    pub unsafe fn detach(self) -> GuestSlices<'static> {
        let detach = |slice: VolatileSlice<'m>| {
            // SAFETY: only the lifetime changes, and the caller keeps the memory for as long as it uses the result.
            unsafe { std::mem::transmute::<VolatileSlice<'m>, VolatileSlice<'static>>(slice) }
        };
        GuestSlices { slices: self.slices.into_iter().map(detach).collect(), length: self.length }
    }
}

/// A checked descriptor chain.
#[derive(Debug, Default)]
pub struct Chain<'m> {
    /// What the driver has written for the device.
    pub readable: GuestSlices<'m>,
    /// What the device may fill.
    pub writable: GuestSlices<'m>,
}

impl<'m> Chain<'m> {
    /// Walks `chain`, whose buffers lie in `memory`.
    ///
    /// # Errors
    /// The driver broke the rules; the chain is to be given back with a length of 0.
    pub fn parse<M>(
        memory: &'m GuestMemory,
        chain: DescriptorChain<M>,
        queue_size: u16,
    ) -> Result<Self, ChainError>
    where
        M: Deref,
        M::Target: vm_memory::GuestMemory,
    {
        // "A driver MUST NOT create a descriptor chain longer than the Queue Size" (virtio 1.2, 2.7.5.3.1).
        let limit = MAX_DESCRIPTORS.min(usize::from(queue_size));
        let mut parsed = Self::default();
        let mut count = 0;
        let mut promises_more = false;
        for descriptor in chain {
            if count == limit {
                return Err(ChainError::TooLong(limit));
            }
            count += 1;
            promises_more = descriptor.has_next();
            let list = if descriptor.is_write_only() {
                &mut parsed.writable
            } else if parsed.writable.slices.is_empty() {
                &mut parsed.readable
            } else {
                return Err(ChainError::ReadableAfterWritable);
            };
            list.push(memory, descriptor.addr(), descriptor.len())?;
        }
        match (count, promises_more) {
            (0, _) => Err(ChainError::Empty),
            (count, true) => Err(ChainError::Broken(count)),
            _ => Ok(parsed),
        }
    }
}

#[cfg(test)]
mod every_table;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use virtio_queue::QueueOwnedT;
    use vm_memory::Bytes;

    use super::*;
    use crate::devices::virtio::test_driver::{self, DriverQueue, INDIRECT, NEXT, SEAM, WRITE};

    fn parse<'m>(
        memory: &'m GuestMemory,
        driver: &mut DriverQueue,
        head: u16,
    ) -> Result<Chain<'m>, ChainError> {
        driver.offer(head);
        let mut queue = driver.device_queue().queue;
        let chain = queue.iter(memory).unwrap().last().unwrap();
        Chain::parse(memory, chain, driver.size)
    }

    #[test]
    fn readable_and_writable_buffers_are_told_apart_in_order() {
        let memory = test_driver::memory();
        let mut driver = DriverQueue::new(&memory, 0, 8);
        memory.write_slice(b"abc", GuestAddress(0x8000)).unwrap();
        memory.write_slice(b"de", GuestAddress(0x9000)).unwrap();
        driver.describe_chain(0, &[(0x8000, 3, 0), (0x9000, 2, 0), (0xa000, 1, WRITE), (0xb000, 4, WRITE)]);
        let chain = parse(&memory, &mut driver, 0).unwrap();
        let mut read = [0; 5];
        chain.readable.copy_to(&mut read).unwrap();
        assert_eq!(&read, b"abcde");
        assert_eq!((chain.readable.len(), chain.writable.len()), (5, 5));
        chain.writable.copy_from(b"12345").unwrap();
        assert_eq!(memory.read_obj::<[u8; 4]>(GuestAddress(0xb000)).unwrap(), *b"2345");
    }

    #[test]
    fn a_buffer_may_lie_across_two_memory_regions() {
        let memory = test_driver::memory();
        let mut driver = DriverQueue::new(&memory, 0, 8);
        driver.describe_chain(0, &[(SEAM - 2, 4, WRITE)]);
        let chain = parse(&memory, &mut driver, 0).unwrap();
        assert_eq!(chain.writable.iovecs().len(), 2);
        chain.writable.copy_from(b"wxyz").unwrap();
        assert_eq!(memory.read_obj::<[u8; 4]>(GuestAddress(SEAM - 2)).unwrap(), *b"wxyz");
    }

    #[test]
    fn detached_pieces_are_the_same_memory() {
        let memory = test_driver::memory();
        let mut driver = DriverQueue::new(&memory, 0, 8);
        driver.describe_chain(0, &[(SEAM - 2, 4, WRITE)]);
        let chain = parse(&memory, &mut driver, 0).unwrap();
        // SAFETY: `memory` is the first to be made and the last to be dropped.
        let detached = unsafe { chain.writable.detach() };
        detached.copy_from(b"wxyz").unwrap();
        assert_eq!(memory.read_obj::<[u8; 4]>(GuestAddress(SEAM - 2)).unwrap(), *b"wxyz");
    }

    #[test]
    fn a_chain_that_loops_is_an_error() {
        let memory = test_driver::memory();
        let mut driver = DriverQueue::new(&memory, 0, 8);
        driver.describe(0, 0x8000, 1, NEXT, 1);
        driver.describe(1, 0x8000, 1, NEXT, 0);
        assert_eq!(parse(&memory, &mut driver, 0).unwrap_err(), ChainError::Broken(8));
    }

    #[test]
    fn an_indirect_table_longer_than_the_queue_is_an_error_however_long() {
        let memory = test_driver::memory();
        let mut driver = DriverQueue::new(&memory, 0, 8);
        // As many as are looked at, and some more that would be if the walk did not stop.
        for index in 0..32 {
            let entry = (0x8000, 1, NEXT, index + 1);
            test_driver::write_descriptor(&memory, 0x10_0000 + 16 * u64::from(index), entry);
        }
        for (length, error) in [
            (16 * 65_535, ChainError::TooLong(8)),
            (16 * 65_536, ChainError::Empty),
            (u32::MAX, ChainError::Empty),
            (15, ChainError::Empty),
            (0, ChainError::Empty),
        ] {
            driver.describe(0, 0x10_0000, length, INDIRECT, 0);
            assert_eq!(parse(&memory, &mut driver, 0).unwrap_err(), error, "{length}");
        }
        // A table within a table, behind a plain descriptor.
        test_driver::write_descriptor(&memory, 0x10_0000, (0x10_0000, 16, INDIRECT, 0));
        driver.describe(0, 0x8000, 1, NEXT, 1);
        driver.describe(1, 0x10_0000, 16, INDIRECT, 0);
        assert_eq!(parse(&memory, &mut driver, 0).unwrap_err(), ChainError::Broken(1));
    }

    #[test]
    fn a_buffer_outside_memory_is_an_error() {
        let memory = test_driver::memory();
        let mut driver = DriverQueue::new(&memory, 0, 8);
        for (address, length) in
            [(2 * SEAM, 1), (2 * SEAM - 1, 2), (u64::MAX, 2), (u64::MAX - 1, 1), (0, u32::MAX)]
        {
            driver.describe_chain(0, &[(address, length, 0)]);
            let error = parse(&memory, &mut driver, 0).unwrap_err();
            assert_eq!(error, ChainError::OutsideMemory { address, length });
        }
    }

    #[test]
    fn a_readable_descriptor_behind_a_writable_one_is_an_error() {
        let memory = test_driver::memory();
        let mut driver = DriverQueue::new(&memory, 0, 8);
        driver.describe_chain(0, &[(0x8000, 1, WRITE), (0x9000, 1, 0)]);
        assert_eq!(parse(&memory, &mut driver, 0).unwrap_err(), ChainError::ReadableAfterWritable);
    }

    #[test]
    fn a_head_or_a_next_outside_the_table_is_an_error() {
        let memory = test_driver::memory();
        let mut driver = DriverQueue::new(&memory, 0, 8);
        assert_eq!(parse(&memory, &mut driver, 8).unwrap_err(), ChainError::Empty);
        driver.describe(0, 0x8000, 1, NEXT, 8);
        assert_eq!(parse(&memory, &mut driver, 0).unwrap_err(), ChainError::Broken(1));
    }

    proptest! {
        /// Against a plain vector: however a buffer is cut into pieces, cutting it again loses and moves no byte.
        #[test]
        fn cutting_a_buffer_loses_nothing(
            lengths in proptest::collection::vec(0..40_u32, 1..8),
            cut in 0..300_usize,
            kept in 0..300_usize,
        ) {
            let memory = test_driver::memory();
            let mut driver = DriverQueue::new(&memory, 0, 8);
            let mut parts = Vec::new();
            let mut bytes = Vec::new();
            for (index, length) in (0..).zip(&lengths) {
                let address = 0x8000 + 0x100 * index;
                let content: Vec<u8> = (0..*length).map(|offset| (7 * index as u32 + offset) as u8).collect();
                memory.write_slice(&content, GuestAddress(address)).unwrap();
                bytes.extend(content);
                parts.push((address, *length, 0));
            }
            driver.describe_chain(0, &parts);
            let mut rest = parse(&memory, &mut driver, 0).unwrap().readable;
            let content = |slices: &GuestSlices<'_>| {
                let mut content = vec![0; slices.len()];
                slices.copy_to(&mut content).unwrap();
                assert_eq!(slices.iovecs().iter().map(|iovec| iovec.iov_len).sum::<usize>(), content.len());
                content
            };
            let without_holes =
                |slices: &GuestSlices<'_>| slices.iovecs().iter().all(|iovec| iovec.iov_len > 0);
            prop_assert_eq!(content(&rest), bytes.clone());
            if cut > bytes.len() {
                prop_assert!(rest.split_to(cut).is_err());
                prop_assert_eq!(content(&rest), bytes);
            } else {
                let front = rest.split_to(cut).unwrap();
                prop_assert_eq!(content(&front), bytes[..cut].to_vec());
                prop_assert_eq!(content(&rest), bytes[cut..].to_vec());
                rest.truncate(kept);
                prop_assert_eq!(content(&rest), bytes[cut..bytes.len().min(cut + kept)].to_vec());
                prop_assert!(without_holes(&front) && without_holes(&rest), "pieces of no bytes cost a system call");
            }
        }
    }
}
