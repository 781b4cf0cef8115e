//! Model-specific registers that a firmware would have set.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

/// `IA32_MISC_ENABLE`, and its bit for fast string operations.
const MISC_ENABLE: u32 = 0x1A0;
const FAST_STRINGS: u64 = 1;
/// `IA32_MTRR_DEF_TYPE`: enabled (bit 11), memory is write-back (6).
const MTRR_DEF_TYPE: u32 = 0x2FF;
const WRITE_BACK: u64 = 1 << 11 | 6;

/// Sets them on a vCPU. Those that KVM does not have stay unset.
pub(super) fn set(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    let entries = [entry(MTRR_DEF_TYPE, WRITE_BACK), entry(MISC_ENABLE, FAST_STRINGS)];
    let msrs = Msrs::from_entries(&entries).map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))?;
    vcpu.set_msrs(&msrs).map(|_| ())
}
