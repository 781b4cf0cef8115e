//! The spec of a pod that the Sandbox API makes: as that of a sandbox's container that only pauses would have been.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::pod_config::{LinuxPodSandboxConfig, NODE, PodSandboxConfig};
use crate::spec::annotations::{CONTAINER_TYPE, SANDBOX_CPU_SHARES};
use crate::spec::{Document, DocumentError, pause};

/// What a sandbox's container would have had as its spec on the host. A namespace that is to be the host's is left out, as
/// specs do it.
pub(super) fn of_pod(
    config: &PodSandboxConfig,
    namespace: &str,
    id: &str,
    network: &str,
) -> Result<Document, DocumentError> {
    let linux = config.linux();
    Document::from_value(json!({
        "ociVersion": "1.1.0",
        "hostname": config.hostname,
        "annotations": annotations(config),
        "process": {"args": [pause::PAUSE]},
        "linux": {
            "cgroupsPath": cgroups_path(&linux.cgroup_parent, namespace, id),
            "namespaces": namespaces(&linux, network),
            "resources": resources(&linux),
            "sysctl": linux.sysctls,
        },
    }))
}

/// Those of the pod, and as containerd's CRI plugin adds them: that it is one, and what it requests of CPUs, which no limit says.
fn annotations(config: &PodSandboxConfig) -> HashMap<String, String> {
    let mut annotations = config.annotations.clone();
    annotations.insert(CONTAINER_TYPE.to_owned(), "sandbox".to_owned());
    if let Some(resources) = config.linux().resources {
        annotations.insert(SANDBOX_CPU_SHARES.into(), resources.cpu_shares.to_string());
    }
    annotations
}

/// As containerd's CRI plugin forms it: below the pod's parent, in the form of the cgroup driver that the parent's name
/// tells; below containerd's namespace where there is no parent.
fn cgroups_path(parent: &str, namespace: &str, id: &str) -> String {
    match parent.trim_end_matches('/').rsplit('/').next() {
        Some("") | None => format!("/{namespace}/{id}"),
        Some(slice) if slice.ends_with(".slice") => format!("{slice}:cri-containerd:{id}"),
        Some(_) => format!("{}/{id}", parent.trim_end_matches('/')),
    }
}

fn namespaces(linux: &LinuxPodSandboxConfig, network: &str) -> Value {
    let options = linux.namespaces();
    let own = |kind: &str, mode: i32| (mode != NODE).then(|| json!({"type": kind}));
    let network = if network.is_empty() {
        json!({"type": "network"})
    } else {
        json!({"type": "network", "path": network})
    };
    let listed = [
        Some(json!({"type": "mount"})),
        Some(json!({"type": "uts"})),
        own("pid", options.pid),
        own("ipc", options.ipc),
        Some(network).filter(|_| options.network != NODE),
        options.users.filter(|users| users.mode != NODE).map(|_| json!({"type": "user"})),
    ];
    Value::Array(listed.into_iter().flatten().collect())
}

fn resources(linux: &LinuxPodSandboxConfig) -> Value {
    let resources = linux.resources.clone().unwrap_or_default();
    let pages: Vec<_> = resources
        .hugepage_limits
        .iter()
        .map(|limit| json!({"pageSize": limit.page_size, "limit": limit.limit}))
        .collect();
    json!({
        "memory": {"limit": resources.memory_limit_in_bytes},
        "cpu": {"quota": resources.cpu_quota, "period": resources.cpu_period},
        "hugepageLimits": pages,
    })
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::config::Config;
    use crate::sizing;

    #[test]
    fn a_pod_has_the_cpus_that_it_requests() {
        // 8: {5: {3: 3072}}
        let config = PodSandboxConfig::decode(&b"\x42\x05\x2a\x03\x18\x80\x18"[..]).unwrap();
        let document = of_pod(&config, "k8s.io", "p", "").unwrap();
        assert_eq!(sizing::size(&Config::default(), &document).unwrap().vcpus, 3);
    }

    #[test]
    fn the_pods_cgroup_is_where_containerd_would_have_it() {
        for (parent, expected) in [
            ("", "/k8s.io/p"),
            ("/kubepods/pod1", "/kubepods/pod1/p"),
            ("/kubepods.slice/kubepods-pod1.slice", "kubepods-pod1.slice:cri-containerd:p"),
        ] {
            assert_eq!(cgroups_path(parent, "k8s.io", "p"), expected);
        }
    }
}
