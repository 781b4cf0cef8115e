//! `linux.seccomp`: which system calls a process may make, as a filter of the kernel's classic BPF.

#[cfg(test)]
mod machine;
mod policy;
mod program;
#[cfg(test)]
mod reference;
mod table;

use std::io;

use libc::sock_filter;
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompFilterFlag};

use crate::error::SpecError;
use crate::sys;

/// A compiled filter.
#[derive(Clone, Debug)]
pub(crate) struct Filter {
    instructions: Vec<sock_filter>,
    /// `SECCOMP_FILTER_FLAG_*`.
    flags: libc::c_ulong,
}

/// Compiles the object of the spec.
pub(crate) fn compile(seccomp: &LinuxSeccomp) -> Result<Filter, SpecError> {
    let mut flags = 0;
    for flag in seccomp.flags().iter().flatten() {
        flags |= filter_flag(*flag)?;
    }
    let instructions = program::assemble(&policy::read(seccomp)?)?;
    Ok(Filter { instructions, flags })
}

fn filter_flag(flag: LinuxSeccompFilterFlag) -> Result<libc::c_ulong, SpecError> {
    match flag {
        LinuxSeccompFilterFlag::SeccompFilterFlagTsync => Ok(libc::SECCOMP_FILTER_FLAG_TSYNC),
        LinuxSeccompFilterFlag::SeccompFilterFlagLog => Ok(libc::SECCOMP_FILTER_FLAG_LOG),
        LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => Ok(libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW),
        LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => Err(SpecError::not_supported(
            "linux.seccomp.flags",
            "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV is for SCMP_ACT_NOTIFY, whose listener is outside the guest",
        )),
    }
}

/// Installs a filter for this process and all that come of it.
pub(crate) fn install(filter: &Filter) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(filter.instructions.len()).map_err(io::Error::other)?,
        filter: filter.instructions.as_ptr().cast_mut(),
    };
    // SAFETY: `program` points at as many instructions as it says, which live through the call and are only read.
    let result = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, filter.flags, &raw const program)
    };
    sys::checked(result).map(drop)
}
