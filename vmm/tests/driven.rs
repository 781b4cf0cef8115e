//! The VMM as a process that is driven over its control socket, as the shim does, with tiny hand-written guests.
//!
//! This test program re-executes itself as the VMM: the test `vmm_process` is that process where the environment says
//! so, and nothing otherwise. Where there is no usable KVM the guests are skipped with a message.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test program"
)]

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};

use rustix::io::{FdFlags, fcntl_setfd};
use saya_vmm::control::{self, Boot, Event, FileRole, Interface, Request, ShimEnd, StopReason};
use saya_vmm::jail::in_new_pid_namespace;

/// Names the control descriptor to the re-executed test program.
const CONTROL_FD: &str = "SAYA_TEST_CONTROL_FD";

#[test]
fn vmm_process() {
    if let Ok(number) = std::env::var(CONTROL_FD) {
        std::process::exit(saya_vmm::process::run(number.parse().unwrap()));
    }
}

/// The shim's part.
struct Vmm {
    control: ShimEnd,
    process: Child,
}

impl Vmm {
    fn spawn() -> Self {
        let (control, theirs) = control::pair().unwrap();
        fcntl_setfd(theirs.as_fd(), FdFlags::empty()).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        // On the main thread, since the VMM wants to be its process's only one.
        command
            .args(["--exact", "vmm_process", "--nocapture", "--test-threads", "1"])
            .env(CONTROL_FD, theirs.as_raw_fd().to_string())
            .stdout(Stdio::null());
        let process = in_new_pid_namespace(|| command.spawn()).unwrap();
        Self { control, process }
    }

    /// Sends a message to boot, with a share beside what it has: any mount will do, the guests here use no files.
    fn boot(&self, boot: &Boot, files: &[BorrowedFd<'_>]) {
        let share = File::open("/proc").unwrap();
        let mut boot = boot.clone();
        boot.files.push(FileRole::Share);
        self.boot_without_share(boot, &[files, &[share.as_fd()]].concat());
    }

    fn boot_without_share(&self, boot: Boot, files: &[BorrowedFd<'_>]) {
        self.control.send(&Request::Boot(boot), files).unwrap();
    }

    fn event(&self) -> Event {
        self.control.receive().unwrap().expect("the VMM ended without a word").0
    }

    /// The reason, the console and the exit status.
    fn stopped(mut self) -> (StopReason, String, Option<i32>) {
        let Event::Stopped { reason, console } = self.event() else { panic!("not stopped") };
        assert!(self.control.receive().unwrap().is_none(), "it was not the last message");
        (reason, console, self.process.wait().unwrap().code())
    }
}

fn boot(files: &[FileRole]) -> Boot {
    Boot {
        vcpus: 1,
        memory_mib: 32,
        guest_cid: 3,
        kernel_parameters: String::new(),
        console_verbose: false,
        interfaces: Vec::new(),
        files: files.to_vec(),
    }
}

fn file(content: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    file.rewind().unwrap();
    file
}

/// An ELF file with one segment at 1 MiB and a PVH note.
fn kernel(code: &[u8]) -> File {
    let mut bytes = vec![0; 64];
    bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
    bytes[16] = 2;
    bytes[18] = 62;
    bytes[32] = 64; // program headers follow
    bytes[54] = 56;
    bytes[56] = 2;
    let mut program = |kind: u32, offset: u64, address: u64, length: u64| {
        bytes.extend([kind.to_le_bytes(), [0; 4]].concat());
        for field in [offset, 0, address, length, length, 4] {
            bytes.extend(field.to_le_bytes());
        }
    };
    program(4, 176, 0, 20);
    program(1, 196, 0x10_0000, code.len() as u64);
    for word in [4u32, 4, 18, u32::from_le_bytes(*b"Xen\0"), 0x10_0000] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(code);
    file(&bytes)
}

/// mov dx, 0x604; mov al, value; out dx, al
fn power(value: u8) -> [u8; 7] {
    [0x66, 0xBA, 0x04, 0x06, 0xB0, value, 0xEE]
}

/// jmp $
const FOREVER: [u8; 2] = [0xEB, 0xFE];

fn kvm_is_there() -> bool {
    let there = File::options().read(true).write(true).open("/dev/kvm").is_ok();
    if !there {
        eprintln!("skipped: no usable /dev/kvm");
    }
    there
}

#[test]
fn a_guest_is_started_and_its_end_reported() {
    if !kvm_is_there() {
        return;
    }
    for (value, reason) in [(0, StopReason::PoweredOff), (1, StopReason::Rebooted)] {
        let vmm = Vmm::spawn();
        vmm.boot(&boot(&[FileRole::Kernel]), &[kernel(&power(value)).as_fd()]);
        let Event::Started(timeline) = vmm.event() else { panic!("not started") };
        let times = [
            timeline.process_start_ns,
            timeline.config_received_ns,
            timeline.memory_ready_ns,
            timeline.first_instruction_ns,
        ];
        assert!(times.is_sorted() && times[0] > 0, "{timeline:?}");
        assert_eq!(vmm.stopped(), (reason, String::new(), Some(0)));
    }
}

#[test]
fn a_panic_is_reported_with_the_console() {
    if !kvm_is_there() {
        return;
    }
    let text = "Kernel panic - not syncing: Attempted to kill init!\n";
    let mut code = vec![0x66, 0xBA, 0xF8, 0x03];
    for byte in text.bytes() {
        code.extend([0xB0, byte, 0xEE]);
    }
    code.extend([0x0F, 0x0B]);
    let vmm = Vmm::spawn();
    vmm.boot(&boot(&[FileRole::Kernel]), &[kernel(&code).as_fd()]);
    vmm.event();
    let message = "Attempted to kill init!".to_owned();
    assert_eq!(vmm.stopped(), (StopReason::Panicked { message }, text.into(), Some(1)));
}

#[test]
fn the_shim_can_ask_and_stop() {
    if !kvm_is_there() {
        return;
    }
    let vmm = Vmm::spawn();
    vmm.boot(&boot(&[FileRole::Kernel]), &[kernel(&FOREVER).as_fd()]);
    vmm.event();
    vmm.control.send(&Request::Counters, &[]).unwrap();
    assert!(matches!(vmm.event(), Event::Counters(_)));
    vmm.control.send(&Request::Stop, &[]).unwrap();
    assert_eq!(vmm.stopped(), (StopReason::Stopped, String::new(), Some(0)));
}

#[test]
fn the_vmm_ends_when_the_shim_closes_its_end() {
    if !kvm_is_there() {
        return;
    }
    let vmm = Vmm::spawn();
    vmm.boot(&boot(&[FileRole::Kernel]), &[kernel(&FOREVER).as_fd()]);
    vmm.event();
    let Vmm { control, mut process } = vmm;
    drop(control);
    assert_eq!(process.wait().unwrap().code(), Some(0));
}

#[test]
fn a_vmm_that_is_told_nothing_ends_with_its_shim() {
    let Vmm { control, mut process } = Vmm::spawn();
    drop(control);
    assert_eq!(process.wait().unwrap().code(), Some(1));
}

#[test]
fn what_cannot_be_booted_is_reported_with_its_reason() {
    let good = kernel(&power(0));
    let script = file(b"#!/bin/sh\n");
    let interface = Interface { mac: [2, 0, 0, 0, 0, 1], mtu: 1500, queue_pairs: 2 };
    let tap = |queue_pair| FileRole::Tap { interface: 0, queue_pair };
    let with_interface = |files: &[FileRole]| Boot { interfaces: vec![interface], ..boot(files) };
    let cases: [(Boot, Vec<BorrowedFd<'_>>, &str); 9] = [
        (boot(&[]), vec![], "without a kernel"),
        (boot(&[FileRole::Kernel]), vec![], "names 2 files and comes with 1 descriptors"),
        (boot(&[FileRole::Kernel; 2]), vec![good.as_fd(); 2], "names a file twice"),
        (boot(&[FileRole::Kernel]), vec![script.as_fd()], "not an ELF file"),
        (Boot { memory_mib: 0, ..boot(&[FileRole::Kernel]) }, vec![good.as_fd()], "set `memory`"),
        (Boot { memory_mib: 1 << 30, ..boot(&[FileRole::Kernel]) }, vec![good.as_fd()], "set `memory`"),
        (
            with_interface(&[FileRole::Kernel, tap(0)]),
            vec![good.as_fd(); 2],
            "without a tap for queue pair 1",
        ),
        (
            with_interface(&[FileRole::Kernel, tap(0), tap(1)]),
            vec![good.as_fd(); 3],
            "the tap device refuses",
        ),
        (boot(&[FileRole::Kernel, tap(0)]), vec![good.as_fd(); 2], "a file of no use: Tap"),
    ];
    for (boot, files, part) in cases {
        let vmm = Vmm::spawn();
        vmm.boot(&boot, &files);
        let (reason, _, status) = vmm.stopped();
        let StopReason::Failed { message } = reason else { panic!("{reason:?}") };
        assert!(message.contains(part), "{message:?} does not say {part:?}");
        assert_eq!(status, Some(1));
    }
}

#[test]
fn without_a_share_nothing_is_booted() {
    let vmm = Vmm::spawn();
    vmm.boot_without_share(boot(&[FileRole::Kernel]), &[kernel(&power(0)).as_fd()]);
    let StopReason::Failed { message } = vmm.stopped().0 else { panic!("it booted") };
    assert!(message.contains("without a directory to share"), "{message}");
}

#[test]
fn the_guests_memory_is_not_in_the_vmms_way() {
    if !kvm_is_there() {
        return;
    }
    let vmm = Vmm::spawn();
    vmm.boot(&Boot { memory_mib: 512, ..boot(&[FileRole::Kernel]) }, &[kernel(&FOREVER).as_fd()]);
    vmm.event();
    let mut status = String::new();
    let path = format!("/proc/{}/status", vmm.process.id());
    File::open(path).unwrap().read_to_string(&mut status).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kib: u64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
    vmm.control.send(&Request::Stop, &[]).unwrap();
    assert_eq!(vmm.stopped().0, StopReason::Stopped);
    assert!(kib < 100 * 1024, "{kib} KiB are resident of a guest that has touched next to nothing");
}

#[test]
fn descriptors_of_a_message_do_not_leak_into_children() {
    let (shim, vmm) = control::pair().unwrap();
    let file: OwnedFd = file(b"x").into();
    shim.send(&Request::Boot(boot(&[FileRole::Kernel])), &[file.as_fd()]).unwrap();
    let (_, descriptors) = vmm.receive().unwrap().unwrap();
    let flags = rustix::io::fcntl_getfd(&descriptors[0]).unwrap();
    assert!(flags.contains(FdFlags::CLOEXEC));
}
