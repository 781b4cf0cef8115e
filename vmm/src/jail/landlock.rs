//! Landlock: rules of the kernel's that a process sets itself and never gets rid of.
//!
//! It is a second line behind namespaces and filters, for a kernel that has it (Linux 5.13) in a version that lets
//! files be renamed between directories (5.19). What later versions add is used where it is there: truncation (6.2),
//! TCP (6.7), ioctls of devices (6.10), abstract sockets and signals of others (6.12).

use std::os::fd::OwnedFd;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, Scope,
};

/// The newest version whose rules are known here.
const NEWEST: ABI = ABI::V6;

/// Landlock is there and refuses.
#[derive(Debug, thiserror::Error)]
#[error("the VMM's jail: Landlock: {0}")]
pub struct LandlockError(#[from] RulesetError);

/// Leaves the calling thread, and those that it starts, the files below `root`; none of them to be executed, and no
/// device to be controlled.
pub(super) fn restrict(root: &OwnedFd) -> Result<(), LandlockError> {
    let all = AccessFs::from_all(NEWEST);
    let files = all & !(AccessFs::Execute | AccessFs::IoctlDev);
    // The first version denies every rename and link between directories, whatever its rules say.
    let needed = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    let Ok(ruleset) = needed.handle_access(AccessFs::Refer) else { return Ok(()) };
    ruleset
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?
        .add_rule(PathBeneath::new(root, files))?
        .restrict_self()?;
    Ok(())
}
