//! Which devices a container may use: `linux.resources.devices`, as a BPF program on its cgroup.

mod program;
mod rules;

use std::os::fd::AsFd;

use oci_spec::runtime::LinuxDeviceCgroup;

use self::rules::Rule;
use crate::error::{Action, Result, SpecError};
use crate::sys::bpf;

/// The program for `rules`.
pub(super) fn instructions(
    rules: &[LinuxDeviceCgroup],
) -> std::result::Result<Vec<bpf::Instruction>, SpecError> {
    program::compile(&Rule::all_from_spec(rules)?)
}

/// Puts a program for `rules` on `cgroup`, which keeps it as long as it lives.
pub(super) fn confine(cgroup: impl AsFd, rules: &[LinuxDeviceCgroup]) -> Result<()> {
    let program = bpf::load_device_program(&instructions(rules)?)
        .action(|| "load the program for linux.resources.devices".to_owned())?;
    bpf::attach_device_program(cgroup.as_fd(), program.as_fd())
        .action(|| "attach the program for linux.resources.devices".to_owned())
}
