//! The threads that run vCPUs.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::thread::JoinHandleExt;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;

use kvm_bindings::kvm_run;
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::cpuid::Supported;
use super::{CpuidError, ExitCounters, Topology, msr, registers};
use crate::bus::Bus;
use crate::clock::monotonic_ns;
use crate::control::StopReason;
use crate::jail::{Confinement, ConfinementError, Role};
use crate::outcome::Outcome;

/// The stack of a vCPU thread. It handles one exit at a time.
const STACK: usize = 128 * 1024;

/// Why a vCPU cannot be or cannot run.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// KVM refused something.
    #[error("vCPU {id}: {step}: {source}")]
    Kvm {
        /// The vCPU.
        id: u32,
        /// What was asked of KVM.
        step: &'static str,
        /// Its answer.
        source: kvm_ioctls::Error,
    },
    /// CPUID.
    #[error("vCPU {id}: {source}")]
    Cpuid {
        /// The vCPU.
        id: u32,
        /// Why not.
        source: CpuidError,
    },
    /// The host refused something.
    #[error("vCPU {id}: {step}: {source}")]
    Host {
        /// The vCPU.
        id: u32,
        /// What was asked of the host.
        step: &'static str,
        /// Its answer.
        source: io::Error,
    },
}

/// What all vCPUs of a VM share.
pub struct Machine {
    /// Devices in I/O port space.
    pub ports: Bus,
    /// Devices in memory space.
    pub memory: Bus,
    /// Exits by reason.
    pub counters: ExitCounters,
    /// Why the VM stops.
    pub outcome: Arc<Outcome>,
    /// Set before vCPUs are interrupted for good.
    pub stopping: AtomicBool,
}

/// How a vCPU's thread starts: confined to its role, and only when all others are.
pub struct StartSignal {
    /// What the thread calls first.
    pub confinement: Confinement,
    /// Told how that went.
    pub confined: mpsc::Sender<Result<(), ConfinementError>>,
    /// Tells when to run the guest; closed without a word, it means never.
    pub go: mpsc::Receiver<()>,
    /// Told the time of `CLOCK_MONOTONIC` in nanoseconds at which the thread is about to execute its first instruction.
    pub started: Option<mpsc::SyncSender<u64>>,
}

impl StartSignal {
    /// Confines the thread and waits. False: the machine does not start.
    fn wait(self) -> bool {
        let Self { confinement, confined, go, started } = self;
        let entered = confinement.enter(Role::Vcpu);
        let is_confined = entered.is_ok();
        // Who has asked may be gone, which `go` tells as well.
        let _ = confined.send(entered);
        if !is_confined || go.recv().is_err() {
            return false;
        }
        if let Some(started) = started {
            let _ = started.send(monotonic_ns());
        }
        true
    }
}

/// A vCPU that does not run yet.
#[derive(Debug)]
pub struct Vcpu {
    id: u32,
    fd: VcpuFd,
    immediate_exit: ImmediateExit,
}

impl Vcpu {
    /// Makes the vCPU with the APIC identifier `id`. `run_size` is the size of its `kvm_run` mapping.
    ///
    /// # Errors
    /// KVM's refusal.
    pub fn new(vm: &VmFd, id: u32, run_size: usize) -> Result<Self, VcpuError> {
        let kvm = |step| move |source| VcpuError::Kvm { id, step, source };
        let fd = vm.create_vcpu(id.into()).map_err(kvm("KVM_CREATE_VCPU"))?;
        let immediate_exit = ImmediateExit::map(fd.as_raw_fd(), run_size);
        let immediate_exit =
            immediate_exit.map_err(|source| VcpuError::Host { id, step: "mmap of kvm_run", source })?;
        Ok(Self { id, fd, immediate_exit })
    }

    /// The TSC's frequency in kHz.
    ///
    /// # Errors
    /// KVM's refusal.
    pub fn tsc_khz(&self) -> Result<u32, VcpuError> {
        let id = self.id;
        self.fd.get_tsc_khz().map_err(|source| VcpuError::Kvm { id, step: "KVM_GET_TSC_KHZ", source })
    }

    /// Gives the vCPU its CPUID and what a firmware would have set.
    ///
    /// # Errors
    /// KVM's refusal.
    pub fn configure(&self, supported: &Supported, topology: Topology) -> Result<(), VcpuError> {
        let id = self.id;
        let kvm = |step| move |source| VcpuError::Kvm { id, step, source };
        let cpuid = supported.for_vcpu(id, topology).map_err(|source| VcpuError::Cpuid { id, source })?;
        self.fd.set_cpuid2(&cpuid).map_err(kvm("KVM_SET_CPUID2"))?;
        msr::set(&self.fd).map_err(kvm("KVM_SET_MSRS"))?;
        registers::set_local_apic(&self.fd).map_err(kvm("KVM_SET_LAPIC"))
    }

    /// Points the vCPU, which is the first, at the kernel's PVH entry. The others wait for the kernel to wake them.
    ///
    /// # Errors
    /// KVM's refusal.
    pub fn set_entry(&self, entry: u64) -> Result<(), VcpuError> {
        let id = self.id;
        registers::set_entry(&self.fd, entry).map_err(|source| VcpuError::Kvm {
            id,
            step: "KVM_SET_SREGS",
            source,
        })
    }

    /// Runs the vCPU on a thread of its own, from `start` until the VM stops.
    ///
    /// # Errors
    /// The host's refusal of a thread.
    pub fn spawn(self, machine: Arc<Machine>, start: StartSignal) -> Result<VcpuThread, VcpuError> {
        let Self { id, mut fd, immediate_exit } = self;
        let body = move || {
            if start.wait() {
                run(id, &mut fd, &machine);
            }
        };
        let builder = std::thread::Builder::new().name(format!("vcpu{id}")).stack_size(STACK);
        let thread = builder.spawn(body).map_err(|source| VcpuError::Host { id, step: "thread", source })?;
        Ok(VcpuThread { thread, immediate_exit })
    }
}

/// A running vCPU.
pub struct VcpuThread {
    thread: JoinHandle<()>,
    immediate_exit: ImmediateExit,
}

impl VcpuThread {
    /// Makes the vCPU leave the guest, or not enter it again. It then sees [`Machine::stopping`].
    pub fn interrupt(&self) {
        // The order matters: a vCPU that is not yet in KVM_RUN finds the flag, one that is gets the signal.
        self.immediate_exit.set();
        // SAFETY: the thread has not been joined, so that its identifier is valid; the signal has a handler.
        unsafe { libc::pthread_kill(self.thread.as_pthread_t(), interrupt_signal()) };
    }

    /// Waits for the thread's end.
    pub fn join(self) {
        // A panic has been printed where it happened.
        let _ = self.thread.join();
    }
}

/// The signal that interrupts `KVM_RUN`.
fn interrupt_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// Gives the signal of [`VcpuThread::interrupt`] a handler that does nothing: to interrupt a system call is enough.
///
/// # Errors
/// The host's refusal.
pub(crate) fn handle_interrupt_signal() -> Result<(), io::Error> {
    vmm_sys_util::signal::register_signal_handler(interrupt_signal(), ignore).map_err(io::Error::from)
}

/// `kvm_run.immediate_exit` of one vCPU, by a mapping of its own, so that any thread may set it at any time.
#[derive(Debug)]
struct ImmediateExit {
    mapping: NonNull<kvm_run>,
    length: usize,
}

// SAFETY: the mapping belongs to no thread, and the one field that is touched is touched atomically.
unsafe impl Send for ImmediateExit {}
// SAFETY: as above.
unsafe impl Sync for ImmediateExit {}

impl ImmediateExit {
    fn map(vcpu: RawFd, length: usize) -> io::Result<Self> {
        // SAFETY: the caller's vCPU is open for the length of this call.
        let vcpu = unsafe { BorrowedFd::borrow_raw(vcpu) };
        let (access, shared) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a new mapping at an address of the kernel's choice touches nobody's memory.
        let mapping = unsafe { mmap(ptr::null_mut(), length, access, shared, vcpu, 0) }?;
        let mapping = NonNull::new(mapping.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { mapping, length })
    }

    fn set(&self) {
        // SAFETY: the mapping holds a kvm_run and lives as long as `self`.
        let flag = unsafe { &raw mut (*self.mapping.as_ptr()).immediate_exit };
        // SAFETY: `flag` is a valid byte, and nobody in this process reads or writes it but here, atomically.
        let flag = unsafe { AtomicU8::from_ptr(flag) };
        flag.store(1, Ordering::SeqCst);
    }
}

impl Drop for ImmediateExit {
    fn drop(&mut self) {
        // SAFETY: nobody else knows the mapping. Failing to unmap it would leak it, no more.
        let _ = unsafe { munmap(self.mapping.as_ptr().cast(), self.length) };
    }
}

/// Runs the vCPU until the VM stops.
fn run(id: u32, vcpu: &mut VcpuFd, machine: &Machine) {
    while !machine.stopping.load(Ordering::SeqCst) {
        if let Some(reason) = run_once(id, vcpu, machine) {
            machine.outcome.set(reason);
            return;
        }
    }
}

/// Runs the vCPU until its next exit. An answer stops the VM.
fn run_once(id: u32, vcpu: &mut VcpuFd, machine: &Machine) -> Option<StopReason> {
    let exit = vcpu.run();
    machine.counters.count(&exit);
    match exit {
        Ok(VcpuExit::IoIn(port, data)) => machine.ports.read(port.into(), data),
        Ok(VcpuExit::IoOut(port, data)) => return machine.ports.write(port.into(), data),
        Ok(VcpuExit::MmioRead(address, data)) => machine.memory.read(address, data),
        Ok(VcpuExit::MmioWrite(address, data)) => return machine.memory.write(address, data),
        Ok(VcpuExit::Intr) => {}
        Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {}
        // A triple fault: the guest's way to reset. Whether it panicked before its console tells.
        Ok(VcpuExit::Shutdown) => return Some(StopReason::Rebooted),
        Ok(exit) => {
            let message = describe(&exit);
            return Some(failed(id, vcpu, &message));
        }
        Err(error) => return Some(failed(id, vcpu, &format!("KVM_RUN: {error}"))),
    }
    None
}

fn describe(exit: &VcpuExit<'_>) -> String {
    match exit {
        VcpuExit::FailEntry(reason, cpu) => {
            format!("the processor refused to enter the guest: hardware reason {reason:#x} on host CPU {cpu}")
        }
        VcpuExit::InternalError => "KVM could not emulate what the guest did".into(),
        VcpuExit::Hlt => "the guest halted without an interrupt controller".into(),
        VcpuExit::SystemEvent(kind, _) => format!("KVM system event {kind}"),
        VcpuExit::MemoryFault { gpa, size, .. } => {
            format!("memory fault at {gpa:#x}, {size} bytes")
        }
        other => format!("unexpected exit {other:?}"),
    }
}

fn failed(id: u32, vcpu: &VcpuFd, what: &str) -> StopReason {
    let place = vcpu.get_regs().map(|regs| format!(" (at {:#x})", regs.rip)).unwrap_or_default();
    StopReason::Failed { message: format!("vCPU {id}: {what}{place}") }
}
