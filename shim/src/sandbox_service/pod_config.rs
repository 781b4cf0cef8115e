//! What CRI says of a pod, as far as the shim has a use for it (`runtime.v1.PodSandboxConfig` of
//! `k8s.io/cri-api/pkg/apis/runtime/v1/api.proto`).

use std::collections::{BTreeMap, HashMap};

use prost::Message;
use protobuf::well_known_types::any::Any;

use crate::pod::files::Names;

/// The message's name.
const TYPE: &str = "runtime.v1.PodSandboxConfig";

/// CRI's number for a namespace of the host's (`NamespaceMode`).
pub(super) const NODE: i32 = 2;

/// A pod to be.
#[derive(Clone, PartialEq, Message)]
pub(super) struct PodSandboxConfig {
    #[prost(string, tag = "2")]
    pub(super) hostname: String,
    #[prost(message, optional, tag = "4")]
    dns_config: Option<DnsConfig>,
    #[prost(map = "string, string", tag = "7")]
    pub(super) annotations: HashMap<String, String>,
    #[prost(message, optional, tag = "8")]
    linux: Option<LinuxPodSandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct DnsConfig {
    #[prost(string, repeated, tag = "1")]
    servers: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    searches: Vec<String>,
    #[prost(string, repeated, tag = "3")]
    options: Vec<String>,
}

/// The part that is Linux's.
#[derive(Clone, PartialEq, Message)]
pub(super) struct LinuxPodSandboxConfig {
    #[prost(string, tag = "1")]
    pub(super) cgroup_parent: String,
    #[prost(message, optional, tag = "2")]
    security_context: Option<LinuxSandboxSecurityContext>,
    #[prost(btree_map = "string, string", tag = "3")]
    pub(super) sysctls: BTreeMap<String, String>,
    #[prost(message, optional, tag = "5")]
    pub(super) resources: Option<LinuxContainerResources>,
}

#[derive(Clone, PartialEq, Message)]
struct LinuxSandboxSecurityContext {
    #[prost(message, optional, tag = "1")]
    namespace_options: Option<NamespaceOption>,
}

/// Whose namespaces a pod has: 0 for its own, [`NODE`] for the host's.
#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct NamespaceOption {
    #[prost(int32, tag = "1")]
    pub(super) network: i32,
    #[prost(int32, tag = "2")]
    pub(super) pid: i32,
    #[prost(int32, tag = "3")]
    pub(super) ipc: i32,
    #[prost(message, optional, tag = "5")]
    pub(super) users: Option<UserNamespace>,
}

/// Whose user namespace a pod has.
#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct UserNamespace {
    #[prost(int32, tag = "1")]
    pub(super) mode: i32,
}

/// What the containers of a pod may use together.
#[derive(Clone, PartialEq, Message)]
pub(super) struct LinuxContainerResources {
    #[prost(int64, tag = "1")]
    pub(super) cpu_period: i64,
    #[prost(int64, tag = "2")]
    pub(super) cpu_quota: i64,
    #[prost(int64, tag = "3")]
    pub(super) cpu_shares: i64,
    #[prost(int64, tag = "4")]
    pub(super) memory_limit_in_bytes: i64,
    #[prost(message, repeated, tag = "8")]
    pub(super) hugepage_limits: Vec<HugepageLimit>,
}

/// How much of the large pages of one size.
#[derive(Clone, PartialEq, Message)]
pub(super) struct HugepageLimit {
    #[prost(string, tag = "1")]
    pub(super) page_size: String,
    #[prost(uint64, tag = "2")]
    pub(super) limit: u64,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub(super) enum PodConfigError {
    /// Another message, or none.
    #[error(
        "the sandbox's options are of type {0:?}: they must be {TYPE}, as containerd's CRI plugin gives it"
    )]
    Type(String),
    /// Not that message.
    #[error("the sandbox's options are malformed: {0}")]
    Malformed(#[from] prost::DecodeError),
}

impl PodSandboxConfig {
    /// Reads a sandbox's options.
    ///
    /// # Errors
    /// They are something else.
    pub(super) fn read(options: Option<&Any>) -> Result<Self, PodConfigError> {
        let (name, value) =
            options.map_or(("", &[][..]), |options| (options.type_url.as_str(), options.value.as_slice()));
        if name.rsplit('/').next() != Some(TYPE) {
            return Err(PodConfigError::Type(name.chars().take(200).collect()));
        }
        Ok(Self::decode(value)?)
    }

    /// The part that is Linux's.
    pub(super) fn linux(&self) -> LinuxPodSandboxConfig {
        self.linux.clone().unwrap_or_default()
    }

    /// How the pod's names are resolved.
    pub(super) fn names(&self) -> Names {
        let mut resolver = String::new();
        if let Some(dns) = &self.dns_config {
            let line = |key: &str, words: &[String]| format!("{key} {}\n", words.join(" "));
            if !dns.searches.is_empty() {
                resolver += &line("search", &dns.searches);
            }
            resolver.extend(dns.servers.iter().map(|server| format!("nameserver {server}\n")));
            if !dns.options.is_empty() {
                resolver += &line("options", &dns.options);
            }
        }
        Names { hostname: self.hostname.clone(), resolver }
    }
}

impl LinuxPodSandboxConfig {
    /// Whose namespaces the pod has.
    pub(super) fn namespaces(&self) -> NamespaceOption {
        self.security_context.as_ref().and_then(|context| context.namespace_options).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_configuration_is_read_and_what_is_none_is_refused_by_its_type() {
        // 2: "web", 4: {1: "192.0.2.1", 2: "a.test", 3: "ndots:3"}
        let value = b"\x12\x03web\x22\x1c\x0a\x09192.0.2.1\x12\x06a.test\x1a\x07ndots:3".to_vec();
        let options = Any { type_url: TYPE.into(), value, ..Default::default() };
        let config = PodSandboxConfig::read(Some(&options)).unwrap();
        let resolver = "search a.test\nnameserver 192.0.2.1\noptions ndots:3\n".to_owned();
        assert_eq!(config.names(), Names { hostname: "web".into(), resolver });

        let other = Any { type_url: "runtimeoptions.v1.Options".into(), ..Default::default() };
        for (options, words) in [(None, "\"\""), (Some(&other), "runtimeoptions.v1.Options")] {
            let message = PodSandboxConfig::read(options).unwrap_err().to_string();
            assert!(message.contains(words) && message.contains(TYPE), "{message}");
        }
        let broken = Any { type_url: TYPE.into(), value: vec![0x12, 0xff], ..Default::default() };
        assert!(matches!(PodSandboxConfig::read(Some(&broken)), Err(PodConfigError::Malformed(_))));
    }
}
