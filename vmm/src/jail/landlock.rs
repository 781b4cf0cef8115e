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
    let Ok(ruleset) = needed().handle_access(AccessFs::Refer) else { return Ok(()) };
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

/// A ruleset of which the kernel must know all that it is to handle. The first thing is [`AccessFs::Refer`]: the first version
/// denies every rename and link between directories, whatever its rules say.
fn needed() -> Ruleset {
    Ruleset::default().set_compatibility(CompatLevel::HardRequirement)
}

/// What this kernel's Landlock leaves to the VMM that a newer one's would not, each with the version of Linux that has it.
/// `None`: there is no Landlock that the VMM uses.
#[must_use]
pub fn left_by_landlock() -> Option<Vec<&'static str>> {
    let handles = |handled: Result<Ruleset, RulesetError>| handled.is_ok();
    if !handles(needed().handle_access(AccessFs::Refer)) {
        return None;
    }
    let rules = [
        ("truncation (6.2)", handles(needed().handle_access(AccessFs::Truncate))),
        ("TCP (6.7)", handles(needed().handle_access(AccessNet::from_all(NEWEST)))),
        ("ioctls of devices (6.10)", handles(needed().handle_access(AccessFs::IoctlDev))),
        ("abstract sockets and signals (6.12)", handles(needed().scope(Scope::from_all(NEWEST)))),
    ];
    Some(rules.into_iter().filter(|(_, handled)| !handled).map(|(name, _)| name).collect())
}
