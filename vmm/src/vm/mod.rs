//! A virtual machine: built from its parts, then run until it stops.

mod hot_plug;
mod interrupts;
mod wiring;

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{Builder, ScopedJoinHandle};

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

pub use self::hot_plug::HotPlugError;
use self::hot_plug::{HotPlug, SLOTS};
use self::interrupts::KvmRouter;
use self::wiring::{Place, Wiring, WiringError};
use crate::boot::{self, BootError, CommandLine, CommandLineError, KernelError, KernelImage, Processors};
use crate::bus::{Bus, Overlap};
use crate::clock::monotonic_ns;
use crate::control::{PluggedDevice, StopReason, Timeline};
use crate::cpu::cpuid::Supported;
use crate::cpu::thread::{Machine, StartSignal, handle_interrupt_signal};
use crate::cpu::{CpuidError, ExitCounters, Topology, Vcpu, VcpuError, VcpuThread};
use crate::devices::clock::{CLOCK_PORT, CLOCK_PORTS, Clock};
use crate::devices::console::{Console, SERIAL_PORT, SERIAL_PORTS, SerialPort};
use crate::devices::io_apic::{IO_APIC_SIZE, IoApic};
use crate::devices::power::{KEYBOARD_COMMAND_PORT, KeyboardController, POWER_PORT, Power};
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::mmio::{MmioTransport, REGISTER_FILE_SIZE, RegisterFile, RegisterMemory};
use crate::jail::{Confinement, Role};
use crate::kvm::{self, KvmError};
use crate::layout::{FIRST_INTERRUPT, IO_APIC, KVM_IDENTITY_MAP, KVM_TSS, LAST_INTERRUPT, VIRTIO_MMIO_BASE};
use crate::memory::{self, GuestMemory, MemoryError};
use crate::outcome::Outcome;

/// What the virtual machine is to be.
#[derive(Debug, Clone)]
pub struct VmConfig {
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Kernel parameters, added at the end of the VMM's own.
    pub kernel_parameters: String,
    /// Whether the guest kernel writes its log to the console as it goes.
    pub console_verbose: bool,
}

/// Why a virtual machine could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The guest kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The kernel command line.
    #[error(transparent)]
    CommandLine(#[from] CommandLineError),
    /// Kernel, initramfs or tables.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// KVM is of no use.
    #[error(transparent)]
    Unusable(#[from] KvmError),
    /// KVM refused something.
    #[error("{step}: {source}")]
    Kvm {
        /// What was asked of KVM.
        step: &'static str,
        /// Its answer.
        source: kvm_ioctls::Error,
    },
    /// CPUID.
    #[error(transparent)]
    Cpuid(#[from] CpuidError),
    /// A vCPU.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// Two devices at one address.
    #[error(transparent)]
    Overlap(#[from] Overlap),
    /// More devices than there are interrupts.
    #[error("{count} virtio devices are too many: there are interrupts for {}", LAST_INTERRUPT - FIRST_INTERRUPT)]
    TooManyDevices {
        /// How many were asked for.
        count: usize,
    },
    /// The host refused something.
    #[error("{step}: {source}")]
    Host {
        /// What was asked of the host.
        step: &'static str,
        /// Its answer.
        source: io::Error,
    },
}

/// A virtual machine that is built and does not run yet.
pub struct Vm {
    machine: Arc<Machine>,
    vcpus: Vec<Vcpu>,
    console: Console,
    timeline: Timeline,
    hot_plug: HotPlug,
    /// Held as long as its vCPUs run.
    vm: Arc<VmFd>,
}

/// A virtual machine that runs. Dropping it stops it.
pub struct RunningVm {
    machine: Arc<Machine>,
    threads: Vec<VcpuThread>,
    console: Console,
    timeline: Timeline,
    hot_plug: HotPlug,
    _vm: Arc<VmFd>,
}

fn kvm_error(step: &'static str) -> impl Fn(kvm_ioctls::Error) -> BuildError {
    move |source| BuildError::Kvm { step, source }
}

fn host_error(step: &'static str) -> impl Fn(io::Error) -> BuildError {
    move |source| BuildError::Host { step, source }
}

impl Vm {
    /// Builds a virtual machine with the given virtio devices.
    ///
    /// # Errors
    /// Whatever makes it impossible, named with its remedy.
    pub fn build(
        config: &VmConfig,
        kvm: &Kvm,
        kernel: File,
        initramfs: Option<&File>,
        devices: Vec<Box<dyn VirtioDevice>>,
        console: Console,
    ) -> Result<Self, BuildError> {
        let command_line = command_line(config, devices.len())?;
        let processors = Processors { vcpus: config.vcpus, io_apic_inputs: io_apic_inputs(devices.len())? };
        let kernel = KernelImage::open(kernel)?;
        let memory = memory::allocate(config.memory_mib)?;
        kvm::check_vcpus(config.vcpus, kvm)?;
        let mut timeline = Timeline::default();

        // The kernel's bytes are copied and memory is made ready for it while KVM makes the machine.
        let (loaded, prepared, built) = std::thread::scope(|scope| {
            let (kernel, memory, command_line) = (&kernel, &memory, &command_line);
            let loading = Builder::new().name("loader".into()).spawn_scoped(scope, move || {
                let loaded = boot::load(memory, kernel, initramfs, command_line, processors);
                (loaded, monotonic_ns())
            });
            let preparing = Builder::new().name("memory".into());
            let preparing = preparing.spawn_scoped(scope, move || boot::prepare(memory, kernel));
            let built = build_machine(processors, kvm, memory, devices, &console);
            (loading.map(ScopedJoinHandle::join), preparing.map(ScopedJoinHandle::join), built)
        });
        let (loaded, kernel_loaded_ns) = joined(loaded)?;
        joined(prepared)?;
        let loaded = loaded?;
        let Built { vm, machine, hot_plug, vcpus, memory_ready_ns } = built?;
        timeline.memory_ready_ns = memory_ready_ns;
        timeline.kernel_loaded_ns = kernel_loaded_ns;
        if let Some(first) = vcpus.first() {
            first.set_entry(loaded.entry)?;
        }
        Ok(Self { machine: Arc::new(machine), vcpus, console, timeline, hot_plug, vm })
    }

    /// What tells that the virtual machine has stopped.
    pub fn outcome(&self) -> Arc<Outcome> {
        Arc::clone(&self.machine.outcome)
    }

    /// Starts the vCPUs, when they and the calling thread are confined to their roles. When it returns the first one is
    /// about to execute its first instruction.
    ///
    /// # Errors
    /// The host's refusal of a thread.
    pub fn start(self, confinement: &Confinement) -> Result<RunningVm, BuildError> {
        handle_interrupt_signal().map_err(host_error("signal handler"))?;
        let Self { machine, vcpus, console, timeline, hot_plug, vm } = self;
        let mut running = RunningVm { machine, threads: Vec::new(), console, timeline, hot_plug, _vm: vm };
        let gone = |_| BuildError::Host { step: "vCPU thread", source: io::ErrorKind::BrokenPipe.into() };
        let (report, confined) = mpsc::channel();
        let (report_start, started) = mpsc::sync_channel(1);
        let mut report_start = Some(report_start);
        let mut signals = Vec::new();
        for vcpu in vcpus {
            let (signal, go) = mpsc::sync_channel(1);
            let start = StartSignal {
                confinement: confinement.clone(),
                confined: report.clone(),
                go,
                started: report_start.take(),
            };
            running.threads.push(vcpu.spawn(Arc::clone(&running.machine), start)?);
            signals.push(signal);
        }
        drop(report);
        for _ in &signals {
            confined.recv().map_err(gone)?.map_err(io::Error::from).map_err(host_error("vCPU thread"))?;
        }
        confinement.enter(Role::Main).map_err(io::Error::from).map_err(host_error("main thread"))?;
        for signal in signals {
            signal.send(()).map_err(|_| gone(mpsc::RecvError))?;
        }
        running.timeline.first_instruction_ns = started.recv().map_err(gone)?;
        Ok(running)
    }
}

/// What a helper's thread has to say; that it could not start or has panicked is an error too.
fn joined<T>(result: io::Result<std::thread::Result<T>>) -> Result<T, BuildError> {
    let result = result.map_err(host_error("thread"))?;
    result.map_err(|_| BuildError::Host { step: "thread", source: io::Error::other("it panicked") })
}

impl RunningVm {
    /// When what happened.
    pub fn timeline(&self) -> Timeline {
        self.timeline
    }

    /// What tells that the virtual machine has stopped.
    pub fn outcome(&self) -> Arc<Outcome> {
        Arc::clone(&self.machine.outcome)
    }

    /// Exits by reason.
    pub fn counters(&self) -> &ExitCounters {
        &self.machine.counters
    }

    /// Why the virtual machine has stopped, by all that is known: a reset after the kernel has panicked is a panic.
    pub fn stop_reason(&self) -> Option<StopReason> {
        let reason = self.machine.outcome.get()?;
        if reason != StopReason::Rebooted {
            return Some(reason);
        }
        let panic = self.console.panic_message().map(|message| StopReason::Panicked { message });
        Some(panic.unwrap_or(reason))
    }

    /// Attaches a device. The guest is not told: whoever asks for it does that.
    ///
    /// # Errors
    /// There is no room, or the host refuses.
    pub fn attach(&self, device: Box<dyn VirtioDevice>) -> Result<PluggedDevice, HotPlugError> {
        self.hot_plug.attach(device)
    }

    /// Takes the device in a slot away, whatever the guest does with it.
    ///
    /// # Errors
    /// There is none.
    pub fn detach(&self, slot: u8) -> Result<(), HotPlugError> {
        self.hot_plug.detach(slot)
    }

    /// Stops the vCPUs and waits for their threads.
    pub fn stop(&mut self) {
        self.machine.stopping.store(true, Ordering::SeqCst);
        self.threads.iter().for_each(VcpuThread::interrupt);
        self.threads.drain(..).for_each(VcpuThread::join);
    }
}

impl Drop for RunningVm {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Where the virtio-mmio device with this number lies, and its interrupt.
fn slot(index: usize) -> Option<Place> {
    let index = u8::try_from(index).ok()?;
    let interrupt = FIRST_INTERRUPT.checked_add(index).filter(|&interrupt| interrupt <= LAST_INTERRUPT)?;
    Some(Place { address: address(index.into()), interrupt })
}

/// The address of the virtio-mmio device with this number.
fn address(index: u64) -> u64 {
    VIRTIO_MMIO_BASE + index * REGISTER_FILE_SIZE
}

/// Where devices that come later go: behind those that are there, all with the interrupt that follows theirs.
fn later_slots(devices: usize, registers: &RegisterMemory) -> Result<Vec<(Place, RegisterFile)>, BuildError> {
    let full = || BuildError::TooManyDevices { count: devices };
    let interrupt = slot(devices).ok_or_else(full)?.interrupt;
    let places = (devices..devices + usize::from(SLOTS)).map(|index| {
        let address = u64::try_from(index).map(address).ok()?;
        Some((Place { address, interrupt }, registers.file(index)?))
    });
    places.collect::<Option<_>>().ok_or_else(full)
}

/// One input for each device, those before the first, and one for all that come later.
fn io_apic_inputs(devices: usize) -> Result<u8, BuildError> {
    let inputs = u8::try_from(devices).ok().and_then(|devices| (FIRST_INTERRUPT + 1).checked_add(devices));
    let inputs = inputs.filter(|&inputs| inputs <= LAST_INTERRUPT + 1);
    inputs.ok_or(BuildError::TooManyDevices { count: devices })
}

fn command_line(config: &VmConfig, devices: usize) -> Result<CommandLine, BuildError> {
    let mut line = CommandLine::new(config.console_verbose);
    for index in 0..devices {
        let Place { address, interrupt } =
            slot(index).ok_or(BuildError::TooManyDevices { count: devices })?;
        line.add_virtio_mmio(address, REGISTER_FILE_SIZE, interrupt);
    }
    Ok(line.finish(&config.kernel_parameters)?)
}

/// The machine around the kernel.
struct Built {
    vm: Arc<VmFd>,
    machine: Machine,
    hot_plug: HotPlug,
    vcpus: Vec<Vcpu>,
    memory_ready_ns: u64,
}

fn build_machine(
    processors: Processors,
    kvm: &Kvm,
    memory: &GuestMemory,
    devices: Vec<Box<dyn VirtioDevice>>,
    console: &Console,
) -> Result<Built, BuildError> {
    let vm = Arc::new(create_vm(kvm)?);
    let count = devices.len();
    let registers =
        RegisterMemory::new(count + usize::from(SLOTS)).map_err(host_error("mmap of device registers"))?;
    register_memory(&vm, memory, &registers)?;
    let memory_ready_ns = monotonic_ns();
    let inputs = processors.io_apic_inputs;
    interrupts::create_local_apics(&vm, inputs).map_err(kvm_error("KVM_CAP_SPLIT_IRQCHIP"))?;
    let wiring = Wiring(Arc::clone(&vm));
    let mut bus = virtio_bus(&wiring, memory, devices, &registers)?;
    let hot_plug = HotPlug::new(wiring, memory.clone(), later_slots(count, &registers)?);
    hot_plug.insert_into(&mut bus)?;
    let io_apic = IoApic::new(inputs, Box::new(KvmRouter(Arc::clone(&vm))));
    bus.insert(IO_APIC.into(), IO_APIC_SIZE, Arc::new(Mutex::new(io_apic)))?;

    let machine = Machine {
        ports: ports(console)?,
        memory: bus,
        counters: ExitCounters::default(),
        outcome: Arc::new(Outcome::new().map_err(host_error("eventfd"))?),
        stopping: AtomicBool::new(false),
    };
    let vcpus = create_vcpus(kvm, &vm, processors.vcpus)?;
    Ok(Built { vm, machine, hot_plug, vcpus, memory_ready_ns })
}

/// An empty VM. KVM_CREATE_VM waits for nothing that a signal could interrupt but may still return EINTR.
fn create_vm(kvm: &Kvm) -> Result<VmFd, BuildError> {
    let vm = loop {
        match kvm.create_vm() {
            Err(error) if error.errno() == libc::EINTR => {}
            other => break other.map_err(kvm_error("KVM_CREATE_VM"))?,
        }
    };
    vm.set_identity_map_address(KVM_IDENTITY_MAP).map_err(kvm_error("KVM_SET_IDENTITY_MAP_ADDR"))?;
    let tss = usize::try_from(KVM_TSS).unwrap_or_default();
    vm.set_tss_address(tss).map_err(kvm_error("KVM_SET_TSS_ADDR"))?;
    Ok(vm)
}

/// Tells KVM of guest memory, one slot per region, and of the devices' registers, which the guest may only read.
fn register_memory(vm: &VmFd, memory: &GuestMemory, registers: &RegisterMemory) -> Result<(), BuildError> {
    let (userspace_addr, memory_size) = registers.pages();
    let registers = kvm_userspace_memory_region {
        slot: 0,
        flags: KVM_MEM_READONLY,
        guest_phys_addr: VIRTIO_MMIO_BASE,
        memory_size,
        userspace_addr,
    };
    let memory = (1..).zip(memory.iter()).map(|(slot, region)| kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr: region.start_addr().0,
        memory_size: region.len(),
        userspace_addr: region.as_ptr() as u64,
    });
    for slot in std::iter::once(registers).chain(memory) {
        // SAFETY: the range is a mapping of guest memory or of registers, none of which is ever unmapped.
        unsafe { vm.set_user_memory_region(slot) }.map_err(kvm_error("KVM_SET_USER_MEMORY_REGION"))?;
    }
    Ok(())
}

fn ports(console: &Console) -> Result<Bus, BuildError> {
    let mut ports = Bus::default();
    let serial = SerialPort::new(console.clone());
    ports.insert(SERIAL_PORT, SERIAL_PORTS, Arc::new(Mutex::new(serial)))?;
    ports.insert(POWER_PORT, 1, Arc::new(Mutex::new(Power)))?;
    ports.insert(CLOCK_PORT, CLOCK_PORTS, Arc::new(Mutex::new(Clock::default())))?;
    ports.insert(KEYBOARD_COMMAND_PORT, 1, Arc::new(Mutex::new(KeyboardController)))?;
    Ok(ports)
}

/// Puts every device behind a transport whose notifications and interrupt KVM handles.
fn virtio_bus(
    wiring: &Wiring,
    memory: &GuestMemory,
    devices: Vec<Box<dyn VirtioDevice>>,
    registers: &RegisterMemory,
) -> Result<Bus, BuildError> {
    let count = devices.len();
    let mut bus = Bus::default();
    for (index, device) in devices.into_iter().enumerate() {
        let place = slot(index).ok_or(BuildError::TooManyDevices { count })?;
        let registers = registers.file(index).ok_or(BuildError::TooManyDevices { count })?;
        let transport =
            MmioTransport::new(device, memory.clone(), registers).map_err(host_error("eventfd"))?;
        wiring
            .connect(&transport, place)
            .map_err(|WiringError(step, source)| BuildError::Kvm { step, source })?;
        bus.insert(place.address, REGISTER_FILE_SIZE, Arc::new(Mutex::new(transport)))?;
    }
    Ok(bus)
}

fn create_vcpus(kvm: &Kvm, vm: &VmFd, count: u32) -> Result<Vec<Vcpu>, BuildError> {
    let supported = Supported::query(kvm)?;
    let run_size = kvm.get_vcpu_mmap_size().map_err(kvm_error("KVM_GET_VCPU_MMAP_SIZE"))?;
    let mut vcpus = Vec::new();
    for id in 0..count {
        let vcpu = Vcpu::new(vm, id, run_size)?;
        let topology = Topology { vcpus: count, tsc_khz: vcpu.tsc_khz()? };
        vcpu.configure(&supported, topology)?;
        vcpus.push(vcpu);
    }
    Ok(vcpus)
}

#[cfg(test)]
mod tests;
