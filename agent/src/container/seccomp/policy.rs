//! What the spec's rules mean for each system call, as libseccomp and runc read them:
//!
//! - A name that the kernel does not have is passed over.
//! - A rule whose action is the default one adds nothing and is passed over.
//! - Two conditions on one argument make two rules; otherwise all conditions of a rule must hold.
//! - A rule without conditions decides alone, wherever it stands. Of several with conditions the first that holds
//!   decides.
//! - A call that is newer than all that the spec names fails with ENOSYS if the default is not to allow: the spec's
//!   author cannot have meant it, and programs know what to do without it.

use std::collections::BTreeMap;

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall,
};

use super::table::SYSTEM_CALLS;
use crate::error::SpecError;

const FIELD: &str = "linux.seccomp";

/// `SECCOMP_RET_*` of linux/seccomp.h.
const RETURN_ERRNO: u32 = 0x0005_0000;

/// `MAX_ERRNO` of linux/err.h.
const LARGEST_ERRNO: u32 = 4095;

/// How an argument is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    /// Equal in the bits of this mask.
    MaskedEqual(u64),
}

/// What must hold of one argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    /// 0 to 5.
    pub(super) argument: u8,
    pub(super) comparison: Comparison,
    pub(super) value: u64,
}

/// What happens to calls for which all conditions hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) conditions: Vec<Condition>,
    /// `SECCOMP_RET_*`, with its data.
    pub(super) action: u32,
}

/// What happens to calls of some number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    Always(u32),
    /// The first rule that holds, or else the action behind.
    Rules(Vec<Rule>, u32),
}

/// What happens to the calls of one kind of program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Calls {
    /// Each decision holds from its number up to the next one's, which is larger; the first number is 0.
    pub(super) from: Vec<(u32, Decision)>,
}

/// What happens to all calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Policy {
    /// Of 64-bit programs.
    pub(super) wide: Calls,
    /// Of 32-bit programs; `None` where the spec does not name their architecture.
    pub(super) narrow: Option<Calls>,
    /// Whether the spec names the architecture of programs with 32-bit pointers in 64-bit mode. The guest's kernel
    /// runs none: their calls get the decision of the same number, and then fail.
    pub(super) x32: bool,
}

/// A kind of program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Width {
    Wide,
    Narrow,
}

/// Reads the spec.
pub(super) fn read(seccomp: &LinuxSeccomp) -> Result<Policy, SpecError> {
    refuse_listener(seccomp)?;
    let default =
        action(&format!("{FIELD}.defaultAction"), seccomp.default_action(), seccomp.default_errno_ret())?;
    let rules = seccomp.syscalls().as_deref().unwrap_or_default();
    let architectures = seccomp.architectures().as_deref().unwrap_or_default();
    let names = |architecture| architectures.contains(&architecture);
    let narrow =
        names(Arch::ScmpArchX86).then(|| calls(Width::Narrow, seccomp, default, rules)).transpose()?;
    Ok(Policy { wide: calls(Width::Wide, seccomp, default, rules)?, narrow, x32: names(Arch::ScmpArchX32) })
}

fn refuse_listener(seccomp: &LinuxSeccomp) -> Result<(), SpecError> {
    if seccomp.listener_path().as_ref().is_some_and(|path| !path.as_os_str().is_empty()) {
        let problem = "the listener would be outside the guest, where its calls mean nothing";
        return Err(SpecError::not_supported(format!("{FIELD}.listenerPath"), problem));
    }
    if seccomp.listener_metadata().as_ref().is_some_and(|metadata| !metadata.is_empty()) {
        let problem = "there is no listener that could read it";
        return Err(SpecError::not_supported(format!("{FIELD}.listenerMetadata"), problem));
    }
    Ok(())
}

/// An action with its data as the kernel takes it.
fn action(field: &str, action: LinuxSeccompAction, errno: Option<u32>) -> Result<u32, SpecError> {
    if action == LinuxSeccompAction::ScmpActNotify {
        let problem =
            "SCMP_ACT_NOTIFY: the listener would be outside the guest, where its calls mean nothing";
        return Err(SpecError::not_supported(field, problem));
    }
    let with_data = matches!(action, LinuxSeccompAction::ScmpActErrno | LinuxSeccompAction::ScmpActTrace);
    match errno {
        Some(errno) if with_data && errno > LARGEST_ERRNO => {
            Err(SpecError::invalid(field, format!("has the errno {errno}; {LARGEST_ERRNO} is the largest")))
        }
        _ => Ok(action.as_u32(errno)),
    }
}

fn permissive(action: LinuxSeccompAction) -> bool {
    matches!(
        action,
        LinuxSeccompAction::ScmpActAllow | LinuxSeccompAction::ScmpActLog | LinuxSeccompAction::ScmpActTrace
    )
}

/// The rules for each number.
#[derive(Debug, Default)]
struct Collected {
    /// Without conditions.
    always: BTreeMap<u32, u32>,
    conditional: BTreeMap<u32, Vec<Rule>>,
    /// The largest number that the spec names at all, be it as the call through which another is reached.
    largest: Option<u32>,
}

fn calls(
    width: Width,
    seccomp: &LinuxSeccomp,
    default: u32,
    rules: &[LinuxSyscall],
) -> Result<Calls, SpecError> {
    let mut collected = Collected::default();
    for (index, rule) in rules.iter().enumerate() {
        collect(&mut collected, width, index, rule, default)?;
    }
    let beyond = match collected.largest {
        Some(largest) if !permissive(seccomp.default_action()) => {
            Some((largest + 1, RETURN_ERRNO | libc::ENOSYS.cast_unsigned()))
        }
        _ => None,
    };
    Ok(spread(&collected, default, beyond))
}

fn collect(
    collected: &mut Collected,
    width: Width,
    index: usize,
    rule: &LinuxSyscall,
    default: u32,
) -> Result<(), SpecError> {
    let field = format!("{FIELD}.syscalls[{index}]");
    let action = action(&field, rule.action(), rule.errno_ret())?;
    let conditions = conditions(&field, width, rule.args().as_deref().unwrap_or_default())?;
    for name in rule.names() {
        if let Some(number) = number(width, name) {
            collected.largest = collected.largest.max(Some(number));
            if action != default {
                collected.add(number, &conditions, action, || format!("{field}: {name}"))?;
            }
        }
        if let Some((number, call)) = multiplexed(width, name) {
            collected.largest = collected.largest.max(Some(number));
            if action != default && conditions.is_empty() {
                let through = Condition { argument: 0, comparison: Comparison::Equal, value: call };
                collected.add(number, &[vec![through]], action, || format!("{field}: {name}"))?;
            }
        }
    }
    Ok(())
}

impl Collected {
    /// `alternatives` are sets of conditions, each a rule; none at all is a rule without conditions.
    fn add(
        &mut self,
        number: u32,
        alternatives: &[Vec<Condition>],
        action: u32,
        field: impl Fn() -> String,
    ) -> Result<(), SpecError> {
        for conditions in alternatives {
            let rule = Rule { conditions: conditions.clone(), action };
            let rules = self.conditional.entry(number).or_default();
            if !rules.contains(&rule) {
                rules.push(rule);
            }
        }
        if alternatives.is_empty()
            && let Some(other) = self.always.insert(number, action)
            && other != action
        {
            return Err(SpecError::invalid(field(), "has two actions, both without conditions"));
        }
        Ok(())
    }
}

/// The conditions as sets of which one must hold.
fn conditions(
    field: &str,
    width: Width,
    arguments: &[LinuxSeccompArg],
) -> Result<Vec<Vec<Condition>>, SpecError> {
    let read = arguments
        .iter()
        .enumerate()
        .map(|(index, argument)| condition(&format!("{field}.args[{index}]"), width, argument))
        .collect::<Result<Vec<_>, _>>()?;
    let twice = read
        .iter()
        .enumerate()
        .any(|(index, one)| read.iter().take(index).any(|other| other.argument == one.argument));
    Ok(if read.is_empty() {
        Vec::new()
    } else if twice {
        read.into_iter().map(|condition| vec![condition]).collect()
    } else {
        vec![read]
    })
}

fn condition(field: &str, width: Width, argument: &LinuxSeccompArg) -> Result<Condition, SpecError> {
    // Arguments of 32-bit programs are 32 bits wide.
    let fit = |value: u64| if width == Width::Narrow { value & 0xffff_ffff } else { value };
    let number = match u8::try_from(argument.index()) {
        Ok(number) if number < 6 => number,
        _ => {
            let problem = format!("is {}; a system call has arguments 0 to 5", argument.index());
            return Err(SpecError::invalid(format!("{field}.index"), problem));
        }
    };
    let value = fit(argument.value());
    let (comparison, value) = match argument.op() {
        LinuxSeccompOperator::ScmpCmpEq => (Comparison::Equal, value),
        LinuxSeccompOperator::ScmpCmpNe => (Comparison::NotEqual, value),
        LinuxSeccompOperator::ScmpCmpLt => (Comparison::Less, value),
        LinuxSeccompOperator::ScmpCmpLe => (Comparison::LessOrEqual, value),
        LinuxSeccompOperator::ScmpCmpGt => (Comparison::Greater, value),
        LinuxSeccompOperator::ScmpCmpGe => (Comparison::GreaterOrEqual, value),
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            (Comparison::MaskedEqual(value), fit(argument.value_two().unwrap_or(0)))
        }
    };
    Ok(Condition { argument: number, comparison, value })
}

fn number(width: Width, name: &str) -> Option<u32> {
    let index = SYSTEM_CALLS.binary_search_by_key(&name, |entry| entry.0).ok()?;
    let (_, wide, narrow) = SYSTEM_CALLS.get(index)?;
    u32::try_from(if width == Width::Wide { *wide } else { *narrow }).ok()
}

/// 32-bit programs can reach some calls through `socketcall` and `ipc`, whose first argument says which
/// (linux/net.h, linux/ipc.h).
fn multiplexed(width: Width, name: &str) -> Option<(u32, u64)> {
    const SOCKET_CALLS: [&str; 20] = [
        "socket",
        "bind",
        "connect",
        "listen",
        "accept",
        "getsockname",
        "getpeername",
        "socketpair",
        "send",
        "recv",
        "sendto",
        "recvfrom",
        "shutdown",
        "setsockopt",
        "getsockopt",
        "sendmsg",
        "recvmsg",
        "accept4",
        "recvmmsg",
        "sendmmsg",
    ];
    const IPC_CALLS: [(&str, u64); 12] = [
        ("semop", 1),
        ("semget", 2),
        ("semctl", 3),
        ("semtimedop", 4),
        ("msgsnd", 11),
        ("msgrcv", 12),
        ("msgget", 13),
        ("msgctl", 14),
        ("shmat", 21),
        ("shmdt", 22),
        ("shmget", 23),
        ("shmctl", 24),
    ];
    if width == Width::Wide {
        return None;
    }
    if let Some(call) = SOCKET_CALLS.iter().position(|known| *known == name) {
        return Some((number(width, "socketcall")?, call as u64 + 1));
    }
    let (_, call) = IPC_CALLS.iter().find(|(known, _)| *known == name)?;
    Some((number(width, "ipc")?, *call))
}

/// The decisions over all numbers, neighbours with the same one put together.
fn spread(collected: &Collected, default: u32, beyond: Option<(u32, u32)>) -> Calls {
    let mut decided: BTreeMap<u32, Decision> = BTreeMap::new();
    for (number, rules) in &collected.conditional {
        decided.insert(*number, Decision::Rules(rules.clone(), default));
    }
    for (number, action) in &collected.always {
        decided.insert(*number, Decision::Always(*action));
    }
    let mut from: Vec<(u32, Decision)> = Vec::new();
    let mut put = |number: u32, decision: Decision| {
        if from.last().is_none_or(|(_, last)| *last != decision) {
            from.push((number, decision));
        }
    };
    let mut next = 0;
    for (number, decision) in decided {
        if number > next {
            put(next, Decision::Always(default));
        }
        put(number, decision);
        next = number + 1;
    }
    if beyond.is_none_or(|(number, _)| number > next) {
        put(next, Decision::Always(default));
    }
    if let Some((number, action)) = beyond {
        put(number, Decision::Always(action));
    }
    Calls { from }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(json: &str) -> Result<Policy, SpecError> {
        read(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn neighbours_with_one_decision_are_one_range() {
        let policy = policy(
            r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[
                {"names":["read","write","open","no_such_call"],"action":"SCMP_ACT_ALLOW"},
                {"names":["close"],"action":"SCMP_ACT_ERRNO"}]}"#,
        );
        let allow = Decision::Always(0x7fff_0000);
        let deny = Decision::Always(0x0005_0001);
        let unknown = Decision::Always(0x0005_0000 | 38);
        assert_eq!(policy.unwrap().wide.from, [(0, allow), (3, deny), (4, unknown)]);
    }

    #[test]
    fn a_call_that_is_reached_through_another_counts_as_that_other() {
        let allow = 0x7fff_0000;
        let deny = 0x0005_0001;
        let through = |call| Rule {
            conditions: vec![Condition { argument: 0, comparison: Comparison::Equal, value: call }],
            action: allow,
        };
        // socketcall is number 102, in which accept is 5 and send is 9; neither has a number of its own.
        let sockets = [
            (102, Decision::Rules(vec![through(5), through(9)], deny)),
            (103, Decision::Always(0x0005_0000 | 38)),
        ];
        let table = [
            (r#""accept","send""#, vec![(0, Decision::Always(deny))]),
            (
                r#""accept","read","send""#,
                vec![(0, Decision::Always(deny)), (3, Decision::Always(allow)), (4, Decision::Always(deny))],
            ),
        ];
        for (names, below) in table {
            let policy = policy(&format!(
                r#"{{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86"],
                    "syscalls":[{{"names":[{names}],"action":"SCMP_ACT_ALLOW"}}]}}"#
            ));
            let from = policy.unwrap().narrow.unwrap().from;
            assert!(from.windows(2).all(|pair| pair[0].0 < pair[1].0), "{names}: {from:?}");
            assert_eq!(from, [below.as_slice(), &sockets].concat(), "{names}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_filter_is_named() {
        let table = [
            (
                r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#,
                "linux.seccomp.defaultAction: not supported: SCMP_ACT_NOTIFY",
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":5000}"#,
                "linux.seccomp.defaultAction: has",
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/x"}"#,
                "linux.seccomp.listenerPath: not supported",
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_KILL",
                    "args":[{"index":6,"value":1,"op":"SCMP_CMP_EQ"}]}]}"#,
                "linux.seccomp.syscalls[0].args[0].index: is 6",
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_KILL"},
                    {"names":["read"],"action":"SCMP_ACT_TRAP"}]}"#,
                "linux.seccomp.syscalls[1]: read: has two actions",
            ),
        ];
        for (json, start) in table {
            let message = policy(json).unwrap_err().to_string();
            assert!(message.starts_with(start), "{json}: {message}");
        }
    }
}
