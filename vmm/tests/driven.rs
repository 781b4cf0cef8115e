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

mod common;

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::FdFlags;
use saya_vmm::control::{self, Boot, Event, FileRole, Interface, Request, StopReason};

use common::{Vmm, be_the_vmm, boot, file, kernel, kvm_is_there, power};

#[test]
fn vmm_process() {
    be_the_vmm();
}

/// Boots with a share beside what the message has: any mount will do, the guests here use no files.
fn boot_with_share(vmm: &Vmm, boot: &Boot, files: &[BorrowedFd<'_>]) {
    let share = File::open("/proc").unwrap();
    let mut boot = boot.clone();
    boot.files.push(FileRole::Share);
    vmm.boot(boot, &[files, &[share.as_fd()]].concat());
}

/// The reason, the console and the exit status.
fn stopped(vmm: Vmm) -> (StopReason, String, Option<i32>) {
    let Event::Stopped { reason, console } = vmm.event() else { panic!("not stopped") };
    let Vmm { control, mut process } = vmm;
    assert!(control.receive().unwrap().is_none(), "it was not the last message");
    (reason, console, process.wait().unwrap().code())
}

/// jmp $
const FOREVER: [u8; 2] = [0xEB, 0xFE];

#[test]
fn a_guest_is_started_and_its_end_reported() {
    if !kvm_is_there() {
        return;
    }
    for (value, reason) in [(0, StopReason::PoweredOff), (1, StopReason::Rebooted)] {
        let vmm = Vmm::spawn();
        boot_with_share(&vmm, &boot(&[FileRole::Kernel]), &[kernel(&power(value)).as_fd()]);
        let Event::Started(timeline) = vmm.event() else { panic!("not started") };
        let times = [
            timeline.process_start_ns,
            timeline.config_received_ns,
            timeline.memory_ready_ns,
            timeline.first_instruction_ns,
        ];
        assert!(times.is_sorted() && times[0] > 0, "{timeline:?}");
        assert_eq!(stopped(vmm), (reason, String::new(), Some(0)));
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
    boot_with_share(&vmm, &boot(&[FileRole::Kernel]), &[kernel(&code).as_fd()]);
    vmm.event();
    let message = "Attempted to kill init!".to_owned();
    assert_eq!(stopped(vmm), (StopReason::Panicked { message }, text.into(), Some(1)));
}

#[test]
fn the_shim_can_ask_and_stop() {
    if !kvm_is_there() {
        return;
    }
    let vmm = Vmm::spawn();
    boot_with_share(&vmm, &boot(&[FileRole::Kernel]), &[kernel(&FOREVER).as_fd()]);
    vmm.event();
    vmm.control.send(&Request::Counters, &[]).unwrap();
    assert!(matches!(vmm.event(), Event::Counters(_)));
    vmm.control.send(&Request::Stop, &[]).unwrap();
    assert_eq!(stopped(vmm), (StopReason::Stopped, String::new(), Some(0)));
}

#[test]
fn the_vmm_ends_when_the_shim_closes_its_end() {
    if !kvm_is_there() {
        return;
    }
    let vmm = Vmm::spawn();
    boot_with_share(&vmm, &boot(&[FileRole::Kernel]), &[kernel(&FOREVER).as_fd()]);
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
        boot_with_share(&vmm, &boot, &files);
        let (reason, _, status) = stopped(vmm);
        let StopReason::Failed { message } = reason else { panic!("{reason:?}") };
        assert!(message.contains(part), "{message:?} does not say {part:?}");
        assert_eq!(status, Some(1));
    }
}

#[test]
fn without_a_share_nothing_is_booted() {
    let vmm = Vmm::spawn();
    vmm.boot(boot(&[FileRole::Kernel]), &[kernel(&power(0)).as_fd()]);
    let StopReason::Failed { message } = stopped(vmm).0 else { panic!("it booted") };
    assert!(message.contains("without a directory to share"), "{message}");
}

#[test]
fn the_guests_memory_is_not_in_the_vmms_way() {
    if !kvm_is_there() {
        return;
    }
    let vmm = Vmm::spawn();
    boot_with_share(
        &vmm,
        &Boot { memory_mib: 512, ..boot(&[FileRole::Kernel]) },
        &[kernel(&FOREVER).as_fd()],
    );
    vmm.event();
    let mut status = String::new();
    let path = format!("/proc/{}/status", vmm.process.id());
    File::open(path).unwrap().read_to_string(&mut status).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kib: u64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
    vmm.control.send(&Request::Stop, &[]).unwrap();
    assert_eq!(stopped(vmm).0, StopReason::Stopped);
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
