//! The binary as the VMM, and as the command `saya` for people.

mod check;

use std::ffi::{OsStr, OsString};
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use saya_vmm::process::ForegroundOptions;

use crate::pod::process::{CONTROL_ARGUMENT, VMM_ARGUMENT};

/// Saya: a microVM for each pod.
#[derive(Debug, Parser)]
#[command(name = "saya", version)]
struct Command {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Says whether this host can run Saya, and what to do where it cannot.
    Check,
    /// Runs a virtual machine with its console on standard error.
    Vmm(VmmArguments),
}

#[derive(Debug, Args)]
struct VmmArguments {
    /// The guest kernel, an uncompressed vmlinux.
    #[arg(long)]
    kernel: PathBuf,
    /// The initramfs.
    #[arg(long)]
    initramfs: Option<PathBuf>,
    /// Memory in MiB.
    #[arg(long, default_value_t = 256)]
    memory_mib: u64,
    /// Virtual CPUs.
    #[arg(long, default_value_t = 1)]
    vcpus: u32,
    /// The directory that virtio-fs serves under the tag "share".
    #[arg(long)]
    share: Option<PathBuf>,
    /// Where to make the Unix socket for connections to the guest's vsock ports (CONNECT <port>). The guest's own
    /// connections to port n of the host go to this path with _n appended.
    #[arg(long)]
    vsock: Option<PathBuf>,
    /// Kernel parameters, added at the end of the built-in ones.
    #[arg(long, default_value = "")]
    cmdline_extra: String,
    /// The guest kernel writes its log to the console as it goes.
    #[arg(long)]
    verbose: bool,
}

/// Runs the command `saya`.
pub(crate) fn run() -> ExitCode {
    match Command::parse().action {
        Action::Check => check::run(),
        Action::Vmm(arguments) => status(saya_vmm::process::foreground(&ForegroundOptions {
            kernel: arguments.kernel,
            initramfs: arguments.initramfs,
            memory_mib: arguments.memory_mib,
            vcpus: arguments.vcpus,
            share: arguments.share,
            vsock: arguments.vsock,
            kernel_parameters: arguments.cmdline_extra,
            verbose: arguments.verbose,
        })),
    }
}

/// The control socket's descriptor, where the arguments make this process a VMM for a shim.
pub(crate) fn vmm_descriptor(arguments: &[OsString]) -> Option<RawFd> {
    let [action, option, number] = arguments else { return None };
    let is_vmm = action == OsStr::new(VMM_ARGUMENT) && option == OsStr::new(CONTROL_ARGUMENT);
    number.to_str().filter(|_| is_vmm)?.parse().ok()
}

/// Runs as the VMM of the shim that holds the other end of the control socket.
pub(crate) fn run_vmm(control: RawFd) -> ExitCode {
    status(saya_vmm::process::run(control))
}

fn status(status: i32) -> ExitCode {
    ExitCode::from(u8::try_from(status).unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shims_own_arguments_make_a_vmm_and_others_do_not() {
        let arguments = |texts: &[&str]| texts.iter().map(OsString::from).collect::<Vec<_>>();
        assert_eq!(vmm_descriptor(&arguments(&["vmm", "--control-fd", "5"])), Some(5));
        assert_eq!(vmm_descriptor(&arguments(&["-id", "vmm", "start"])), None);
        assert_eq!(vmm_descriptor(&arguments(&["vmm", "--control-fd", "x"])), None);
    }
}
