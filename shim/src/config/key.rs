//! The keys of the configuration that a pod may be allowed to set for itself.

use serde::Deserialize;

/// A key that a pod may be allowed to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) enum Key {
    /// `vcpus`.
    Vcpus,
    /// `memory`.
    Memory,
    /// `memory_overhead`.
    MemoryOverhead,
    /// `kernel_parameters`.
    KernelParameters,
    /// `console_verbose`.
    ConsoleVerbose,
    /// `boot_timeout`.
    BootTimeout,
    /// `agent_timeout`.
    AgentTimeout,
}

/// A key that no pod may be allowed to set.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum KeyError {
    /// Which files of the host are opened and run with the operator's rights.
    #[error(
        "allowed_annotations: no pod may set {0}: which of the host's files a guest is made of is the operator's to say"
    )]
    File(String),
    /// One that is not for a pod to say.
    #[error("allowed_annotations: no pod may set {0}: it is the node's")]
    Node(String),
    /// No key of the configuration.
    #[error("allowed_annotations: {0:?} is no key of the configuration")]
    Unknown(String),
}

impl Key {
    /// All of them.
    pub(crate) const ALL: [Self; 7] = [
        Self::Vcpus,
        Self::Memory,
        Self::MemoryOverhead,
        Self::KernelParameters,
        Self::ConsoleVerbose,
        Self::BootTimeout,
        Self::AgentTimeout,
    ];

    /// Its name in the file.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Vcpus => "vcpus",
            Self::Memory => "memory",
            Self::MemoryOverhead => "memory_overhead",
            Self::KernelParameters => "kernel_parameters",
            Self::ConsoleVerbose => "console_verbose",
            Self::BootTimeout => "boot_timeout",
            Self::AgentTimeout => "agent_timeout",
        }
    }
}

impl TryFrom<String> for Key {
    type Error = KeyError;

    fn try_from(name: String) -> Result<Self, KeyError> {
        match name.as_str() {
            "kernel" | "initramfs" => Err(KeyError::File(name)),
            "allowed_annotations" | "ignore_packet_filters" | "shim_version" => Err(KeyError::Node(name)),
            _ => match Self::ALL.into_iter().find(|key| key.name() == name) {
                Some(key) => Ok(key),
                None => Err(KeyError::Unknown(name.chars().take(200).collect())),
            },
        }
    }
}
