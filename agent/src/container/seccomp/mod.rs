//! `linux.seccomp`.

use std::io;

use oci_spec::runtime::LinuxSeccomp;

use crate::error::SpecError;

/// A compiled filter.
#[derive(Clone, Debug)]
pub(crate) struct Filter {}

/// Compiles the object of the spec.
pub(crate) fn compile(_seccomp: &LinuxSeccomp) -> Result<Filter, SpecError> {
    Err(SpecError::not_supported("linux.seccomp", "this agent has no filter compiler yet"))
}

/// Installs a filter for this process.
pub(crate) fn install(_filter: &Filter) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
