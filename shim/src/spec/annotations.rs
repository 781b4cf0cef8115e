//! The annotations that the shim reads.

use serde_json::Value;

/// `sandbox` or `container`, set by containerd's CRI plugin.
pub(crate) const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";
/// The id of the sandbox that a container belongs to, set by containerd's CRI plugin.
pub(crate) const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";
/// Kubernetes' own id of the pod, set by containerd's CRI plugin since 1.6.11.
pub(crate) const SANDBOX_UID: &str = "io.kubernetes.cri.sandbox-uid";
/// The pod's CPU quota per period in microseconds, set by containerd's CRI plugin.
pub(crate) const SANDBOX_CPU_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
/// The pod's CPU period in microseconds, set by containerd's CRI plugin.
pub(crate) const SANDBOX_CPU_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";
/// What the pod requests of CPUs, in shares, set by containerd's CRI plugin.
pub(crate) const SANDBOX_CPU_SHARES: &str = "io.kubernetes.cri.sandbox-cpu-shares";
/// The pod's memory limit in bytes, set by containerd's CRI plugin.
pub(crate) const SANDBOX_MEMORY: &str = "io.kubernetes.cri.sandbox-memory";

/// What the annotations begin with by which a pod sets keys of the configuration.
pub(crate) const SETTING_PREFIX: &str = "io.saya.config.";

/// What annotations begin with that are meant for a runtime like this one.
const RUNTIME_PREFIXES: [&str; 2] = ["io.saya.", "io.katacontainers."];

/// An annotation that asks this runtime for something that it does not know.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "annotation {0:?} is not supported: a pod's size follows from its limits, and what else it may set of the configuration \
     it sets by {SETTING_PREFIX}KEY, where the configuration's allowed_annotations lists KEY"
)]
pub(crate) struct UnknownAnnotation(String);

/// Checks that no annotation asks this runtime for what would be ignored. Those of others pass, and those by which a pod sets
/// keys of the configuration.
///
/// # Errors
/// The first such annotation.
pub(crate) fn check(spec: &Value) -> Result<(), UnknownAnnotation> {
    let annotations = spec.get("annotations").and_then(Value::as_object);
    let is_unknown = |key: &&String| {
        RUNTIME_PREFIXES.iter().any(|prefix| key.starts_with(prefix)) && !key.starts_with(SETTING_PREFIX)
    };
    match annotations.and_then(|annotations| annotations.keys().find(is_unknown)) {
        Some(key) => Err(UnknownAnnotation(key.chars().take(200).collect())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_annotation_that_would_be_ignored_is_refused_by_name_and_those_of_others_pass() {
        let spec = json!({"annotations": {"io.kubernetes.cri.container-type": "sandbox", "note": "x"}});
        assert_eq!(check(&spec), Ok(()));
        assert_eq!(check(&json!({"annotations": {"io.saya.config.vcpus": "2"}})), Ok(()));
        for key in
            ["io.saya.colour", "io.katacontainers.config.hypervisor.default_vcpus", "io.katacontainers.x"]
        {
            let message = check(&json!({"annotations": {key: "2"}})).unwrap_err().to_string();
            assert!(message.contains(key) && message.contains("io.saya.config.KEY"), "{message}");
        }
    }
}
