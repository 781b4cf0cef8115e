//! The kernel's machine for filters, for tests.

use libc::{
    BPF_ABS, BPF_ALU, BPF_AND, BPF_JA, BPF_JEQ, BPF_JGE, BPF_JGT, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W,
    sock_filter,
};

use super::program::{ARCHITECTURE, ARGUMENTS, NUMBER};

/// A call as the filter sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    pub(super) architecture: u32,
    pub(super) number: u32,
    pub(super) arguments: [u64; 6],
}

/// Runs a filter as the kernel would.
pub(super) fn run(program: &[sock_filter], call: &Call) -> u32 {
    let word = |offset: u32| match offset {
        NUMBER => call.number,
        ARCHITECTURE => call.architecture,
        _ => {
            let argument = call.arguments[((offset - ARGUMENTS) / 8) as usize];
            if offset.is_multiple_of(8) { argument as u32 } else { (argument >> 32) as u32 }
        }
    };
    let (mut at, mut value) = (0, 0_u32);
    loop {
        let step = program[at];
        at += 1;
        let holds = match u32::from(step.code) {
            code if code == BPF_LD | BPF_W | BPF_ABS => {
                value = word(step.k);
                continue;
            }
            code if code == BPF_ALU | BPF_AND | BPF_K => {
                value &= step.k;
                continue;
            }
            code if code == BPF_JMP | BPF_JA => {
                at += step.k as usize;
                continue;
            }
            code if code == BPF_RET | BPF_K => return step.k,
            code if code == BPF_JMP | BPF_JEQ | BPF_K => value == step.k,
            code if code == BPF_JMP | BPF_JGT | BPF_K => value > step.k,
            code if code == BPF_JMP | BPF_JGE | BPF_K => value >= step.k,
            code => panic!("no such instruction: {code:#x}"),
        };
        at += usize::from(if holds { step.jt } else { step.jf });
    }
}
