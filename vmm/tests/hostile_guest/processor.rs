//! What a processor can do without any device: ports, model-specific registers, hypercalls, nonsense.

use std::time::Duration;

use saya_vmm::control::StopReason;

use crate::assembler::Code;
use crate::machine::{Bounds, assert_survived, run_without_files};

/// How long a guest may run that may go round in circles, which is none of the VMM's business.
const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn every_port_is_read_and_written_and_the_machine_goes_on() {
    let mut code = Code::default();
    // mov dx, 0; again: in al, dx; mov al, 0xa5; out dx, al; inc dx; jnz again
    code.bytes(&[0x66, 0xBA, 0, 0, 0xEC, 0xB0, 0xA5, 0xEE, 0x66, 0x42, 0x75, 0xF8]);
    assert_survived(&code.finish());
}

#[test]
fn wide_accesses_to_ports_are_answered_too() {
    let mut code = Code::default();
    for port in [0x20u16, 0x3F8, 0x603, 0x604, 0x605, 0x610, 0x614, 0xCF8, 0xFFFD, 0xFFFF] {
        code.bytes(&[0x66, 0xBA]); // mov dx, port
        code.bytes(&port.to_le_bytes());
        // in eax, dx; in ax, dx; mov eax, 0xa5a5a5a5; out dx, eax; out dx, ax
        code.bytes(&[0xED, 0x66, 0xED, 0xB8, 0xA5, 0xA5, 0xA5, 0xA5, 0xEF, 0x66, 0xEF]);
    }
    // mov edi, 0x200000; mov ecx, 4096; mov dx, 0x3f8; rep insb; rep outsb of what there is
    code.bytes(&[0xFC, 0xBF, 0, 0, 0x20, 0, 0xB9, 0, 16, 0, 0, 0x66, 0xBA, 0xF8, 0x03, 0xF3, 0x6C]);
    code.bytes(&[0xBE, 0, 0, 0x20, 0, 0xB9, 0, 16, 0, 0, 0xF3, 0x6E]);
    assert_survived(&code.finish());
}

/// Whatever KVM makes of it: the guest's own end, a reset, a reason, or nothing until it is stopped. The VMM does not die of it.
fn assert_ends(code: &[u8]) {
    let bounds = Bounds { patience: PATIENCE, ..Bounds::default() };
    if let Some(end) = run_without_files(code, bounds) {
        let expected = match &end.reason {
            StopReason::PoweredOff | StopReason::Rebooted | StopReason::Stopped => true,
            StopReason::Failed { message } => message.contains("vCPU 0"),
            _ => false,
        };
        assert!(expected, "{end:?}");
    }
}

#[test]
fn model_specific_registers_of_any_number_and_value_are_between_the_guest_and_kvm() {
    for value in [0u32, 1, u32::MAX] {
        let mut code = Code::default();
        code.survive_faults();
        for (first, count) in
            [(0, 0x800), (0xC000_0080, 0x80), (0xC001_0000, 0x100), (0x4000_0000, 0x100), (0x4B56_4D00, 16)]
        {
            code.bytes(&[0xBB]); // mov ebx, first
            code.bytes(&u32::to_le_bytes(first));
            code.bytes(&[0xBD]); // mov ebp, count
            code.bytes(&u32::to_le_bytes(count));
            // again: mov ecx, ebx; rdmsr; mov eax, value; mov edx, eax; wrmsr; inc ebx; dec ebp; jnz again
            code.bytes(&[0x89, 0xD9, 0x0F, 0x32, 0xB8]);
            code.bytes(&value.to_le_bytes());
            code.bytes(&[0x89, 0xC2, 0x0F, 0x30, 0x43, 0x4D, 0x75, 0xEF]);
        }
        assert_ends(&code.finish());
    }
}

#[test]
fn nonsense_is_between_the_guest_and_kvm() {
    let programs: [&[u8]; 7] = [
        // A triple fault, a far jump to nowhere, a stack in the registers of devices.
        &[0x0F, 0x0B],
        &[0xEA, 0, 0, 0, 0, 0, 0],
        &[0xBC, 0, 1, 0, 0xD0, 0x50, 0x58],
        // Code in the registers of devices, and where there is nothing.
        &[0xB8, 0, 0, 0, 0xD0, 0xFF, 0xE0],
        &[0xB8, 0, 0, 0, 0xE0, 0xFF, 0xE0],
        // Paging with tables that are not there: mov eax, 0xfffff000; mov cr3, eax; mov eax, 0x80000001; mov cr0, eax
        &[0xB8, 0, 0xF0, 0xFF, 0xFF, 0x0F, 0x22, 0xD8, 0xB8, 1, 0, 0, 0x80, 0x0F, 0x22, 0xC0],
        // A vector to a device: push dword [0xd0000000]; movups xmm0, [0xd0000000]
        &[0xFF, 0x35, 0, 0, 0, 0xD0, 0x0F, 0x10, 0x05, 0, 0, 0, 0xD0],
    ];
    for program in programs {
        let mut code = Code::default();
        code.bytes(program);
        assert_ends(&code.finish());
    }
}

#[test]
fn hypercalls_of_any_number_are_between_the_guest_and_kvm() {
    let information = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let call: [u8; 3] = if information.contains(" vmx") {
        [0x0F, 0x01, 0xC1]
    } else if information.contains(" svm") {
        [0x0F, 0x01, 0xD9]
    } else {
        eprintln!("skipped: the processor has no extensions for virtual machines, and no such instruction");
        return;
    };
    let mut code = Code::default();
    // mov ebx, 64; again: mov eax, ebx; hypercall; dec ebx; jnz again
    code.bytes(&[0xBB, 64, 0, 0, 0, 0x89, 0xD8]);
    code.bytes(&call);
    code.bytes(&[0x4B, 0x75, 0xF8]);
    assert_ends(&code.finish());
}
