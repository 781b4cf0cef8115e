//! `bpf(2)`, for programs that decide about devices.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

// Classes, sizes and operations of linux/bpf_common.h and linux/bpf.h.
const LOAD_WORD: u8 = 0x61; // BPF_LDX | BPF_MEM | BPF_W
const MOVE_IMMEDIATE: u8 = 0xb7; // BPF_ALU64 | BPF_MOV | BPF_K
const MOVE_REGISTER: u8 = 0xbf; // BPF_ALU64 | BPF_MOV | BPF_X
const AND_IMMEDIATE: u8 = 0x57; // BPF_ALU64 | BPF_AND | BPF_K
const SHIFT_RIGHT_IMMEDIATE: u8 = 0x77; // BPF_ALU64 | BPF_RSH | BPF_K
const JUMP: u8 = 0x05; // BPF_JMP | BPF_JA
const JUMP_IF_EQUAL: u8 = 0x16; // BPF_JMP32 | BPF_JEQ | BPF_K
const JUMP_IF_DIFFERENT: u8 = 0x56; // BPF_JMP32 | BPF_JNE | BPF_K
const EXIT: u8 = 0x95; // BPF_JMP | BPF_EXIT

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Instruction {
    code: u8,
    /// The destination in the lower four bits, the source in the upper.
    registers: u8,
    offset: i16,
    immediate: i32,
}

impl Instruction {
    const fn new(code: u8, destination: u8, source: u8, offset: i16, immediate: u32) -> Self {
        Self { code, registers: destination | source << 4, offset, immediate: immediate.cast_signed() }
    }

    /// `destination = *(u32 *)(base + offset)`.
    pub(crate) const fn load_word(destination: u8, base: u8, offset: i16) -> Self {
        Self::new(LOAD_WORD, destination, base, offset, 0)
    }

    /// `destination = source`.
    pub(crate) const fn copy(destination: u8, source: u8) -> Self {
        Self::new(MOVE_REGISTER, destination, source, 0, 0)
    }

    /// `destination = value`.
    pub(crate) const fn set(destination: u8, value: u32) -> Self {
        Self::new(MOVE_IMMEDIATE, destination, 0, 0, value)
    }

    /// `destination &= value`.
    pub(crate) const fn and(destination: u8, value: u32) -> Self {
        Self::new(AND_IMMEDIATE, destination, 0, 0, value)
    }

    /// `destination >>= bits`.
    pub(crate) const fn shift_right(destination: u8, bits: u32) -> Self {
        Self::new(SHIFT_RIGHT_IMMEDIATE, destination, 0, 0, bits)
    }

    /// Passes over `skipped` instructions.
    pub(crate) fn jump(skipped: usize) -> Self {
        Self::new(JUMP, 0, 0, distance(skipped), 0)
    }

    /// Passes over `skipped` instructions if the lower 32 bits of `register` are `value`.
    pub(crate) fn jump_if_equal(register: u8, value: u32, skipped: usize) -> Self {
        Self::new(JUMP_IF_EQUAL, register, 0, distance(skipped), value)
    }

    /// Passes over `skipped` instructions if the lower 32 bits of `register` are not `value`.
    pub(crate) fn jump_if_different(register: u8, value: u32, skipped: usize) -> Self {
        Self::new(JUMP_IF_DIFFERENT, register, 0, distance(skipped), value)
    }

    /// Ends the program with what is in register 0.
    pub(crate) const fn exit() -> Self {
        Self::new(EXIT, 0, 0, 0, 0)
    }
}

/// Longer jumps than the kernel can express do not fit into a program of the size that it takes either.
fn distance(skipped: usize) -> i16 {
    i16::try_from(skipped).unwrap_or(i16::MAX)
}

// Commands, types and flags of linux/bpf.h.
const PROGRAM_LOAD: libc::c_int = 5; // BPF_PROG_LOAD
const PROGRAM_ATTACH: libc::c_int = 8; // BPF_PROG_ATTACH
const TYPE_CGROUP_DEVICE: u32 = 15; // BPF_PROG_TYPE_CGROUP_DEVICE
const ATTACH_CGROUP_DEVICE: u32 = 6; // BPF_CGROUP_DEVICE
const ALLOW_MULTI: u32 = 2; // BPF_F_ALLOW_MULTI

/// The part of `union bpf_attr` that `BPF_PROG_LOAD` reads, up to `prog_flags`.
#[repr(C)]
struct LoadArguments {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// The part of `union bpf_attr` that `BPF_PROG_ATTACH` reads.
#[repr(C)]
struct AttachArguments {
    target: i32,
    program: i32,
    attach_type: u32,
    flags: u32,
}

/// Loads a program that decides about devices.
pub(crate) fn load_device_program(instructions: &[Instruction]) -> io::Result<OwnedFd> {
    let arguments = LoadArguments {
        program_type: TYPE_CGROUP_DEVICE,
        instruction_count: u32::try_from(instructions.len()).map_err(io::Error::other)?,
        instructions: instructions.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
    };
    // SAFETY: `arguments` begins a `union bpf_attr`, and the instructions and the license live through the call.
    let descriptor = unsafe { bpf(PROGRAM_LOAD, &arguments) }?;
    // SAFETY: the kernel has just made it, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Puts a program on a cgroup, beside those that it has.
pub(crate) fn attach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let arguments = AttachArguments {
        target: cgroup.as_raw_fd(),
        program: program.as_raw_fd(),
        attach_type: ATTACH_CGROUP_DEVICE,
        flags: ALLOW_MULTI,
    };
    // SAFETY: `arguments` begins a `union bpf_attr`, and has no pointer.
    unsafe { bpf(PROGRAM_ATTACH, &arguments) }.map(drop)
}

/// # Safety
///
/// `arguments` is laid out as the part of `union bpf_attr` that `command` reads, and its pointers are valid.
unsafe fn bpf<T>(command: libc::c_int, arguments: &T) -> io::Result<i32> {
    // SAFETY: the structure is of the size given, and as the caller says.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(arguments), size_of::<T>()) };
    i32::try_from(super::checked(result)?).map_err(io::Error::other)
}

/// Runs a program as the kernel would, on a context of 32-bit words.
#[cfg(test)]
pub(crate) fn run(program: &[Instruction], context: &[u32]) -> u64 {
    let mut registers = [0_u64; 11];
    let mut at = 0_usize;
    loop {
        let instruction = program[at];
        let destination = usize::from(instruction.registers & 15);
        let source = usize::from(instruction.registers >> 4);
        let immediate = i64::from(instruction.immediate) as u64;
        at += 1;
        let taken = match instruction.code {
            LOAD_WORD => {
                registers[destination] = context[usize::try_from(instruction.offset).unwrap() / 4].into();
                false
            }
            MOVE_IMMEDIATE => {
                registers[destination] = immediate;
                false
            }
            MOVE_REGISTER => {
                registers[destination] = registers[source];
                false
            }
            AND_IMMEDIATE => {
                registers[destination] &= immediate;
                false
            }
            SHIFT_RIGHT_IMMEDIATE => {
                registers[destination] >>= immediate;
                false
            }
            JUMP => true,
            JUMP_IF_EQUAL => registers[destination] as u32 == instruction.immediate as u32,
            JUMP_IF_DIFFERENT => registers[destination] as u32 != instruction.immediate as u32,
            EXIT => return registers[0],
            code => panic!("no such instruction: {code:#x}"),
        };
        if taken {
            at += usize::try_from(instruction.offset).unwrap();
        }
    }
}
