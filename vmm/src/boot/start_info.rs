//! `hvm_start_info`: what a PVH kernel is told.

use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion};

use super::Module;
use crate::layout::{COMMAND_LINE, HIGH_MEMORY, MEMORY_MAP, MODULES, MP_TABLE, START_INFO};
use crate::memory::GuestMemory;

/// `XEN_HVM_START_MAGIC_VALUE`.
const MAGIC: u32 = 0x336e_c578;
/// The version that has a memory map.
const VERSION: u32 = 1;
/// `XEN_HVM_MEMMAP_TYPE_RAM`.
const RAM: u32 = 1;
/// `XEN_HVM_MEMMAP_TYPE_RESERVED`.
const RESERVED: u32 = 2;

/// Writes `hvm_start_info` to [`START_INFO`] and what it points at. The command line lies at [`COMMAND_LINE`].
pub(super) fn write(memory: &GuestMemory, module: Option<Module>) -> Result<(), GuestMemoryError> {
    let map = memory_map(memory);
    let mut address = GuestAddress(MEMORY_MAP);
    for entry in &map {
        memory.write_obj(*entry, address)?;
        address.0 += size_of::<hvm_memmap_table_entry>() as u64;
    }
    if let Some(module) = module {
        let entry = hvm_modlist_entry { paddr: module.address, size: module.length, ..Default::default() };
        memory.write_obj(entry, GuestAddress(MODULES))?;
    }
    let info = hvm_start_info {
        magic: MAGIC,
        version: VERSION,
        nr_modules: u32::from(module.is_some()),
        modlist_paddr: if module.is_some() { MODULES } else { 0 },
        cmdline_paddr: COMMAND_LINE,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: u32::try_from(map.len()).unwrap_or(u32::MAX),
        ..Default::default()
    };
    memory.write_obj(info, GuestAddress(START_INFO))
}

/// Memory, except for what lies between the MP table and 1 MiB.
fn memory_map(memory: &GuestMemory) -> Vec<hvm_memmap_table_entry> {
    let entry = |addr, end: u64, type_| hvm_memmap_table_entry { addr, size: end - addr, type_, reserved: 0 };
    let mut map = Vec::new();
    for region in memory.iter() {
        let (start, end) = (region.start_addr().0, region.start_addr().0 + region.len());
        if start == 0 {
            map.push(entry(0, MP_TABLE, RAM));
            map.push(entry(MP_TABLE, HIGH_MEMORY, RESERVED));
            map.push(entry(HIGH_MEMORY, end, RAM));
        } else {
            map.push(entry(start, end, RAM));
        }
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::GAP_END;
    use crate::memory::plain;

    #[test]
    fn the_kernel_finds_module_and_memory_map() {
        let memory = plain(3 * 1024 + 32);
        write(&memory, Some(Module { address: 0x200_0000, length: 77 })).unwrap();

        let info: hvm_start_info = memory.read_obj(GuestAddress(START_INFO)).unwrap();
        assert_eq!((info.magic, info.version, info.nr_modules), (MAGIC, VERSION, 1));
        assert_eq!((info.cmdline_paddr, info.rsdp_paddr), (COMMAND_LINE, 0));
        let module: hvm_modlist_entry = memory.read_obj(GuestAddress(info.modlist_paddr)).unwrap();
        assert_eq!((module.paddr, module.size), (0x200_0000, 77));
        let ranges = [0, 1, 2, 3].map(|index| {
            let at = info.memmap_paddr + index * size_of::<hvm_memmap_table_entry>() as u64;
            let entry: hvm_memmap_table_entry = memory.read_obj(GuestAddress(at)).unwrap();
            (entry.addr, entry.size, entry.type_)
        });
        assert_eq!(
            ranges,
            [
                (0, MP_TABLE, RAM),
                (MP_TABLE, HIGH_MEMORY - MP_TABLE, RESERVED),
                (HIGH_MEMORY, (3 << 30) - HIGH_MEMORY, RAM),
                (GAP_END, 32 << 20, RAM),
            ]
        );
        assert_eq!(info.memmap_entries, 4);
    }
}
