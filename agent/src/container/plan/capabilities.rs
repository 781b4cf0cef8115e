//! `process.capabilities`: the five sets as bit masks.

use oci_spec::runtime::{Capabilities as Names, LinuxCapabilities};

/// Sets of capabilities; bit n is capability n of linux/capability.h.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Capabilities {
    /// What can be gained at all.
    pub(crate) bounding: u64,
    /// What is in force.
    pub(crate) effective: u64,
    /// What an exec keeps if the file says so.
    pub(crate) inheritable: u64,
    /// What may be put in force.
    pub(crate) permitted: u64,
    /// What an exec keeps for one who is not root.
    pub(crate) ambient: u64,
}

/// The names of linux/capability.h without `CAP_`, in the order of their numbers.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// How many capabilities there are.
pub(crate) const COUNT: u32 = NAMES.len() as u32;

impl Capabilities {
    /// Reads the sets; one that is not there is empty, as is all of them when there is no object at all.
    pub(super) fn from_spec(capabilities: Option<&LinuxCapabilities>) -> Self {
        let Some(sets) = capabilities else {
            return Self::default();
        };
        Self {
            bounding: mask(sets.bounding().as_ref()),
            effective: mask(sets.effective().as_ref()),
            inheritable: mask(sets.inheritable().as_ref()),
            permitted: mask(sets.permitted().as_ref()),
            ambient: mask(sets.ambient().as_ref()),
        }
    }
}

fn mask(names: Option<&Names>) -> u64 {
    names.into_iter().flatten().map(|name| bit(&name.to_string())).fold(0, |mask, bit| mask | bit)
}

fn bit(name: &str) -> u64 {
    let name = name.strip_prefix("CAP_").unwrap_or(name);
    NAMES.iter().position(|known| *known == name).map_or(0, |number| 1 << number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::Capability;

    #[test]
    fn every_capability_that_the_spec_can_name_has_its_number() {
        for (number, name) in NAMES.iter().enumerate() {
            let parsed: Capability = serde_json::from_str(&format!("\"CAP_{name}\"")).unwrap();
            assert_eq!(bit(&parsed.to_string()), 1 << number, "{name}");
        }
    }

    #[test]
    fn sets_that_are_not_named_are_empty() {
        let sets: LinuxCapabilities =
            serde_json::from_str(r#"{"bounding":["CAP_CHOWN","CAP_KILL"],"effective":["CAP_KILL"]}"#)
                .unwrap();
        let read = Capabilities::from_spec(Some(&sets));
        assert_eq!(read, Capabilities { bounding: 0b10_0001, effective: 0b10_0000, ..Default::default() });
        assert_eq!(Capabilities::from_spec(None), Capabilities::default());
    }
}
