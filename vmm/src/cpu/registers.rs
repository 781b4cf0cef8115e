//! The state in which the first vCPU enters the kernel: 32-bit protected mode without paging, flat segments
//! (Xen, docs/misc/pvh.pandoc, "CPU state at entry").

use kvm_bindings::{kvm_lapic_state, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;

use crate::layout::START_INFO;

/// `CR0.PE` (protected mode) and `CR0.ET` (which is always set).
const CR0: u64 = 1 << 0 | 1 << 4;
/// Bit 1 of the flags is always set.
const RFLAGS: u64 = 1 << 1;

// Types of segments (Intel SDM 3A, 3.4.5.1 and 3.5).
const CODE: u8 = 0b1011;
const DATA: u8 = 0b0011;
const TASK_STATE: u8 = 0b1011;

/// The local vector table's entry for LINT1, and the delivery mode that the MP table announces for it.
const LVT_LINT1: usize = 0x360;
const DELIVERY_NMI: u8 = 0x4;

/// Points the first vCPU at the kernel's PVH entry.
pub(super) fn set_entry(vcpu: &VcpuFd, entry: u64) -> Result<(), kvm_ioctls::Error> {
    vcpu.set_regs(&kvm_regs { rip: entry, rbx: START_INFO, rflags: RFLAGS, ..Default::default() })?;
    let mut sregs = vcpu.get_sregs()?;
    sregs.cs = flat(CODE, 0x8);
    let data = flat(DATA, 0x10);
    (sregs.ds, sregs.es, sregs.ss) = (data, data, data);
    (sregs.fs, sregs.gs) = (data, data);
    sregs.tr = kvm_segment { limit: 0x67, type_: TASK_STATE, present: 1, ..Default::default() };
    (sregs.cr0, sregs.cr4, sregs.efer) = (CR0, 0, 0);
    vcpu.set_sregs(&sregs)
}

/// A segment over all 4 GiB.
fn flat(type_: u8, selector: u16) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    }
}

/// Has LINT1 deliver NMIs, as the MP table has it. LINT0 would be for an 8259, of which there is none.
pub(super) fn set_local_apic(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let mut apic = vcpu.get_lapic()?;
    set_delivery(&mut apic, LVT_LINT1, DELIVERY_NMI);
    vcpu.set_lapic(&apic)
}

fn set_delivery(apic: &mut kvm_lapic_state, register: usize, mode: u8) {
    // Delivery mode: bits 8 to 10. The entry's second byte holds them.
    if let Some(byte) = apic.regs.get_mut(register + 1) {
        *byte = (byte.cast_unsigned() & !0x7 | mode).cast_signed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delivery_mode_changes_nothing_else_of_the_entry() {
        let mut apic = kvm_lapic_state { regs: [0x7F; 1024] };
        set_delivery(&mut apic, LVT_LINT1, DELIVERY_NMI);
        assert_eq!(apic.regs[LVT_LINT1..LVT_LINT1 + 4], [0x7F, 0x7C, 0x7F, 0x7F]);
        assert!(apic.regs[..LVT_LINT1].iter().all(|byte| *byte == 0x7F));
    }
}
