//! The VMM on an engineer's terminal.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::devices::{self, HostSide, SharedDirectory, VsockHost};
use super::{FAILURE, exit_status, tuning, wake_on};
use crate::clock::monotonic_ns;
use crate::control::{StopReason, Timeline, Writers};
use crate::devices::console::Console;
use crate::devices::virtio::vsock::UnixSocketConnector;
use crate::event_loop::EventLoop;
use crate::fs::FsConfig;
use crate::jail::Confinement;
use crate::kvm;
use crate::vm::{RunningVm, Vm, VmConfig};

/// The guest's vsock address. Every VM has a vsock of its own, so that it may be the same for all.
const GUEST_CID: u32 = 3;

/// The tag of the shared directory.
const SHARE_TAG: &str = "share";

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
    /// The directory that virtio-fs serves under the tag `share`.
    pub share: Option<PathBuf>,
    /// Where to make the Unix socket for connections to the guest's vsock ports. The guest's connections to port `n`
    /// of the host go to this path with `_n` appended.
    pub vsock: Option<PathBuf>,
    /// Kernel parameters, added at the end of the VMM's own.
    pub kernel_parameters: String,
    /// Whether the guest kernel writes its log to the console as it goes.
    pub verbose: bool,
}

/// Runs a virtual machine with its console on standard error, without a jail, and returns the exit status: not zero where it could
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
    let shares = options.share.as_deref().map(open_share).transpose()?.into_iter().collect();
    let socket = options.vsock.as_deref().map(SocketFile::bind).transpose()?;
    let vsock = socket.as_ref().map(SocketFile::host).transpose()?;
    let host = HostSide { shares, vsock, ..HostSide::default() };
    let config = VmConfig {
        vcpus: options.vcpus,
        memory_mib: options.memory_mib,
        kernel_parameters: options.kernel_parameters.clone(),
        console_verbose: options.verbose,
    };
    let devices = devices::build(host, &config, &event_loop, &Confinement::none());
    let (devices, _) = devices.map_err(|error| error.to_string())?;
    let kvm = kvm::open().map_err(|error| error.to_string())?;
    let vm = Vm::build(&config, &kvm, kernel, initramfs.as_ref(), devices, Console::echoing());
    let mut vm = vm.and_then(|vm| vm.start(&Confinement::none())).map_err(|error| error.to_string())?;

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

fn open_share(path: &Path) -> Result<SharedDirectory, String> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(path, flags, Mode::empty())
        .map_err(|error| format!("cannot open the shared directory {}: {error}", path.display()))?;
    let descriptor_directory = FsConfig::open_descriptor_directory()
        .map_err(|error| format!("cannot open /proc/self/fd: {error}"))?;
    let writers = Writers::GuestAndHost;
    Ok(SharedDirectory { tag: SHARE_TAG.into(), root, descriptor_directory, writers })
}

/// A listening Unix socket whose file goes when the VMM does.
struct SocketFile {
    listener: UnixListener,
    path: PathBuf,
}

impl SocketFile {
    fn bind(path: &Path) -> Result<Self, String> {
        let listener = UnixListener::bind(path).map_err(|error| match error.kind() {
            ErrorKind::AddrInUse => {
                format!("{} exists: another VMM uses it, or it can be removed", path.display())
            }
            _ => format!("cannot make the vsock socket {}: {error}", path.display()),
        })?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// The host's side of the vsock device.
    fn host(&self) -> Result<VsockHost, String> {
        let listener =
            self.listener.try_clone().map_err(|error| format!("dup of the vsock socket: {error}"))?;
        let connector = Box::new(UnixSocketConnector::new(&self.path));
        Ok(VsockHost { guest_cid: GUEST_CID, listener, connector })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Somebody else may have removed it.
        let _ = std::fs::remove_file(&self.path);
    }
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
