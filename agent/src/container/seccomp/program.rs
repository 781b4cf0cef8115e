//! A policy as classic BPF, which the kernel runs on a `struct seccomp_data` for each system call.
//!
//! The number is looked up by a binary search, so that neither installing the filter nor a call that it lets through
//! costs more than a few steps.

use libc::{
    BPF_ABS, BPF_ALU, BPF_AND, BPF_JA, BPF_JEQ, BPF_JGE, BPF_JGT, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W,
    sock_filter,
};

use super::policy::{Comparison, Condition, Decision, Policy, Rule};
use crate::error::SpecError;

/// `BPF_MAXINSNS` of linux/bpf_common.h.
const LIMIT: usize = 4096;

/// `AUDIT_ARCH_*` of linux/audit.h.
pub(super) const WIDE: u32 = 0xc000_003e;
pub(super) const NARROW: u32 = 0x4000_0003;
/// `__X32_SYSCALL_BIT` of asm/unistd.h.
const X32_BIT: u32 = 0x4000_0000;
/// `SECCOMP_RET_KILL_THREAD` of linux/seccomp.h: what libseccomp does with programs of another architecture.
const KILL: u32 = 0;

// Offsets in `struct seccomp_data` of linux/seccomp.h.
pub(super) const NUMBER: u32 = 0;
pub(super) const ARCHITECTURE: u32 = 4;
pub(super) const ARGUMENTS: u32 = 16;

type Program = Vec<sock_filter>;

/// Puts the whole filter together.
pub(super) fn assemble(policy: &Policy) -> Result<Program, SpecError> {
    let mut program = vec![load(ARCHITECTURE)];
    if let Some(narrow) = &policy.narrow {
        let body = [vec![load(NUMBER)], search(&narrow.from)].concat();
        program.extend([compare(BPF_JEQ, NARROW, 1, 0), jump(body.len())]);
        program.extend(body);
    }
    program.extend([compare(BPF_JEQ, WIDE, 1, 0), answer(KILL), load(NUMBER)]);
    if policy.x32 {
        program.push(and(!X32_BIT));
    } else {
        program.extend([compare(BPF_JGE, X32_BIT, 0, 1), answer(KILL)]);
    }
    program.extend(search(&policy.wide.from));
    if program.len() > LIMIT {
        let problem = format!("makes {} instructions; the kernel takes {LIMIT}", program.len());
        return Err(SpecError::invalid("linux.seccomp.syscalls", problem));
    }
    Ok(program)
}

/// Finds the range that the number is in, which is loaded.
fn search(ranges: &[(u32, Decision)]) -> Program {
    let Some(((_, only), rest)) = ranges.split_first() else {
        return vec![answer(KILL)];
    };
    if rest.is_empty() {
        return decide(only);
    }
    let (lower, upper) = ranges.split_at(ranges.len() / 2);
    let first_of_upper = upper.first().map_or(0, |(number, _)| *number);
    let (lower, upper) = (search(lower), search(upper));
    let mut program = vec![compare(BPF_JGE, first_of_upper, 0, 1), jump(lower.len())];
    program.extend(lower);
    program.extend(upper);
    program
}

fn decide(decision: &Decision) -> Program {
    match decision {
        Decision::Always(action) => vec![answer(*action)],
        Decision::Rules(rules, otherwise) => {
            let mut program: Program = rules.iter().flat_map(try_rule).collect();
            program.push(answer(*otherwise));
            program
        }
    }
}

/// Answers if all conditions hold; goes on behind otherwise.
fn try_rule(rule: &Rule) -> Program {
    let mut program = vec![answer(rule.action)];
    for condition in rule.conditions.iter().rev() {
        program = [test(condition, program.len()), program].concat();
    }
    program
}

/// Where a step of a test goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum To {
    /// The next step.
    On,
    /// Behind the test: the condition holds.
    Holds,
    /// Behind the rule: it does not.
    Fails,
}

/// Goes on behind itself if the condition holds; otherwise passes over `rest` instructions more.
fn test(condition: &Condition, rest: usize) -> Program {
    let offset = ARGUMENTS + 8 * u32::from(condition.argument);
    let (low, high) = (condition.value as u32, (condition.value >> 32) as u32);
    // The machine is little-endian: the upper half lies behind the lower.
    let (load_low, load_high) = (Step::Do(load(offset)), Step::Do(load(offset + 4)));
    let if_else = |operation, value, then, otherwise| Step::If(operation, value, then, otherwise);
    let steps = match condition.comparison {
        Comparison::Equal => vec![
            load_high,
            if_else(BPF_JEQ, high, To::On, To::Fails),
            load_low,
            if_else(BPF_JEQ, low, To::Holds, To::Fails),
        ],
        Comparison::NotEqual => vec![
            load_high,
            if_else(BPF_JEQ, high, To::On, To::Holds),
            load_low,
            if_else(BPF_JEQ, low, To::Fails, To::Holds),
        ],
        Comparison::Greater | Comparison::GreaterOrEqual => vec![
            load_high,
            if_else(BPF_JGT, high, To::Holds, To::On),
            if_else(BPF_JEQ, high, To::On, To::Fails),
            load_low,
            if_else(
                if condition.comparison == Comparison::Greater { BPF_JGT } else { BPF_JGE },
                low,
                To::Holds,
                To::Fails,
            ),
        ],
        Comparison::Less | Comparison::LessOrEqual => vec![
            load_high,
            if_else(BPF_JGT, high, To::Fails, To::On),
            if_else(BPF_JEQ, high, To::On, To::Holds),
            load_low,
            if_else(
                if condition.comparison == Comparison::LessOrEqual { BPF_JGT } else { BPF_JGE },
                low,
                To::Fails,
                To::Holds,
            ),
        ],
        Comparison::MaskedEqual(mask) => vec![
            load_high,
            Step::Do(and((mask >> 32) as u32)),
            if_else(BPF_JEQ, high, To::On, To::Fails),
            load_low,
            Step::Do(and(mask as u32)),
            if_else(BPF_JEQ, low, To::Holds, To::Fails),
        ],
    };
    place(&steps, rest)
}

/// A step of a test, before it is known how far jumps go.
#[derive(Clone, Copy)]
enum Step {
    Do(sock_filter),
    If(u32, u32, To, To),
}

fn place(steps: &[Step], rest: usize) -> Program {
    let distance = |index: usize, to: To| {
        let behind = steps.len() - index - 1;
        // Six conditions of at most six steps and an answer: far less than the 255 that fit.
        (match to {
            To::On => 0,
            To::Holds => behind,
            To::Fails => behind + rest,
        }) as u8
    };
    let one = |(index, step): (usize, &Step)| match *step {
        Step::Do(instruction) => instruction,
        Step::If(operation, value, then, otherwise) => {
            compare(operation, value, distance(index, then), distance(index, otherwise))
        }
    };
    steps.iter().enumerate().map(one).collect()
}

fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt, jf, k }
}

fn load(offset: u32) -> sock_filter {
    instruction(BPF_LD | BPF_W | BPF_ABS, 0, 0, offset)
}

fn and(mask: u32) -> sock_filter {
    instruction(BPF_ALU | BPF_AND | BPF_K, 0, 0, mask)
}

fn compare(operation: u32, value: u32, then: u8, otherwise: u8) -> sock_filter {
    instruction(BPF_JMP | operation | BPF_K, then, otherwise, value)
}

/// Programs that are too long for a jump are refused as a whole.
fn jump(skipped: usize) -> sock_filter {
    instruction(BPF_JMP | BPF_JA, 0, 0, u32::try_from(skipped).unwrap_or(u32::MAX))
}

fn answer(action: u32) -> sock_filter {
    instruction(BPF_RET | BPF_K, 0, 0, action)
}

#[cfg(test)]
mod tests {
    use super::super::machine::{Call, run};
    use super::super::policy::{Calls, read};
    use super::*;
    use proptest::prelude::*;

    fn holds(condition: &Condition, argument: u64) -> bool {
        match condition.comparison {
            Comparison::Equal => argument == condition.value,
            Comparison::NotEqual => argument != condition.value,
            Comparison::Less => argument < condition.value,
            Comparison::LessOrEqual => argument <= condition.value,
            Comparison::Greater => argument > condition.value,
            Comparison::GreaterOrEqual => argument >= condition.value,
            Comparison::MaskedEqual(mask) => argument & mask == condition.value,
        }
    }

    /// What a policy means, said without a program.
    fn model(calls: &Calls, number: u32, arguments: &[u64; 6]) -> u32 {
        let (_, decision) = calls.from.iter().rev().find(|(from, _)| *from <= number).unwrap();
        match decision {
            Decision::Always(action) => *action,
            Decision::Rules(rules, otherwise) => rules
                .iter()
                .find(|rule| rule.conditions.iter().all(|c| holds(c, arguments[usize::from(c.argument)])))
                .map_or(*otherwise, |rule| rule.action),
        }
    }

    /// Values near each other in both halves, so that comparisons are close.
    fn value() -> impl Strategy<Value = u64> {
        (0..3_u64, 0..3_u64).prop_map(|(high, low)| high << 32 | low)
    }

    fn condition() -> impl Strategy<Value = Condition> {
        let comparison = prop_oneof![
            Just(Comparison::Equal),
            Just(Comparison::NotEqual),
            Just(Comparison::Less),
            Just(Comparison::LessOrEqual),
            Just(Comparison::Greater),
            Just(Comparison::GreaterOrEqual),
            value().prop_map(Comparison::MaskedEqual),
        ];
        (0..6_u8, comparison, value()).prop_map(|(argument, comparison, value)| Condition {
            argument,
            comparison,
            value,
        })
    }

    fn decision() -> impl Strategy<Value = Decision> {
        let rule = (proptest::collection::vec(condition(), 1..6), 1..9_u32)
            .prop_map(|(conditions, action)| Rule { conditions, action });
        prop_oneof![
            (1..9_u32).prop_map(Decision::Always),
            (proptest::collection::vec(rule, 1..4), 1..9_u32)
                .prop_map(|(rules, otherwise)| Decision::Rules(rules, otherwise)),
        ]
    }

    fn calls() -> impl Strategy<Value = Calls> {
        proptest::collection::btree_map(0..40_u32, decision(), 0..30).prop_map(|mut decisions| {
            decisions.entry(0).or_insert(Decision::Always(9));
            Calls { from: decisions.into_iter().collect() }
        })
    }

    proptest! {
        #[test]
        fn the_program_decides_as_the_policy_says(
            wide in calls(),
            narrow in proptest::option::of(calls()),
            x32 in any::<bool>(),
            arguments in proptest::collection::vec(value(), 6),
        ) {
            let arguments: [u64; 6] = arguments.try_into().unwrap();
            let policy = Policy { wide, narrow, x32 };
            let program = assemble(&policy).unwrap();
            for number in 0..42 {
                let call = |architecture, number| run(&program, &Call { architecture, number, arguments });
                let expected = model(&policy.wide, number, &arguments);
                prop_assert_eq!(call(WIDE, number), expected);
                prop_assert_eq!(call(WIDE, number | X32_BIT), if x32 { expected } else { KILL });
                let expected = policy.narrow.as_ref().map_or(KILL, |narrow| model(narrow, number, &arguments));
                prop_assert_eq!(call(NARROW, number), expected);
                prop_assert_eq!(call(1, number), KILL);
            }
        }
    }

    #[test]
    fn a_filter_that_allows_all_but_one_call_is_short() {
        let seccomp = serde_json::from_str(
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_ERRNO"}]}"#,
        );
        let program = assemble(&read(&seccomp.unwrap()).unwrap()).unwrap();
        assert!(program.len() < 16, "{} instructions", program.len());
    }
}
