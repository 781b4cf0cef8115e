//! `hooks`: the two kinds that run in the guest. The others run on the host.

use std::ffi::CString;
use std::time::Duration;

use oci_spec::runtime::{Hook as SpecHook, Hooks};

use super::absolute;
use super::process::c_strings;
use crate::error::SpecError;

/// A program to run at a point of a container's life.
#[derive(Clone, Debug)]
pub(crate) struct Hook {
    /// The program.
    pub(crate) path: CString,
    /// Its arguments, the first being its name.
    pub(crate) arguments: Vec<CString>,
    /// Its environment.
    pub(crate) environment: Vec<CString>,
    /// How long it may take.
    pub(crate) timeout: Option<Duration>,
}

/// When a hook runs.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// In the container's namespaces, before its root is entered.
    CreateContainer,
    /// In the container, before its program.
    StartContainer,
}

pub(super) fn from_spec(hooks: Option<&Hooks>, kind: Kind) -> Result<Vec<Hook>, SpecError> {
    let Some(hooks) = hooks else {
        return Ok(Vec::new());
    };
    let (name, list) = match kind {
        Kind::CreateContainer => ("hooks.createContainer", hooks.create_container()),
        Kind::StartContainer => ("hooks.startContainer", hooks.start_container()),
    };
    let list = list.as_deref().unwrap_or_default().iter().enumerate();
    list.map(|(index, hook)| one(&format!("{name}[{index}]"), hook)).collect()
}

fn one(field: &str, hook: &SpecHook) -> Result<Hook, SpecError> {
    let path = absolute(hook.path(), &format!("{field}.path"))?.to_string_lossy().into_owned();
    let arguments = match hook.args() {
        Some(arguments) if !arguments.is_empty() => arguments.clone(),
        _ => vec![path.clone()],
    };
    let path = c_strings(&[path], &format!("{field}.path"))?.remove(0);
    Ok(Hook {
        path,
        arguments: c_strings(&arguments, &format!("{field}.args"))?,
        environment: c_strings(hook.env().as_deref().unwrap_or_default(), &format!("{field}.env"))?,
        timeout: hook.timeout().map(|seconds| timeout(field, seconds)).transpose()?,
    })
}

fn timeout(field: &str, seconds: i64) -> Result<Duration, SpecError> {
    match u64::try_from(seconds) {
        Ok(seconds) if seconds > 0 => Ok(Duration::from_secs(seconds)),
        _ => Err(SpecError::invalid(format!("{field}.timeout"), format!("is {seconds}; it must be above 0"))),
    }
}
