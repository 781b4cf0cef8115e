//! Tiny hand-written guests on the host's KVM. Where there is none they are skipped with a message.

use std::os::fd::AsFd;

use super::*;
use crate::boot::tests::{file_of, kernel_bytes};
use crate::devices::virtio::rng::Rng;
use crate::event_loop::{EventFlags, EventLoop, Handler};
use crate::jail::Confinement;

/// The note with the PVH entry.
const PVH: u32 = 18;

fn config() -> VmConfig {
    VmConfig { vcpus: 1, memory_mib: 32, kernel_parameters: String::new(), console_verbose: false }
}

/// Whether guests can run. `cargo xtask test` counts a test as skipped that says it is, which the harness would not pass on
/// of one that passes.
fn kvm_is_there() -> bool {
    let there = File::options().read(true).write(true).open("/dev/kvm").is_ok();
    if !there {
        let thread = std::thread::current();
        let line = format!("skipped: {}: no usable /dev/kvm\n", thread.name().unwrap_or_default());
        io::Write::write_all(&mut io::stdout(), line.as_bytes()).unwrap();
    }
    there
}

fn start(code: &[u8], config: &VmConfig) -> RunningVm {
    let kernel = file_of(&kernel_bytes(code, PVH));
    let vm = Vm::build(config, &kvm::open().unwrap(), kernel, None, Vec::new(), Console::default()).unwrap();
    vm.start(&Confinement::none()).unwrap()
}

struct Wake;

impl Handler for Wake {
    fn ready(&self, _ready: EventFlags) {}
}

/// Waits for the guest to end by itself.
fn wait(vm: &RunningVm) -> StopReason {
    wait_on(&EventLoop::new().unwrap(), vm)
}

fn wait_on(event_loop: &EventLoop, vm: &RunningVm) -> StopReason {
    let outcome = vm.outcome();
    let _wake = event_loop.add(outcome.event().as_fd(), EventFlags::IN, Arc::new(Wake)).unwrap();
    event_loop.run(|| outcome.get().is_some()).unwrap();
    vm.stop_reason().unwrap()
}

/// Writes `text` to the serial port, byte by byte.
fn print(text: &str) -> Vec<u8> {
    let mut code = vec![0x66, 0xBA, 0xF8, 0x03]; // mov dx, 0x3f8
    for byte in text.bytes() {
        code.extend([0xB0, byte, 0xEE]); // mov al, byte; out dx, al
    }
    code
}

/// Writes `value` to the power device.
fn power(value: u8) -> [u8; 7] {
    [0x66, 0xBA, 0x04, 0x06, 0xB0, value, 0xEE] // mov dx, 0x604; mov al, value; out dx, al
}

/// An invalid instruction without handlers: a triple fault.
const TRIPLE_FAULT: [u8; 2] = [0x0F, 0x0B];

#[test]
fn a_guest_that_powers_off_says_so() {
    if kvm_is_there() {
        assert_eq!(wait(&start(&power(0), &config())), StopReason::PoweredOff);
    }
}

#[test]
fn a_guest_that_reboots_says_so() {
    if kvm_is_there() {
        assert_eq!(wait(&start(&power(1), &config())), StopReason::Rebooted);
    }
}

#[test]
fn a_reset_after_a_panic_is_a_panic_with_the_kernels_words() {
    if !kvm_is_there() {
        return;
    }
    let code = [print("Kernel panic - not syncing: VFS\n"), TRIPLE_FAULT.into()].concat();
    let vm = start(&code, &config());
    assert_eq!(wait(&vm), StopReason::Panicked { message: "VFS".into() });
    assert_eq!(vm.counters().by_reason()["io_out"], 32);
}

#[test]
fn a_reset_without_a_panic_is_a_reboot() {
    if kvm_is_there() {
        assert_eq!(wait(&start(&TRIPLE_FAULT, &config())), StopReason::Rebooted);
    }
}

#[test]
fn a_guest_that_never_exits_can_be_stopped() {
    if kvm_is_there() {
        let mut vm = start(&[0xEB, 0xFE], &VmConfig { vcpus: 3, ..config() });
        vm.stop();
        assert_eq!(vm.stop_reason(), None);
    }
}

#[test]
fn the_timeline_is_in_order() {
    if kvm_is_there() {
        let Timeline { memory_ready_ns, kernel_loaded_ns, first_instruction_ns, .. } =
            start(&power(0), &config()).timeline();
        assert!(memory_ready_ns > 0 && kernel_loaded_ns > 0);
        assert!(first_instruction_ns > memory_ready_ns.max(kernel_loaded_ns));
    }
}

#[test]
fn the_kernel_finds_start_info_in_ebx() {
    if !kvm_is_there() {
        return;
    }
    // mov eax, [ebx]; mov dx, 0x3f8; then four times: out dx, al; shr eax, 8
    let mut code = vec![0x8B, 0x03, 0x66, 0xBA, 0xF8, 0x03];
    for _ in 0..4 {
        code.extend([0xEE, 0xC1, 0xE8, 0x08]);
    }
    code.extend(power(0));
    let vm = start(&code, &config());
    assert_eq!(wait(&vm), StopReason::PoweredOff);
    let magic = 0x336e_c578u32.to_le_bytes();
    assert_eq!(vm.console.tail(64), String::from_utf8_lossy(&magic));
}

#[test]
fn addresses_without_a_device_read_as_ones_and_take_writes() {
    if !kvm_is_there() {
        return;
    }
    let mut code = vec![
        0xA1, 0x00, 0x00, 0x00, 0xE0, // mov eax, [0xe0000000]
        0xA3, 0x00, 0x00, 0x00, 0xE0, // mov [0xe0000000], eax
        0x66, 0xBA, 0x00, 0x10, 0xEF, // mov dx, 0x1000; out dx, eax
        0xED, // in eax, dx
        0x83, 0xE0, 0x7F, // and eax, 0x7f
        0x66, 0xBA, 0xF8, 0x03, 0xEE, // mov dx, 0x3f8; out dx, al
    ];
    code.extend(print("."));
    code.extend(power(0));
    let vm = start(&code, &config());
    assert_eq!(wait(&vm), StopReason::PoweredOff);
    let counts = vm.counters().by_reason();
    assert_eq!((counts["mmio_read"], counts["mmio_write"], counts["io_in"]), (1, 1, 1));
    assert_eq!(vm.console.tail(64), ".", "0x7f is not printable");
}

/// The first virtio device's registers.
const DEVICE: u32 = 0xD000_0000;

/// mov dword [address], value
fn store(address: u32, value: u32) -> Vec<u8> {
    [&[0xC7, 0x05][..], &address.to_le_bytes(), &value.to_le_bytes()].concat()
}

/// mov eax, [address]; mov dx, 0x3f8; out dx, al
fn print_byte_at(address: u32) -> Vec<u8> {
    [&[0xA1][..], &address.to_le_bytes(), &[0x66, 0xBA, 0xF8, 0x03, 0xEE]].concat()
}

fn start_with_rng(code: &[u8], event_loop: &EventLoop) -> RunningVm {
    let kernel = file_of(&kernel_bytes(code, PVH));
    let rng: Box<dyn VirtioDevice> = Box::new(Rng::new(event_loop.clone()));
    let vm =
        Vm::build(&config(), &kvm::open().unwrap(), kernel, None, vec![rng], Console::default()).unwrap();
    vm.start(&Confinement::none()).unwrap()
}

#[test]
fn registers_are_read_without_an_exit_and_written_with_one() {
    if !kvm_is_there() {
        return;
    }
    let mut code = Vec::new();
    (0..4).for_each(|byte| code.extend(print_byte_at(DEVICE + byte)));
    code.extend(store(DEVICE + 0x70, 1));
    code.extend(store(DEVICE + 0x70, 3));
    code.extend(print_byte_at(DEVICE + 0x70));
    code.extend(power(0));
    let event_loop = EventLoop::new().unwrap();
    let vm = start_with_rng(&code, &event_loop);
    assert_eq!(wait_on(&event_loop, &vm), StopReason::PoweredOff);
    assert_eq!(vm.console.text(), "virt\x03");
    let counts = vm.counters().by_reason();
    assert_eq!((counts.get("mmio_read"), counts["mmio_write"]), (None, 2));
}

#[test]
fn a_driver_gets_its_request_served_and_its_notification_costs_no_exit_to_user_space() {
    if !kvm_is_there() {
        return;
    }
    let (descriptors, available, used, buffer) = (0x20_0000, 0x20_1000, 0x20_2000, 0x21_0000);
    let driver = [
        (DEVICE + 0x70, 1),
        (DEVICE + 0x70, 3),
        (DEVICE + 0x24, 1),
        (DEVICE + 0x20, 1),
        (DEVICE + 0x70, 11),
        (DEVICE + 0x38, 8),
        (DEVICE + 0x80, descriptors),
        (DEVICE + 0x90, available),
        (DEVICE + 0xA0, used),
        (DEVICE + 0x44, 1),
        (DEVICE + 0x70, 15),
        // One descriptor, 64 bytes for the device to write, and its head made available.
        (descriptors, buffer),
        (descriptors + 8, 64),
        (descriptors + 12, 2),
        (available, 1 << 16),
        (DEVICE + 0x50, 0),
    ];
    let mut code: Vec<u8> = driver.into_iter().flat_map(|(address, value)| store(address, value)).collect();
    // again: cmp word [used + 2], 1; jne again
    code.extend([&[0x66, 0x83, 0x3D][..], &(used + 2).to_le_bytes(), &[1, 0x75, 0xF6]].concat());
    // The length of the used element: 64 is '@'.
    code.extend(print_byte_at(used + 8));
    code.extend(power(0));
    let event_loop = EventLoop::new().unwrap();
    let vm = start_with_rng(&code, &event_loop);
    assert_eq!(wait_on(&event_loop, &vm), StopReason::PoweredOff);
    assert_eq!(vm.console.text(), "@");
    assert_eq!(vm.counters().by_reason()["mmio_write"], 11, "the notification is not among them");
}

fn build_error(config: &VmConfig, kernel: File) -> String {
    let built = Vm::build(config, &kvm::open().unwrap(), kernel, None, Vec::new(), Console::default());
    built.map(|_| ()).unwrap_err().to_string()
}

#[test]
fn bad_parameters_are_named_with_their_remedy() {
    if !kvm_is_there() {
        return;
    }
    let good = || file_of(&kernel_bytes(&power(0), PVH));
    let cases = [
        (build_error(&VmConfig { memory_mib: 0, ..config() }, good()), "set `memory` to at least"),
        (build_error(&VmConfig { memory_mib: 1 << 30, ..config() }, good()), "set `memory` (MiB) lower"),
        (build_error(&config(), file_of(b"#!/bin/sh")), "is not an ELF file"),
        (build_error(&config(), file_of(&kernel_bytes(&power(0), 1))), "CONFIG_PVH"),
        (
            build_error(&VmConfig { kernel_parameters: "x".repeat(3000), ..config() }, good()),
            "kernel_parameters",
        ),
    ];
    for (message, part) in cases {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
}

#[test]
fn a_number_of_vcpus_that_cannot_be_is_refused() {
    if !kvm_is_there() {
        return;
    }
    for vcpus in [0, 65, u32::MAX] {
        let error = build_error(&VmConfig { vcpus, ..config() }, file_of(&kernel_bytes(&power(0), PVH)));
        assert!(error.contains("set `vcpus` to 1 to"), "{error}");
    }
}

#[test]
fn an_initramfs_that_does_not_fit_is_refused() {
    if !kvm_is_there() {
        return;
    }
    let initramfs = tempfile::tempfile().unwrap();
    initramfs.set_len(31 << 20).unwrap();
    let kernel = file_of(&kernel_bytes(&power(0), PVH));
    let built =
        Vm::build(&config(), &kvm::open().unwrap(), kernel, Some(&initramfs), Vec::new(), Console::default());
    let error = built.map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("32505856 bytes") && error.contains("`memory`"), "{error}");
}

/// A device that tells its type by its registers alone, and counts how often it was stopped.
struct Probe(Arc<std::sync::atomic::AtomicU32>);

impl VirtioDevice for Probe {
    fn device_type(&self) -> u32 {
        2
    }

    fn name(&self) -> &'static str {
        "probe"
    }

    fn queue_sizes(&self) -> &[u16] {
        &[8]
    }

    fn features(&self) -> u64 {
        1 << 32
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(
        &mut self,
        _activation: crate::devices::virtio::Activation,
    ) -> Result<(), crate::devices::virtio::ActivationError> {
        Ok(())
    }

    fn reset(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn a_slot_is_empty_until_a_device_is_attached_and_when_it_is_detached() {
    if !kvm_is_there() {
        return;
    }
    let vm = start(&[0xEB, 0xFE], &config());
    let resets = Arc::default();
    let probe = || Box::new(Probe(Arc::clone(&resets)));
    let read = |address| {
        let mut word = [0; 4];
        vm.machine.memory.read(address, &mut word);
        u32::from_le_bytes(word)
    };
    let write = |address, value: u32| vm.machine.memory.write(address, &value.to_le_bytes());

    let mut places = Vec::new();
    for slot in 0..SLOTS {
        let address = VIRTIO_MMIO_BASE + u64::from(slot) * REGISTER_FILE_SIZE;
        assert_eq!((read(address), read(address + 8)), (0, 0), "nobody is there");
        assert_eq!(write(address + 0x70, 1), None);
        places.push(vm.attach(probe()).unwrap());
        assert_eq!((read(address), read(address + 8)), (0x7472_6976, 2));
    }
    assert!(matches!(vm.attach(probe()), Err(HotPlugError::Full)));
    assert!(places.iter().all(|place| place.interrupt == places[0].interrupt), "one interrupt for all");

    // A driver that has taken the device loses it, and the slot is free for another.
    let place = places[3];
    for status in [1, 3, 11, 15] {
        assert_eq!(write(place.address + 0x24, 1), None);
        assert_eq!(write(place.address + 0x20, 1), None);
        assert_eq!(write(place.address + 0x70, status), None);
    }
    assert_eq!(read(place.address + 0x70), 15);
    vm.detach(place.slot).unwrap();
    assert_eq!(resets.load(Ordering::SeqCst), 1);
    assert_eq!((read(place.address), read(place.address + 0x70)), (0, 0));
    assert!(matches!(vm.detach(place.slot), Err(HotPlugError::Empty(3))));
    assert!(matches!(vm.detach(SLOTS), Err(HotPlugError::Empty(SLOTS))));
    assert_eq!(vm.attach(probe()).unwrap(), place);
}
