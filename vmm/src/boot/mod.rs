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

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::layout::{COMMAND_LINE, GAP_START};
use crate::memory::GuestMemory;
pub use command_line::{CommandLine, CommandLineError};
pub use kernel::{KernelError, KernelImage};

/// The alignment of the initramfs.
const PAGE: u64 = 4096;

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
