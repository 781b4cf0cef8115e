//! What containerd calls the shim's binary for: `start`, `delete`, `-info` and `-v`.

mod delete;
mod flags;
mod info;
mod input;
pub(crate) mod socket;
mod start;

use std::io;

pub(crate) use flags::Flags;

use crate::daemon;

/// Does what the flags ask for.
///
/// # Errors
/// Whatever kept it from being done, for containerd to print.
pub(crate) fn run(flags: &Flags) -> Result<(), Box<dyn std::error::Error>> {
    if flags.version {
        info::print_version();
        return Ok(());
    }
    if flags.info {
        return Ok(info::write(io::stdin(), io::stdout())?);
    }
    if flags.action == "start" {
        return Ok(start::run(flags.clone())?);
    }
    if flags.namespace.is_empty() {
        return Err("shim namespace cannot be empty".into());
    }
    match flags.action.as_str() {
        "delete" => Ok(delete::run(flags)?),
        "" => Ok(daemon::run(flags)?),
        other => Err(format!("action {other:?} is not known: it must be start or delete").into()),
    }
}
