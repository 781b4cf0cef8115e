//! System call filters (seccomp(2)), one for each role.
//!
//! A system call that the [table](rules) does not allow is not made: the kernel sends its thread SIGSYS, whose handler
//! reports the call and the role and ends the process. The kernel alone could kill the process, but then nobody would
//! learn why. Where the handler is not to be trusted any more, nothing is lost: the call has not been made, a thread
//! that returns from the handler has gained nothing, and one that blocks the signal is killed by the kernel.

mod table;
mod violation;

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};

use super::Role;

pub use table::{Only, Rule, rules};
pub(super) use violation::note_role;
pub use violation::report_violations_to;

/// Why a thread has no filter.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// The table is wrong.
    #[error("the seccomp filter of the VMM's role {role} cannot be built: {source}")]
    Build {
        /// Whose filter.
        role: Role,
        /// What is wrong with it.
        source: BackendError,
    },
    /// The kernel refused it.
    #[error("the seccomp filter of the VMM's role {role} cannot be installed: {source}")]
    Install {
        /// Whose filter.
        role: Role,
        /// The kernel's answer.
        source: seccompiler::Error,
    },
    /// Violations cannot be reported.
    #[error("no handler for violations of seccomp filters: {0}")]
    Handler(#[source] std::io::Error),
}

/// The filters, ready to be installed.
#[derive(Debug)]
pub(super) struct Filters(BTreeMap<Role, BpfProgram>);

impl Filters {
    /// Builds all of them.
    pub(super) fn build() -> Result<Self, FilterError> {
        let build = |role| Ok((role, program(role).map_err(|source| FilterError::Build { role, source })?));
        Ok(Self(Role::ALL.into_iter().map(build).collect::<Result<_, _>>()?))
    }

    /// Installs the one for `role` on the calling thread.
    pub(super) fn install(&self, role: Role) -> Result<(), FilterError> {
        // An empty program is refused, as one should be that is not there.
        let program = self.0.get(&role).map(Vec::as_slice).unwrap_or_default();
        apply_filter(program).map_err(|source| FilterError::Install { role, source })
    }
}

fn program(role: Role) -> Result<BpfProgram, BackendError> {
    let mut calls: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for rule in rules(role) {
        let alternatives = calls.entry(rule.number()).or_default();
        for condition in conditions(rule.only)? {
            alternatives.push(SeccompRule::new(vec![condition])?);
        }
    }
    SeccompFilter::new(calls, SeccompAction::Trap, SeccompAction::Allow, TargetArch::x86_64)?.try_into()
}

/// The alternatives of a rule; none where any arguments will do.
fn conditions(only: Only) -> Result<Vec<SeccompCondition>, BackendError> {
    let equals =
        |argument, value| SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value);
    match only {
        Only::Any => Ok(Vec::new()),
        Only::OneOf { argument, values } => values.iter().map(|&value| equals(argument, value)).collect(),
        Only::WithoutBits { argument, bits } => {
            let masked = SeccompCmpOp::MaskedEq(bits);
            Ok(vec![SeccompCondition::new(argument, SeccompCmpArgLen::Qword, masked, 0)?])
        }
    }
}

#[cfg(test)]
mod tests;
