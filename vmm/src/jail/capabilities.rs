//! Capabilities, and the ways to new ones (capabilities(7)).

use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_capabilities_secure_bits, set_no_new_privs,
};

use super::{JailError, step};

/// What the thread that serves files acts with: as the guest's users, with the rights that the guest's kernel has found
/// them to have. `CAP_SYS_ADMIN`, for `trusted.*` attributes, is not among them, and `CAP_DAC_READ_SEARCH` adds
/// nothing to `CAP_DAC_OVERRIDE` but system calls that no filter lets through.
pub(super) const FILES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID);

/// uid 0 means nothing, capabilities stay as they are when the file system uid changes, none becomes ambient; and that
/// is for good.
const SECURE_BITS: CapabilitiesSecureBits = CapabilitiesSecureBits::NO_ROOT
    .union(CapabilitiesSecureBits::NO_ROOT_LOCKED)
    .union(CapabilitiesSecureBits::NO_SETUID_FIXUP)
    .union(CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED)
    .union(CapabilitiesSecureBits::KEEP_CAPS_LOCKED)
    .union(CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE)
    .union(CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED);

/// Leaves the calling thread, and those that it starts, what serving files needs, and no way to anything else.
pub(super) fn keep_for_files_only() -> Result<(), JailError> {
    set_no_new_privs(true).map_err(step("PR_SET_NO_NEW_PRIVS"))?;
    // Nobody reads the guest's memory out of /proc, or traces this process, without CAP_SYS_PTRACE.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(step("PR_SET_DUMPABLE"))?;
    set_capabilities_secure_bits(SECURE_BITS).map_err(step("PR_SET_SECUREBITS"))?;
    clear_ambient_capability_set().map_err(step("PR_CAP_AMBIENT_CLEAR_ALL"))?;
    empty_bounding_set()?;
    set(FILES)
}

/// Takes the calling thread's capabilities away, for good.
///
/// # Errors
/// What capset(2) returned.
pub fn drop_capabilities() -> Result<(), JailError> {
    set(CapabilitySet::empty())
}

fn set(sets: CapabilitySet) -> Result<(), JailError> {
    let sets = CapabilitySets { effective: sets, permitted: sets, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).map_err(step("capset"))
}

/// What the set holds could be gained by executing a file.
fn empty_bounding_set() -> Result<(), JailError> {
    for number in 0..u64::BITS {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)) {
            Ok(()) => {}
            // Beyond the last capability that this kernel knows.
            Err(rustix::io::Errno::INVAL) => return Ok(()),
            Err(error) => return Err(step("PR_CAPBSET_DROP")(error)),
        }
    }
    Ok(())
}
