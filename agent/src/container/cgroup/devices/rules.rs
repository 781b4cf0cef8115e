//! The rules for devices.

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use crate::error::SpecError;

/// Bits of `BPF_DEVCG_ACC_*` in linux/bpf.h.
pub(super) const MKNOD: u32 = 1;
pub(super) const READ: u32 = 2;
pub(super) const WRITE: u32 = 4;
/// `BPF_DEVCG_DEV_*` in linux/bpf.h.
pub(super) const BLOCK: u32 = 1;
pub(super) const CHARACTER: u32 = 2;

/// Allows or denies some kinds of access to some devices. The last rule that speaks of a device and a kind of access
/// decides; where none does, it is denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) allow: bool,
    /// [`BLOCK`] or [`CHARACTER`]; `None` is both.
    pub(super) kind: Option<u32>,
    /// `None` is all.
    pub(super) major: Option<u32>,
    /// `None` is all.
    pub(super) minor: Option<u32>,
    /// Bits of the kinds of access.
    pub(super) access: u32,
}

const fn allowed(kind: u32, major: Option<u32>, minor: Option<u32>, access: u32) -> Rule {
    Rule { allow: true, kind: Some(kind), major, minor, access }
}

const ALL: u32 = MKNOD | READ | WRITE;

/// What every container may use whatever the spec says, as with other runtimes: it may make any node, and use the
/// default devices, its console and terminals.
const ALWAYS: [Rule; 11] = [
    allowed(CHARACTER, None, None, MKNOD),
    allowed(BLOCK, None, None, MKNOD),
    allowed(CHARACTER, Some(1), Some(3), ALL),
    allowed(CHARACTER, Some(1), Some(5), ALL),
    allowed(CHARACTER, Some(1), Some(7), ALL),
    allowed(CHARACTER, Some(1), Some(8), ALL),
    allowed(CHARACTER, Some(1), Some(9), ALL),
    allowed(CHARACTER, Some(5), Some(0), ALL),
    allowed(CHARACTER, Some(5), Some(1), ALL),
    allowed(CHARACTER, Some(5), Some(2), ALL),
    allowed(CHARACTER, Some(136), None, ALL),
];

impl Rule {
    /// The spec's rules, and those that always hold.
    pub(super) fn all_from_spec(rules: &[LinuxDeviceCgroup]) -> Result<Vec<Self>, SpecError> {
        let mut read = rules
            .iter()
            .enumerate()
            .map(|(index, rule)| from_spec(index, rule))
            .collect::<Result<Vec<_>, _>>()?;
        read.extend(ALWAYS);
        Ok(read)
    }
}

fn from_spec(index: usize, rule: &LinuxDeviceCgroup) -> Result<Rule, SpecError> {
    let field = |name: &str| format!("linux.resources.devices[{index}].{name}");
    let kind = match rule.typ().unwrap_or_default() {
        LinuxDeviceType::A => None,
        LinuxDeviceType::B => Some(BLOCK),
        LinuxDeviceType::C | LinuxDeviceType::U => Some(CHARACTER),
        LinuxDeviceType::P => {
            return Err(SpecError::invalid(field("type"), "is \"p\", but a fifo is not a device"));
        }
    };
    Ok(Rule {
        allow: rule.allow(),
        kind,
        major: number(field("major"), rule.major())?,
        minor: number(field("minor"), rule.minor())?,
        access: access(field("access"), rule.access().as_deref().unwrap_or_default())?,
    })
}

/// -1 is all, as is nothing.
fn number(field: String, value: Option<i64>) -> Result<Option<u32>, SpecError> {
    match value {
        None | Some(-1) => Ok(None),
        Some(value) => match u32::try_from(value) {
            Ok(value) => Ok(Some(value)),
            Err(_) => {
                Err(SpecError::invalid(field, format!("is {value}; it is a device number, or -1 for all")))
            }
        },
    }
}

fn access(field: String, letters: &str) -> Result<u32, SpecError> {
    let mut access = 0;
    for letter in letters.chars() {
        access |= match letter {
            'r' => READ,
            'w' => WRITE,
            'm' => MKNOD,
            _ => {
                return Err(SpecError::invalid(field, format!("is {letters:?}; its letters are r, w and m")));
            }
        };
    }
    if access == 0 {
        return Err(SpecError::invalid(field, "is empty; its letters are r, w and m"));
    }
    Ok(access)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Vec<Rule>, String> {
        let rules: Vec<LinuxDeviceCgroup> = serde_json::from_str(json).unwrap();
        Rule::all_from_spec(&rules).map_err(|error| error.to_string())
    }

    #[test]
    fn rules_are_read_as_the_spec_means_them() {
        let rules = read(
            r#"[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":10,"minor":-1,"access":"r"}]"#,
        );
        let rules = rules.unwrap();
        assert_eq!(rules[0], Rule { allow: false, kind: None, major: None, minor: None, access: ALL });
        assert_eq!(
            rules[1],
            Rule { allow: true, kind: Some(CHARACTER), major: Some(10), minor: None, access: READ }
        );
        assert_eq!(rules[2..], ALWAYS);
    }

    #[test]
    fn what_is_wrong_with_a_rule_is_named() {
        let table = [
            (r#"[{"allow":true,"access":"rx"}]"#, "linux.resources.devices[0].access: is \"rx\""),
            (r#"[{"allow":true}]"#, "linux.resources.devices[0].access: is empty"),
            (r#"[{"allow":true,"type":"p","access":"r"}]"#, "linux.resources.devices[0].type: is \"p\""),
            (r#"[{"allow":true,"major":-2,"access":"r"}]"#, "linux.resources.devices[0].major: is -2"),
        ];
        for (json, start) in table {
            let message = read(json).unwrap_err();
            assert!(message.starts_with(start), "{json}: {message}");
        }
    }
}
