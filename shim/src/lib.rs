//! `containerd-shim-kata-v2`: the shim by which containerd runs each pod in a microVM of its own.
//!
//! One binary, three parts: the shim as containerd calls it, the VMM as which the shim executes itself again, and,
//! under the name `saya`, a command for people.

mod bootstrap;
mod cgroup;
mod cli;
mod clock;
mod config;
mod container;
mod daemon;
mod events;
mod foreign_text;
#[doc(hidden)]
pub mod fuzzing;
mod identifier;
mod io;
mod mount;
mod network;
mod pod;
mod readiness;
mod rights;
mod sandbox_service;
mod sizing;
mod spec;
mod task_service;

use std::env;
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

/// The name under which the binary is a command for people.
const COMMAND: &str = "saya";

/// The program.
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().collect();
    let name = arguments.first().and_then(|name| Path::new(name).file_name()?.to_str()).unwrap_or_default();
    let rest = arguments.get(1..).unwrap_or_default();
    if name == COMMAND {
        return cli::run();
    }
    if let Some(control) = cli::vmm_descriptor(rest) {
        return cli::run_vmm(control);
    }
    let done = bootstrap::Flags::parse(rest.iter().cloned())
        .map_err(Into::into)
        .and_then(|flags| bootstrap::run(&flags));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("containerd-shim-kata-v2: {error}");
            ExitCode::FAILURE
        }
    }
}
