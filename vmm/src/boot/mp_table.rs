//! The MP table (Intel MultiProcessor Specification 1.4), by which a kernel without ACPI finds processors, I/O APIC
//! and interrupts.

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::layout::{FIRST_INTERRUPT, IO_APIC, LOCAL_APIC, MP_TABLE};
use crate::memory::GuestMemory;

/// Revision 1.4.
const SPECIFICATION: u8 = 4;
/// The version of an integrated local APIC.
const LOCAL_APIC_VERSION: u8 = 0x14;
/// The version that the I/O APIC itself tells.
const IO_APIC_VERSION: u8 = 0x11;
/// The identifier of the one bus.
const ISA_BUS: u8 = 0;
/// All local APICs.
const EVERY_LOCAL_APIC: u8 = 0xFF;

// Entry types (section 4.3).
const PROCESSOR: u8 = 0;
const BUS: u8 = 1;
const IO_APIC_ENTRY: u8 = 2;
const IO_INTERRUPT: u8 = 3;
const LOCAL_INTERRUPT: u8 = 4;

// Interrupt types (table 4-10).
const VECTORED: u8 = 0;
const NMI: u8 = 1;

/// Writes the table for `vcpus` processors, with APIC identifiers from 0, and an I/O APIC with `io_apic_inputs`
/// inputs to [`MP_TABLE`].
pub(super) fn write(memory: &GuestMemory, vcpus: u32, io_apic_inputs: u8) -> Result<(), GuestMemoryError> {
    let pointer = floating_pointer();
    memory.write_slice(&pointer, GuestAddress(MP_TABLE))?;
    let table = configuration(u8::try_from(vcpus).unwrap_or(u8::MAX), io_apic_inputs);
    memory.write_slice(&table, GuestAddress(MP_TABLE + pointer.len() as u64))
}

/// The structure for which kernels search (section 4.1). The table follows it.
fn floating_pointer() -> Vec<u8> {
    const LENGTH: u32 = 16;
    let table = u32::try_from(MP_TABLE).unwrap_or_default() + LENGTH;
    let mut bytes = b"_MP_".to_vec();
    bytes.extend(table.to_le_bytes());
    bytes.extend([1, SPECIFICATION, 0, 0, 0, 0, 0, 0]);
    set_checksum(&mut bytes, 10);
    bytes
}

/// The configuration table (sections 4.2 and 4.3).
fn configuration(vcpus: u8, io_apic_inputs: u8) -> Vec<u8> {
    let io_apic = vcpus;
    let mut entries = Vec::new();
    for id in 0..vcpus {
        let enabled_and_first = if id == 0 { 0b11 } else { 0b01 };
        entries.push(vec![PROCESSOR, id, LOCAL_APIC_VERSION, enabled_and_first]);
        // Signature and feature flags: the kernel asks CPUID.
        if let Some(entry) = entries.last_mut() {
            entry.resize(20, 0);
        }
    }
    entries.push([&[BUS, ISA_BUS], &b"ISA   "[..]].concat());
    entries.push([&[IO_APIC_ENTRY, io_apic, IO_APIC_VERSION, 1], &IO_APIC.to_le_bytes()[..]].concat());
    for input in FIRST_INTERRUPT..io_apic_inputs {
        entries.push(vec![IO_INTERRUPT, VECTORED, 0, 0, ISA_BUS, input, io_apic, input]);
    }
    entries.push(vec![LOCAL_INTERRUPT, NMI, 0, 0, ISA_BUS, 0, EVERY_LOCAL_APIC, 1]);

    let mut table = b"PCMP".to_vec();
    let length = 44 + entries.iter().map(Vec::len).sum::<usize>();
    table.extend(u16::try_from(length).unwrap_or(u16::MAX).to_le_bytes());
    table.extend([SPECIFICATION, 0]);
    table.extend(b"SAYA    MICROVM     ");
    table.extend([0; 6]);
    table.extend(u16::try_from(entries.len()).unwrap_or(u16::MAX).to_le_bytes());
    table.extend(LOCAL_APIC.to_le_bytes());
    table.extend([0; 4]);
    table.extend(entries.concat());
    set_checksum(&mut table, 7);
    table
}

/// Makes all bytes add up to zero by the one at `index`, which is zero so far.
fn set_checksum(bytes: &mut [u8], index: usize) {
    let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(byte) = bytes.get_mut(index) {
        *byte = sum.wrapping_neg();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::HIGH_MEMORY;
    use crate::memory::plain;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn checksums_and_lengths_hold_for_every_number_of_processors() {
        for vcpus in (1..=64).step_by(if cfg!(miri) { 21 } else { 1 }) {
            let table = configuration(vcpus, 6);
            assert_eq!(sum(&table), 0);
            assert_eq!(usize::from(u16::from_le_bytes([table[4], table[5]])), table.len());
            let entries = u16::from_le_bytes([table[34], table[35]]);
            assert_eq!(u32::from(entries), u32::from(vcpus) + 1 + 1 + 5 + 1);
            assert_eq!(table[44 + 20 * usize::from(vcpus)], BUS, "the bus follows the processors");
            assert!(MP_TABLE + 16 + (table.len() as u64) < HIGH_MEMORY);
        }
    }

    #[test]
    fn the_pointer_leads_to_the_table() {
        let memory = plain(32);
        write(&memory, 2, 5).unwrap();
        let pointer: [u8; 16] = memory.read_obj(GuestAddress(MP_TABLE)).unwrap();
        assert_eq!((&pointer[..4], sum(&pointer)), (&b"_MP_"[..], 0));
        let table = u32::from_le_bytes(pointer[4..8].try_into().unwrap());
        assert_eq!(memory.read_obj::<[u8; 4]>(GuestAddress(u64::from(table))).unwrap(), *b"PCMP");
    }
}
