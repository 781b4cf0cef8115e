//! Putting the guest kernel, its initramfs and what they are told into guest memory: the PVH boot protocol
//! (Xen, docs/misc/pvh.pandoc and public/arch-x86/hvm/start_info.h) and the MP table.

pub mod command_line;
mod kernel;
#[cfg(test)]
pub(crate) use kernel::tests;
mod mp_table;
mod start_info;

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::layout::{COMMAND_LINE, GAP_START};
use crate::memory::{GuestMemory, HUGE_PAGE, back_by_huge_pages};
pub use command_line::{CommandLine, CommandLineError};
pub use kernel::{KernelError, KernelImage};

/// The alignment of the initramfs.
const PAGE: u64 = 4096;

/// The size of a page structure (Linux, `struct page`).
const PAGE_STRUCTURE: u64 = 64;
/// What Linux allocates at boot beside its page structures.
const BOOT_ALLOCATIONS: u64 = 4 << 20;
/// What Linux and its first process allocate after that.
const EARLY_ALLOCATIONS: u64 = 2 << 20;

/// Where Linux, which lies at 16 MiB, allocates first below that: beside its tables at the start, and from blocks of 4 MiB,
/// of which it takes these first. A large page that it would not use takes longer to make than all its exits.
const FIRST_BLOCKS: [Range<u64>; 2] = [0..HUGE_PAGE, 8 << 20..14 << 20];

/// The unit in which Linux keeps track of memory (`SECTION_SIZE_BITS` on x86-64).
const SECTION: u64 = 1 << 27;

/// Why guest memory could not be made ready for the kernel.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The initramfs cannot be read.
    #[error("cannot read the initramfs: {0}")]
    Initramfs(io::Error),
    /// The initramfs does not fit.
    #[error(
        "an initramfs of {length} bytes does not fit behind the kernel, which ends at {kernel_end:#x}: set `memory` higher"
    )]
    InitramfsSize {
        /// Its length in bytes.
        length: u64,
        /// The first byte behind the kernel.
        kernel_end: u64,
    },
    /// A table could not be written.
    #[error("cannot write the {what} into guest memory: {source}")]
    Table {
        /// Which one.
        what: &'static str,
        /// What the memory library has to say.
        source: vm_memory::GuestMemoryError,
    },
}

/// Guest memory that is ready to boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loaded {
    /// The PVH entry's physical address.
    pub entry: u64,
    /// The first byte behind kernel and initramfs.
    pub end: u64,
}

/// What the MP table tells of.
#[derive(Debug, Clone, Copy)]
pub struct Processors {
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Inputs of the I/O APIC, of which the first is not used.
    pub io_apic_inputs: u8,
}

/// The initramfs in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Module {
    address: u64,
    length: u64,
}

/// Loads kernel and initramfs and writes every table that the kernel reads.
///
/// # Errors
/// A file that cannot be read, is not what it should be, or does not fit.
pub fn load(
    memory: &GuestMemory,
    kernel: &KernelImage,
    initramfs: Option<&File>,
    command_line: &CommandLine,
    processors: Processors,
) -> Result<Loaded, BootError> {
    let length = initramfs.map_or(Ok(0), |file| file.metadata().map(|metadata| metadata.len()));
    let length = length.map_err(BootError::Initramfs)?;
    let behind = kernel.end().saturating_add(length).saturating_add(EARLY_ALLOCATIONS);
    back_by_huge_pages(memory, &(kernel.start()..behind));
    kernel.load(memory)?;
    let module = initramfs.map(|file| load_initramfs(memory, file, kernel.end())).transpose()?;
    let table = |what| move |source| BootError::Table { what, source };
    let text = command_line.to_bytes();
    memory.write_slice(&text, GuestAddress(COMMAND_LINE)).map_err(table("kernel command line"))?;
    mp_table::write(memory, processors.vcpus, processors.io_apic_inputs).map_err(table("MP table"))?;
    start_info::write(memory, module).map_err(table("hvm_start_info"))?;
    let end = module.map_or(kernel.end(), |module| module.address + module.length);
    Ok(Loaded { entry: kernel.entry(), end })
}

/// Gets large pages for what the kernel uses first beside its own memory: its page structures, the memory below it
/// from which it allocates first, and the end of its first section. There it keeps a map of the section's use, for
/// which a block of memory has been broken up, and it allocates from the smallest blocks first.
pub fn prepare(memory: &GuestMemory, kernel: &KernelImage) {
    back_by_huge_pages(memory, &page_structures(memory));
    for blocks in FIRST_BLOCKS {
        back_by_huge_pages(memory, &(blocks.start..blocks.end.min(kernel.start())));
    }
    back_by_huge_pages(memory, &(SECTION - HUGE_PAGE..SECTION));
}

/// Where Linux keeps its page structures and page tables, and what else it allocates before it has an allocator: at
/// the top, from high to low addresses.
fn page_structures(memory: &GuestMemory) -> Range<u64> {
    let end = memory.last_addr().0 + 1;
    let size: u64 = memory.iter().map(GuestMemoryRegion::len).sum();
    end.saturating_sub(size / PAGE * PAGE_STRUCTURE + BOOT_ALLOCATIONS)..end
}

/// Reads the initramfs right behind the kernel, so that both share their large pages.
fn load_initramfs(memory: &GuestMemory, file: &File, kernel_end: u64) -> Result<Module, BootError> {
    let mut file = file;
    let length = file.seek(SeekFrom::End(0)).map_err(BootError::Initramfs)?;
    file.rewind().map_err(BootError::Initramfs)?;
    let address = kernel_end.next_multiple_of(PAGE);
    let limit = memory.last_addr().0.min(GAP_START - 1);
    if address.checked_add(length).is_none_or(|end| end > limit) {
        return Err(BootError::InitramfsSize { length, kernel_end });
    }
    kernel::read_into(memory, file, address, length).map_err(BootError::Initramfs)?;
    Ok(Module { address, length })
}
