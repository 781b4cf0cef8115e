//! The spec's namespaces, which are the guest's: what would need the host's is refused.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::Document;

/// The container whose namespaces the others of a pod may join.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PodSandbox {
    /// The pid that containerd knows it by, on the host.
    pub(crate) host_pid: u32,
    /// Its first process's pid in the guest.
    pub(crate) guest_pid: u32,
}

/// A container of a pod that has a pid namespace of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PidNamespace {
    /// The container's id.
    pub(crate) container: String,
    /// Its first process's pid in the guest, unless that has ended.
    pub(crate) guest_pid: Option<u32>,
}

/// What a container of a pod may join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodNamespaces {
    /// The pod's own.
    pub(crate) sandbox: PodSandbox,
    /// The pid namespaces of its other containers, as far as they do not share the pod's.
    pub(crate) of_containers: Vec<PidNamespace>,
}

/// A namespace that the guest cannot give.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum NamespaceError {
    /// The spec asks for the host's by leaving it out.
    #[error(
        "the host's {0} namespace cannot be shared with a container in a virtual machine: \
         give the container a {0} namespace of its own or its pod's"
    )]
    Host(&'static str),
    /// The spec names a namespace by a path that is not the pod's.
    #[error(
        "linux.namespaces: {kind} at {path:?} is a namespace of the host, which a virtual machine cannot join"
    )]
    Foreign {
        /// The kind.
        kind: String,
        /// The path.
        path: PathBuf,
    },
    /// The pid namespace of one of several containers.
    #[error(
        "linux.namespaces: pid at {path:?} is that of a container of the pod, but which of {containers:?} is not said: \
         containerd knows all containers of a virtual machine by one pid. A container can join the processes of another \
         (kubectl debug --target) in a pod of one container, or with shareProcessNamespace; use kubectl exec otherwise"
    )]
    Ambiguous {
        /// The path.
        path: PathBuf,
        /// The containers.
        containers: Vec<String>,
    },
    /// The pid namespace of a container that runs no more.
    #[error("linux.namespaces: container {0}, whose pid namespace is to be joined, has ended")]
    Ended(String),
    /// No kind of namespace.
    #[error("linux.namespaces: type {0:?} is not known")]
    Unknown(String),
    /// Not a list of objects with a type.
    #[error("linux.namespaces: each must be an object with a type")]
    Malformed,
}

const KINDS: [&str; 8] = ["pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time"];

/// The namespaces without which a container would run in the host's, which it cannot.
const NEEDED: [&str; 3] = ["network", "pid", "ipc"];

/// The path of the network namespace that the spec names, if it does.
pub(crate) fn network_path(spec: &Document) -> Option<PathBuf> {
    let listed = spec.value().pointer("/linux/namespaces")?.as_array()?;
    let (_, path) =
        listed.iter().filter_map(|entry| read(entry).ok()).find(|(kind, _)| *kind == "network")?;
    path.map(Path::to_owned)
}

/// Rewrites `linux.namespaces` for the guest and returns the path of the network namespace, if the spec names one
/// that is not the sandbox's.
///
/// The guest as a whole is the pod's network namespace, so the entry goes. Paths of the sandbox's namespaces become
/// those of its process in the guest, but for that of the pid namespace where another container has its own: nobody else is in
/// the sandbox's then, and that container is meant (CRI's `NamespaceMode` `TARGET`), which containerd knows by the same pid.
///
/// # Errors
/// A namespace that the guest cannot give.
pub(crate) fn translate(
    spec: &mut Map<String, Value>,
    pod: Option<&PodNamespaces>,
) -> Result<Option<PathBuf>, NamespaceError> {
    let linux = spec.entry("linux").or_insert_with(|| json!({}));
    let linux = linux.as_object_mut().ok_or(NamespaceError::Malformed)?;
    let listed = match linux.remove("namespaces") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(listed)) => listed,
        Some(_) => return Err(NamespaceError::Malformed),
    };
    let mut kept = Vec::with_capacity(listed.len());
    let mut seen = Vec::with_capacity(listed.len());
    let mut network = None;
    for entry in listed {
        let (kind, path) = read(&entry)?;
        seen.push(kind.to_owned());
        match (kind, path) {
            ("network", path) => {
                network = path.filter(|path| !is_of(pod, kind, path)).map(Path::to_owned);
            }
            (_, None) => kept.push(entry),
            (kind, Some(path)) => kept.push(joined(kind, path, pod)?),
        }
    }
    for kind in NEEDED {
        if !seen.iter().any(|seen| seen == kind) {
            return Err(NamespaceError::Host(kind));
        }
    }
    linux.insert("namespaces".into(), Value::Array(kept));
    Ok(network)
}

fn read(entry: &Value) -> Result<(&str, Option<&Path>), NamespaceError> {
    let kind = entry.get("type").and_then(Value::as_str).ok_or(NamespaceError::Malformed)?;
    if !KINDS.contains(&kind) {
        return Err(NamespaceError::Unknown(kind.chars().take(100).collect()));
    }
    let path = match entry.get("path") {
        None | Some(Value::Null) => None,
        Some(Value::String(path)) if path.is_empty() => None,
        Some(Value::String(path)) => Some(Path::new(path)),
        Some(_) => return Err(NamespaceError::Malformed),
    };
    Ok((kind, path))
}

fn joined(kind: &str, path: &Path, pod: Option<&PodNamespaces>) -> Result<Value, NamespaceError> {
    let Some(pod) = pod.filter(|_| is_of(pod, kind, path)) else {
        return Err(NamespaceError::Foreign { kind: kind.to_owned(), path: path.to_owned() });
    };
    let guest_pid = if kind == "pid" { pid_namespace(path, pod)? } else { pod.sandbox.guest_pid };
    Ok(json!({"type": kind, "path": format!("/proc/{guest_pid}/ns/{}", proc_name(kind))}))
}

/// The pid in the guest of the process whose pid namespace is meant by the pod's `path`.
fn pid_namespace(path: &Path, pod: &PodNamespaces) -> Result<u32, NamespaceError> {
    match pod.of_containers.as_slice() {
        [] => Ok(pod.sandbox.guest_pid),
        [target] => target.guest_pid.ok_or_else(|| NamespaceError::Ended(target.container.clone())),
        several => {
            let mut containers: Vec<_> = several.iter().map(|one| one.container.clone()).collect();
            containers.sort();
            Err(NamespaceError::Ambiguous { path: path.to_owned(), containers })
        }
    }
}

/// Whether `path` is that of the sandbox's namespace of this kind.
fn is_of(pod: Option<&PodNamespaces>, kind: &str, path: &Path) -> bool {
    pod.is_some_and(|pod| {
        path == Path::new(&format!("/proc/{}/ns/{}", pod.sandbox.host_pid, proc_name(kind)))
    })
}

/// The file below `/proc/<pid>/ns` (namespaces(7)).
fn proc_name(kind: &str) -> &str {
    match kind {
        "network" => "net",
        "mount" => "mnt",
        other => other,
    }
}

#[cfg(test)]
#[allow(clippy::needless_pass_by_value, reason = "json!() is handed over")]
mod tests {
    use super::*;

    fn spec(namespaces: Value) -> Map<String, Value> {
        json!({"linux": {"namespaces": namespaces}}).as_object().unwrap().clone()
    }

    fn own() -> Value {
        json!([{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}])
    }

    #[test]
    fn the_network_namespace_goes_and_the_others_stay() {
        let mut spec = spec(own());
        assert_eq!(translate(&mut spec, None), Ok(None));
        assert_eq!(
            spec["linux"]["namespaces"],
            json!([{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}])
        );
    }

    #[test]
    fn the_pods_network_namespace_is_reported() {
        let mut spec = spec(json!([{"type": "pid"}, {"type": "ipc"},
            {"type": "network", "path": "/var/run/netns/cni-1"}]));
        assert_eq!(translate(&mut spec, None), Ok(Some("/var/run/netns/cni-1".into())));
    }

    #[test]
    fn leaving_a_namespace_out_asks_for_the_hosts_and_is_refused_by_name() {
        for kind in NEEDED {
            let rest =
                own().as_array().unwrap().iter().filter(|entry| entry["type"] != kind).cloned().collect();
            assert_eq!(translate(&mut spec(Value::Array(rest)), None), Err(NamespaceError::Host(kind)));
        }
    }

    fn pod(of_containers: &[(&str, Option<u32>)]) -> PodNamespaces {
        let own = |(container, guest_pid): &(&str, _)| PidNamespace {
            container: (*container).to_owned(),
            guest_pid: *guest_pid,
        };
        PodNamespaces {
            sandbox: PodSandbox { host_pid: 77, guest_pid: 5 },
            of_containers: of_containers.iter().map(own).collect(),
        }
    }

    #[test]
    fn the_sandboxs_namespaces_become_those_of_its_process_in_the_guest() {
        let mut spec = spec(json!([{"type": "pid", "path": "/proc/77/ns/pid"},
            {"type": "ipc", "path": "/proc/77/ns/ipc"}, {"type": "network", "path": "/proc/77/ns/net"}]));
        assert_eq!(translate(&mut spec, Some(&pod(&[]))), Ok(None), "the network is the pod's already");
        assert_eq!(
            spec["linux"]["namespaces"],
            json!([{"type": "pid", "path": "/proc/5/ns/pid"}, {"type": "ipc", "path": "/proc/5/ns/ipc"}])
        );
    }

    fn targeted(of_containers: &[(&str, Option<u32>)]) -> Result<Value, NamespaceError> {
        let mut spec = spec(json!([{"type": "pid", "path": "/proc/77/ns/pid"},
            {"type": "ipc", "path": "/proc/77/ns/ipc"}, {"type": "network"}]));
        translate(&mut spec, Some(&pod(of_containers)))?;
        Ok(spec["linux"]["namespaces"].clone())
    }

    #[test]
    fn the_one_container_with_a_pid_namespace_of_its_own_is_the_one_whose_processes_are_joined() {
        assert_eq!(
            targeted(&[("web", Some(9))]),
            Ok(json!([{"type": "pid", "path": "/proc/9/ns/pid"}, {"type": "ipc", "path": "/proc/5/ns/ipc"}]))
        );
        assert_eq!(targeted(&[("web", None)]), Err(NamespaceError::Ended("web".into())));
    }

    #[test]
    fn of_several_containers_none_is_guessed_and_the_refusal_says_what_to_do() {
        for log in [Some(11), None] {
            let message = targeted(&[("web", Some(9)), ("log", log)]).unwrap_err().to_string();
            for word in ["[\"log\", \"web\"]", "/proc/77/ns/pid", "shareProcessNamespace", "kubectl exec"] {
                assert!(message.contains(word), "{word}: {message}");
            }
        }
    }

    #[test]
    fn a_namespace_of_the_host_is_refused_with_its_path() {
        let listed = json!([{"type": "pid", "path": "/proc/1/ns/pid"}, {"type": "ipc"}, {"type": "network"}]);
        let message = translate(&mut spec(listed), Some(&pod(&[]))).unwrap_err().to_string();
        assert!(message.contains("/proc/1/ns/pid"), "{message}");
    }

    #[test]
    fn an_unknown_type_is_refused_by_name() {
        let listed = json!([{"type": "quantum"}]);
        assert_eq!(translate(&mut spec(listed), None), Err(NamespaceError::Unknown("quantum".into())));
    }
}
