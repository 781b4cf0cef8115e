//! The VMM that the shim has re-executed.

use std::collections::BTreeMap;
use std::fs::File;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use super::devices::{
    self, ControlConnector, HostSide, InterfaceHost, LaterThreads, SharedDirectory, VsockHost,
};
use super::{FAILURE, exit_status, report_panics_to, tuning, wake_on};
use crate::clock::monotonic_ns;
use crate::control::{
    Boot, CONSOLE_TAIL, Counters, Device, Event, FileRole, Interface, Request, Share, StopReason, VmmEnd,
};
use crate::devices::console::Console;
use crate::event_loop::{EventFlags, EventLoop, Handler};
use crate::jail::{self, Jail};
use crate::kvm;
use crate::outcome::Outcome;
use crate::vm::{RunningVm, Vm, VmConfig};

/// Builds and runs the virtual machine that [`Request::Boot`] on the control socket describes, and returns the exit
/// status of the process, which has to exit then. The process is jailed on the way: see [`jail`].
///
/// `control_fd` is the number of the descriptor at which the parent has left a [`VmmEnd`]; nothing in the process may
/// use that or any other one but the standard ones. The process has no other thread, and is the first of a pid
/// namespace ([`jail::in_new_pid_namespace`]).
pub fn run(control_fd: RawFd) -> i32 {
    let process_start_ns = monotonic_ns();
    tuning::use_one_arena();
    // SAFETY: nothing in the process uses any of them, as the documentation demands.
    if let Err(error) = unsafe { jail::close_all_but(control_fd) } {
        eprintln!("vmm: close_range: {error}");
        return FAILURE;
    }
    // SAFETY: the parent has opened the descriptor for this function alone, as its documentation demands.
    let control = unsafe { OwnedFd::from_raw_fd(control_fd) };
    let control = Arc::new(VmmEnd::from(control));
    if let Err(error) = rustix::io::fcntl_setfd(control.as_fd(), rustix::io::FdFlags::CLOEXEC) {
        eprintln!("vmm: control descriptor {control_fd}: {error}");
        return FAILURE;
    }
    let console = Console::default();
    let reason = match serve(&control, process_start_ns, &console) {
        Ok(reason) => reason,
        Err(message) => StopReason::Failed { message },
    };
    let status = exit_status(&reason);
    let stopped = Event::Stopped { reason, console: console.tail(CONSOLE_TAIL) };
    // The shim may be gone, which is why the VMM ends.
    let _ = control.send(&stopped, &[]);
    status
}

/// From the first message to the end of the virtual machine. An error is a message for the user.
fn serve(control: &Arc<VmmEnd>, process_start_ns: u64, console: &Console) -> Result<StopReason, String> {
    tuning::die_with_parent().map_err(|error| format!("PR_SET_PDEATHSIG: {error}"))?;
    jail::report_violations_to(control.as_fd()).map_err(|error| error.to_string())?;
    report_panics_to(Arc::clone(control));
    let (boot, mut files) = receive_boot(control)?;
    let config_received_ns = monotonic_ns();

    let kernel = files.take(FileRole::Kernel).ok_or("the message to boot comes without a kernel")?;
    let initramfs = files.take(FileRole::Initramfs).map(File::from);
    let vsock = files.take(FileRole::Vsock).map(|listener| VsockHost {
        guest_cid: boot.guest_cid,
        listener: listener.into(),
        connector: Box::new(ControlConnector(Arc::clone(control))),
    });
    let interfaces = take_interfaces(&boot.interfaces, &mut files)?;
    let share =
        files.take(FileRole::Share).ok_or("the message to boot comes without a directory to share")?;
    files.refuse_others()?;

    let event_loop = EventLoop::new().map_err(|error| format!("epoll: {error}"))?;
    // What lies outside the jail comes before it.
    let kvm = kvm::open().map_err(|error| error.to_string())?;
    let Jail { root, descriptor_directory, confinement } =
        jail::enter(share).map_err(|error| error.to_string())?;
    let shares = open_shares(boot.shares, &root, &descriptor_directory)?;
    let later_queue_pairs = boot.later_queue_pairs;
    let host = HostSide { shares, vsock, interfaces, later_queue_pairs };
    let config = VmConfig {
        vcpus: boot.vcpus,
        memory_mib: boot.memory_mib,
        kernel_parameters: boot.kernel_parameters,
        console_verbose: boot.console_verbose,
    };
    let devices = devices::build(host, &config, &event_loop, &confinement);
    let (devices, later_threads) = devices.map_err(|error| error.to_string())?;
    // The thread that serves files has them now.
    jail::drop_capabilities().map_err(|error| error.to_string())?;
    let vm = Vm::build(&config, &kvm, kernel.into(), initramfs.as_ref(), devices, console.clone());
    // The guest might reach whatever the process has open.
    drop((kvm, initramfs));
    let vm = vm.and_then(|vm| vm.start(&confinement)).map_err(|error| error.to_string())?;
    // The process exits when this function has returned, and takes the vCPUs along. Stopping them one by one would only
    // delay it, and takes a system call that the filter forbids.
    let vm = ManuallyDrop::new(Arc::new(vm));

    let mut timeline = vm.timeline();
    (timeline.process_start_ns, timeline.config_received_ns) = (process_start_ns, config_received_ns);
    control.send(&Event::Started(timeline), &[]).map_err(|error| error.to_string())?;
    // Nor are threads waited for that serve what the host holds up.
    let later_threads = ManuallyDrop::new(later_threads);
    wait(control, &vm, LaterThreads::clone(&later_threads), &event_loop)?;
    Ok(vm.stop_reason().ok_or("the event loop ended by itself")?)
}

/// Opens the directories to share in the VMM's root.
fn open_shares(
    shares: Vec<Share>,
    root: &OwnedFd,
    descriptor_directory: &OwnedFd,
) -> Result<Vec<SharedDirectory>, String> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = |Share { name, writers }| {
        let root = rustix::fs::openat(root, &name, flags, Mode::empty())
            .map_err(|error| format!("cannot open the directory {name:?} of the share: {error}"))?;
        let descriptor_directory =
            descriptor_directory.try_clone().map_err(|error| format!("dup of /proc/self/fd: {error}"))?;
        Ok(SharedDirectory { tag: name, root, descriptor_directory, writers })
    };
    shares.into_iter().map(open).collect()
}

/// The descriptors of a message to boot, by their role.
struct Files(BTreeMap<FileRole, OwnedFd>);

impl Files {
    fn take(&mut self, role: FileRole) -> Option<OwnedFd> {
        self.0.remove(&role)
    }

    /// Nothing may be left that nobody has taken.
    fn refuse_others(&self) -> Result<(), String> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(role) => Err(format!("the message to boot comes with a file of no use: {role:?}")),
        }
    }
}

fn take_interfaces(interfaces: &[Interface], files: &mut Files) -> Result<Vec<InterfaceHost>, String> {
    let mut taken = Vec::with_capacity(interfaces.len());
    for (number, &Interface { mac, mtu, queue_pairs }) in (0..).zip(interfaces) {
        let tap = |queue_pair| {
            files.take(FileRole::Tap { interface: number, queue_pair }).ok_or_else(|| {
                format!("network interface {number} comes without a tap for queue pair {queue_pair}")
            })
        };
        let taps = (0..queue_pairs).map(tap).collect::<Result<_, _>>()?;
        taken.push(InterfaceHost { mac, mtu, taps });
    }
    Ok(taken)
}

fn receive_boot(control: &VmmEnd) -> Result<(Boot, Files), String> {
    let message = control.receive().map_err(|error| error.to_string())?;
    let (request, descriptors) = message.ok_or("the control socket was closed before a message to boot")?;
    let Request::Boot(boot) = request else {
        return Err("the first message on the control socket has to be the one to boot".into());
    };
    if boot.files.len() != descriptors.len() {
        let (named, came) = (boot.files.len(), descriptors.len());
        return Err(format!("the message to boot names {named} files and comes with {came} descriptors"));
    }
    let files: BTreeMap<_, _> = boot.files.iter().copied().zip(descriptors).collect();
    if files.len() != boot.files.len() {
        return Err("the message to boot names a file twice".into());
    }
    Ok((boot, Files(files)))
}

/// Runs the event loop until the virtual machine has stopped.
fn wait(
    control: &Arc<VmmEnd>,
    vm: &Arc<RunningVm>,
    later_threads: LaterThreads,
    event_loop: &EventLoop,
) -> Result<(), String> {
    let outcome = vm.outcome();
    let requests = Requests {
        control: Arc::clone(control),
        vm: Arc::clone(vm),
        later_threads,
        outcome: Arc::clone(&outcome),
    };
    let epoll = |error| format!("epoll: {error}");
    let _control = event_loop.add(control.as_fd(), EventFlags::IN, Arc::new(requests)).map_err(epoll)?;
    let _outcome = wake_on(event_loop, &outcome).map_err(epoll)?;
    event_loop.run(|| outcome.get().is_some()).map_err(epoll)
}

/// Answers the shim while the virtual machine runs.
struct Requests {
    control: Arc<VmmEnd>,
    vm: Arc<RunningVm>,
    later_threads: LaterThreads,
    outcome: Arc<Outcome>,
}

impl Handler for Requests {
    fn ready(&self, _ready: EventFlags) {
        match self.control.receive() {
            Ok(Some((Request::Counters, _))) => self.send_counters(),
            Ok(Some((Request::Attach(device), descriptors))) => self.attach(device, descriptors),
            Ok(Some((Request::Detach { slot }, _))) => self.detach(slot),
            // A closed socket is the end of the shim, and with it of the VMM.
            Ok(Some((Request::Stop, _)) | None) => self.outcome.set(StopReason::Stopped),
            Ok(Some((Request::Boot(_), _))) => self.fail("a second message to boot"),
            Err(error) => self.fail(&error.to_string()),
        }
    }
}

impl Requests {
    fn send_counters(&self) {
        self.answer(&Event::Counters(Counters { exits: self.vm.counters().by_reason() }));
    }

    fn attach(&self, device: Device, descriptors: Vec<OwnedFd>) {
        let made = self.later_threads.make(device, descriptors).map_err(|error| error.to_string());
        let attached = made.and_then(|device| self.vm.attach(device).map_err(|error| error.to_string()));
        self.answer(&match attached {
            Ok(place) => Event::Attached(place),
            Err(message) => Event::Refused { message },
        });
    }

    fn detach(&self, slot: u8) {
        self.answer(&match self.vm.detach(slot) {
            Ok(()) => Event::Detached,
            Err(error) => Event::Refused { message: error.to_string() },
        });
    }

    fn answer(&self, event: &Event) {
        if let Err(error) = self.control.send(event, &[]) {
            self.fail(&error.to_string());
        }
    }

    fn fail(&self, message: &str) {
        self.outcome.set(StopReason::Failed { message: message.to_owned() });
    }
}
