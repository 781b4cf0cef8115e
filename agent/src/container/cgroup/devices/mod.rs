//! Which devices a container may use: `linux.resources.devices`, as a BPF program on its cgroup.

mod program;
mod rules;

use std::os::fd::{AsFd, OwnedFd};

use oci_spec::runtime::LinuxDeviceCgroup;

use self::rules::Rule;
use crate::error::{Action, Result, SpecError};
use crate::sys::bpf;

/// The program that is on a cgroup now.
#[derive(Debug)]
pub(crate) struct DeviceFilter {
    program: OwnedFd,
}

/// The program for `rules`.
pub(super) fn instructions(
    rules: &[LinuxDeviceCgroup],
) -> std::result::Result<Vec<bpf::Instruction>, SpecError> {
    program::compile(&Rule::all_from_spec(rules)?)
}

impl DeviceFilter {
    /// Puts a program for `rules` on `cgroup`, in the place of `earlier` if there is one.
    pub(crate) fn attach(
        cgroup: impl AsFd,
        rules: &[LinuxDeviceCgroup],
        earlier: Option<&Self>,
    ) -> Result<Self> {
        let program = bpf::load_device_program(&instructions(rules)?)
            .action(|| "load the program for linux.resources.devices".to_owned())?;
        let earlier = earlier.map(|earlier| earlier.program.as_fd());
        bpf::attach_device_program(cgroup.as_fd(), program.as_fd(), earlier)
            .action(|| "attach the program for linux.resources.devices".to_owned())?;
        Ok(Self { program })
    }
}
