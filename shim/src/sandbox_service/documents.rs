//! The two specs of a pod that the Sandbox API makes: what its virtual machine is to be, and its own process in there.

use serde_json::{Map, Value, json};

use super::pod_config::{LinuxPodSandboxConfig, NODE, PodSandboxConfig};
use crate::spec::{Document, DocumentError, pause};

/// The user and group of the pod's own process: they own nothing.
const NOBODY: u32 = 65_535;

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
        "annotations": config.annotations,
        "linux": {
            "cgroupsPath": cgroups_path(&linux.cgroup_parent, namespace, id),
            "namespaces": namespaces(&linux, network),
            "resources": resources(&linux),
        },
    }))
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

/// The process that holds the pod's namespaces, for the agent. `namespaces` are as they were translated for the guest.
pub(super) fn of_process(config: &PodSandboxConfig, id: &str, namespaces: &Value) -> Value {
    let mut spec = Map::new();
    spec.insert("ociVersion".into(), json!("1.1.0"));
    if !config.hostname.is_empty() {
        spec.insert("hostname".into(), json!(config.hostname));
    }
    spec.insert("process".into(), json!({"user": {"uid": NOBODY, "gid": NOBODY}, "noNewPrivileges": true}));
    pause::hold_pod(&mut spec);
    spec.insert(
        "linux".into(),
        json!({
            "cgroupsPath": format!("/{id}"),
            "namespaces": namespaces,
            "sysctl": config.linux().sysctls,
        }),
    );
    Value::Object(spec)
}

#[cfg(test)]
mod tests {
    use super::*;

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
