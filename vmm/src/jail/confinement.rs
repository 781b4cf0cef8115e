//! What a thread calls before it does anything else.

use std::sync::Arc;

use super::seccomp::{FilterError, Filters, note_role};
use super::{JailError, Role, drop_capabilities};

/// Why a thread cannot be confined.
#[derive(Debug, thiserror::Error)]
pub enum ConfinementError {
    /// Its capabilities stay.
    #[error(transparent)]
    Capabilities(#[from] JailError),
    /// Its filter cannot be installed.
    #[error(transparent)]
    Filter(#[from] FilterError),
}

impl From<ConfinementError> for std::io::Error {
    fn from(error: ConfinementError) -> Self {
        Self::other(error)
    }
}

/// How the threads of a virtual machine are confined. Clones share it.
#[derive(Debug, Clone)]
pub struct Confinement(Option<Arc<Filters>>);

impl Confinement {
    /// By nothing, for machines on an engineer's terminal and for tests.
    pub fn none() -> Self {
        Self(None)
    }

    /// By a filter for each role.
    ///
    /// # Errors
    /// A filter that cannot be built.
    pub(super) fn filters() -> Result<Self, FilterError> {
        Ok(Self(Some(Arc::new(Filters::build()?))))
    }

    /// Confines the calling thread to its role, for good: only [`Role::Fs`] keeps capabilities, and no role may make
    /// threads.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn enter(&self, role: Role) -> Result<(), ConfinementError> {
        let Some(filters) = &self.0 else { return Ok(()) };
        if role != Role::Fs {
            drop_capabilities()?;
        }
        note_role(role);
        Ok(filters.install(role)?)
    }
}
