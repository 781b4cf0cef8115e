//! From a descriptor chain to the pieces of memory that it names.

use virtio_queue::DescriptorChain;
use vm_memory::{GuestAddress, GuestMemory as _, Permissions};

use crate::fs::buffers::{Buffers, Segments};
use crate::memory::GuestMemory;

/// The most descriptors in one chain. A chain may not be longer than its queue (virtio 1.2, 2.7.5.2 and 2.7.5.3.1),
/// and `preadv` takes no more vectors at once (`UIO_MAXIOV`, linux/uio.h).
const MOST_DESCRIPTORS: usize = 1024;

/// What is wrong with a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum ChainError {
    /// It ends before its last descriptor: it loops, leaves its table, or its table is no table.
    #[error("the descriptor chain is cut off")]
    CutOff,
    /// It has too many descriptors.
    #[error("the descriptor chain has more than {MOST_DESCRIPTORS} descriptors")]
    TooLong,
    /// A descriptor that the device reads comes after one that it writes.
    #[error("a readable descriptor follows a writable one")]
    OutOfOrder,
    /// A descriptor names memory that is not there.
    #[error("the descriptor at {0:#x} with {1} bytes lies outside guest memory")]
    OutsideMemory(u64, u32),
}

/// Fills `buffers` with the memory that `chain` names.
///
/// # Errors
/// See [`ChainError`]; `buffers` then holds what came before.
pub(super) fn gather<'m>(
    memory: &'m GuestMemory,
    chain: DescriptorChain<&'m GuestMemory>,
    buffers: &mut Buffers<'m>,
) -> Result<(), ChainError> {
    buffers.clear();
    let mut complete = false;
    // Those without bytes count, too: an indirect table may have 65,535 of them.
    for (index, descriptor) in chain.enumerate() {
        if index == MOST_DESCRIPTORS {
            return Err(ChainError::TooLong);
        }
        let side = match descriptor.is_write_only() {
            true => &mut buffers.writable,
            false if buffers.writable.pieces() > 0 => return Err(ChainError::OutOfOrder),
            false => &mut buffers.readable,
        };
        push(memory, descriptor.addr(), descriptor.len(), side)?;
        if buffers.readable.pieces() + buffers.writable.pieces() > MOST_DESCRIPTORS {
            return Err(ChainError::TooLong);
        }
        complete = !descriptor.has_next();
    }
    match complete {
        true => Ok(()),
        false => Err(ChainError::CutOff),
    }
}

fn push<'m>(
    memory: &'m GuestMemory,
    address: GuestAddress,
    length: u32,
    side: &mut Segments<'m>,
) -> Result<(), ChainError> {
    let outside = |_| ChainError::OutsideMemory(address.0, length);
    let access = Permissions::No;
    let slices = memory.get_slices(address, length as usize, access).map_err(outside)?;
    for slice in slices {
        side.push(slice.map_err(outside)?);
    }
    Ok(())
}
