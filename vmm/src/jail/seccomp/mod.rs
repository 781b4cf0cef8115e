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

pub use table::{Condition, Rule, rules};
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
        Self::of(rules)
    }

    /// Builds those that allow what `rules` has for each role.
    fn of<'a, R: Iterator<Item = &'a Rule>>(rules: impl Fn(Role) -> R) -> Result<Self, FilterError> {
        let build =
            |role| Ok((role, program(rules(role)).map_err(|source| FilterError::Build { role, source })?));
        Ok(Self(Role::ALL.into_iter().map(build).collect::<Result<_, _>>()?))
    }

    /// Installs the one for `role` on the calling thread.
    pub(super) fn install(&self, role: Role) -> Result<(), FilterError> {
        // An empty program is refused, as one should be that is not there.
        let program = self.0.get(&role).map(Vec::as_slice).unwrap_or_default();
        apply_filter(program).map_err(|source| FilterError::Install { role, source })
    }
}

fn program<'a>(rules: impl Iterator<Item = &'a Rule>) -> Result<BpfProgram, BackendError> {
    let mut calls: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for rule in rules {
        let alternatives = calls.entry(rule.number()).or_default();
        for conditions in alternatives_of(rule.conditions)? {
            alternatives.push(SeccompRule::new(conditions)?);
        }
    }
    SeccompFilter::new(calls, SeccompAction::Trap, SeccompAction::Allow, TargetArch::x86_64)?.try_into()
}

/// The lists of conditions of which one has to hold as a whole; none where any arguments will do.
fn alternatives_of(conditions: &[Condition]) -> Result<Vec<Vec<SeccompCondition>>, BackendError> {
    let mut alternatives: Vec<Vec<SeccompCondition>> = Vec::new();
    for condition in conditions {
        let any = any_of(*condition)?;
        alternatives = match alternatives.is_empty() {
            true => any.into_iter().map(|one| vec![one]).collect(),
            false => alternatives
                .iter()
                .flat_map(|all| any.iter().map(|one| [all.as_slice(), std::slice::from_ref(one)].concat()))
                .collect(),
        };
    }
    Ok(alternatives)
}

fn any_of(condition: Condition) -> Result<Vec<SeccompCondition>, BackendError> {
    use SeccompCmpArgLen::{Dword, Qword};
    use SeccompCmpOp::{Eq, MaskedEq};
    match condition {
        Condition::Is(argument, values) => {
            values.iter().map(|&value| SeccompCondition::new(argument, Dword, Eq, value)).collect()
        }
        Condition::IsNull(argument) => Ok(vec![SeccompCondition::new(argument, Qword, Eq, 0)?]),
        Condition::Lacks(argument, bits) => {
            Ok(vec![SeccompCondition::new(argument, Qword, MaskedEq(bits), 0)?])
        }
    }
}

#[cfg(test)]
mod tests;
