//! The VMM on an engineer's terminal.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::{FAILURE, devices, exit_status, tuning, wake_on};
use crate::clock::monotonic_ns;
use crate::control::{StopReason, Timeline};
use crate::devices::console::Console;
use crate::event_loop::EventLoop;
use crate::vm::{RunningVm, Vm, VmConfig};

/// What the command line says.
#[derive(Debug, Clone)]
pub struct ForegroundOptions {
    /// The guest kernel, an uncompressed `vmlinux`.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initramfs: Option<PathBuf>,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Kernel parameters, added at the end of the VMM's own.
    pub kernel_parameters: String,
    /// Whether the guest kernel writes its log to the console as it goes.
    pub verbose: bool,
}

/// Runs a virtual machine with its console on standard error, and returns the exit status: not zero where it could
/// not be built or its kernel panicked, with the reason on standard error.
pub fn foreground(options: &ForegroundOptions) -> i32 {
    let process_start_ns = monotonic_ns();
    tuning::use_one_arena();
    match run(options, process_start_ns) {
        Ok(reason) => {
            eprintln!("vmm: {}", describe(&reason));
            exit_status(&reason)
        }
        Err(message) => {
            eprintln!("vmm: {message}");
            FAILURE
        }
    }
}

fn run(options: &ForegroundOptions, process_start_ns: u64) -> Result<StopReason, String> {
    let kernel = open("guest kernel", &options.kernel)?;
    let initramfs = options.initramfs.as_deref().map(|path| open("initramfs", path)).transpose()?;
    let event_loop = EventLoop::new().map_err(|error| format!("epoll: {error}"))?;
    let devices = devices::build(&event_loop);
    let config = VmConfig {
        vcpus: options.vcpus,
        memory_mib: options.memory_mib,
        kernel_parameters: options.kernel_parameters.clone(),
        console_verbose: options.verbose,
    };
    let vm = Vm::build(&config, kernel, initramfs.as_ref(), devices, Console::echoing());
    let mut vm = vm.and_then(Vm::start).map_err(|error| error.to_string())?;

    let outcome = vm.outcome();
    let epoll = |error| format!("epoll: {error}");
    let _outcome = wake_on(&event_loop, &outcome).map_err(epoll)?;
    event_loop.run(|| outcome.get().is_some()).map_err(epoll)?;
    vm.stop();
    report(&vm, process_start_ns);
    vm.stop_reason().ok_or_else(|| "the event loop ended by itself".into())
}

fn open(what: &str, path: &Path) -> Result<File, String> {
    File::open(path).map_err(|error| format!("cannot open the {what} {}: {error}", path.display()))
}

fn describe(reason: &StopReason) -> String {
    match reason {
        StopReason::PoweredOff => "the guest powered off".into(),
        StopReason::Rebooted => "the guest asked for a reboot".into(),
        StopReason::Stopped => "stopped".into(),
        StopReason::Panicked { message } => format!("the guest kernel panicked: {message}"),
        StopReason::Failed { message } => message.clone(),
    }
}

/// Prints what an engineer wants to know of a run.
fn report(vm: &RunningVm, process_start_ns: u64) {
    let Timeline { memory_ready_ns, kernel_loaded_ns, first_instruction_ns, .. } = vm.timeline();
    let since = |ns: u64| ns.saturating_sub(process_start_ns) / 1000;
    eprintln!(
        "vmm: memory ready {} us, kernel loaded {} us, first instruction {} us, end {} us",
        since(memory_ready_ns),
        since(kernel_loaded_ns),
        since(first_instruction_ns),
        since(monotonic_ns())
    );
    let exits: Vec<_> = vm.counters().by_reason().iter().map(|(name, n)| format!("{name} {n}")).collect();
    eprintln!("vmm: exits: {}", exits.join(", "));
}
