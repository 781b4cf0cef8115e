//! Device rules as a BPF program of type `BPF_PROG_TYPE_CGROUP_DEVICE`.
//!
//! The kernel calls it with a `struct bpf_cgroup_dev_ctx` in register 1: at offset 0 the kind of device in the lower
//! and the wanted access in the upper 16 bits, at 4 the major number, at 8 the minor. It returns 1 to allow.

use super::rules::{MKNOD, READ, Rule, WRITE};
use crate::error::SpecError;
use crate::sys::bpf::Instruction;

/// The most instructions that Linux takes of one program without privilege; no set of rules that makes sense comes near.
const LIMIT: usize = 4096;

// Registers: the result, the context, and what is read of the context.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// For each kind of access by itself, the last rule that speaks of it decides; all that are wanted must be allowed.
pub(super) fn compile(rules: &[Rule]) -> Result<Vec<Instruction>, SpecError> {
    let mut program = vec![
        Instruction::load_word(KIND, CONTEXT, 0),
        Instruction::copy(ACCESS, KIND),
        Instruction::and(KIND, 0xffff),
        Instruction::shift_right(ACCESS, 16),
        Instruction::load_word(MAJOR, CONTEXT, 4),
        Instruction::load_word(MINOR, CONTEXT, 8),
    ];
    for access in [MKNOD, READ, WRITE] {
        append_access(&mut program, rules, access);
    }
    program.extend([Instruction::set(RESULT, 1), Instruction::exit()]);
    if program.len() > LIMIT {
        let problem = format!("has {} rules, too many for one program of the kernel", rules.len());
        return Err(SpecError::invalid("linux.resources.devices", problem));
    }
    Ok(program)
}

fn append_access(program: &mut Vec<Instruction>, rules: &[Rule], access: u32) {
    let decisions = decide(rules, access);
    program.extend([
        Instruction::copy(RESULT, ACCESS),
        Instruction::and(RESULT, access),
        Instruction::jump_if_equal(RESULT, 0, decisions.len()),
    ]);
    program.extend(decisions);
}

/// Ends the program with 0, or goes on behind the last of these instructions.
fn decide(rules: &[Rule], access: u32) -> Vec<Instruction> {
    let deny = [Instruction::set(RESULT, 0), Instruction::exit()];
    // Put together from the end, where it is known how far a jump goes.
    let mut after: Vec<Instruction> = deny.to_vec();
    for rule in rules.iter().filter(|rule| rule.access & access != 0) {
        let verdict = if rule.allow { vec![Instruction::jump(after.len())] } else { deny.to_vec() };
        let conditions = [(KIND, rule.kind), (MAJOR, rule.major), (MINOR, rule.minor)];
        let conditions: Vec<(u8, u32)> =
            conditions.into_iter().filter_map(|(register, value)| Some((register, value?))).collect();
        let mut block = Vec::new();
        for (index, (register, value)) in conditions.iter().enumerate() {
            let past_block = conditions.len() - index - 1 + verdict.len();
            block.push(Instruction::jump_if_different(*register, *value, past_block));
        }
        block.extend(verdict);
        // What an unconditional rule would leave to earlier ones is never reached, and the kernel wants none such.
        if conditions.is_empty() {
            after = if rule.allow { Vec::new() } else { deny.to_vec() };
        } else {
            block.extend(after);
            after = block;
        }
    }
    after
}

#[cfg(test)]
mod tests {
    use super::super::rules::{BLOCK, CHARACTER};
    use super::*;
    use crate::sys::bpf::run;
    use proptest::prelude::*;

    /// What the rules mean, said without a program.
    fn model(rules: &[Rule], kind: u32, major: u32, minor: u32, wanted: u32) -> bool {
        [MKNOD, READ, WRITE].into_iter().filter(|access| wanted & access != 0).all(|access| {
            let speaks = |rule: &&Rule| {
                rule.access & access != 0
                    && rule.kind.is_none_or(|value| value == kind)
                    && rule.major.is_none_or(|value| value == major)
                    && rule.minor.is_none_or(|value| value == minor)
            };
            rules.iter().rev().find(speaks).is_some_and(|rule| rule.allow)
        })
    }

    fn rule() -> impl Strategy<Value = Rule> {
        let number = || proptest::option::of(0..3_u32);
        let kind = proptest::option::of(BLOCK..=CHARACTER);
        (any::<bool>(), kind, number(), number(), 1..8_u32)
            .prop_map(|(allow, kind, major, minor, access)| Rule { allow, kind, major, minor, access })
    }

    proptest! {
        #[test]
        fn the_program_decides_as_the_rules_say(rules in proptest::collection::vec(rule(), 0..12)) {
            let program = compile(&rules).unwrap();
            for kind in BLOCK..=CHARACTER {
                for major in 0..3 {
                    for minor in 0..3 {
                        for wanted in 1..8 {
                            let context = [wanted << 16 | kind, major, minor];
                            let allowed = run(&program, &context) == 1;
                            prop_assert_eq!(allowed, model(&rules, kind, major, minor, wanted));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn the_kernel_takes_the_program_for_the_usual_rules() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let rules = Rule::all_from_spec(
            &serde_json::from_str::<Vec<_>>(
                r#"[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":10,"minor":229,"access":"rwm"}]"#,
            )
            .unwrap(),
        );
        crate::sys::bpf::load_device_program(&compile(&rules.unwrap()).unwrap()).unwrap();
        let all = Rule { allow: true, kind: None, major: None, minor: None, access: 7 };
        crate::sys::bpf::load_device_program(&compile(&[all]).unwrap()).unwrap();
        crate::sys::bpf::load_device_program(&compile(&[]).unwrap()).unwrap();
    }

    #[test]
    fn too_many_rules_are_refused() {
        let rule = Rule { allow: true, kind: Some(BLOCK), major: Some(1), minor: Some(1), access: 7 };
        assert!(compile(&vec![rule; 1000]).is_err());
    }
}
