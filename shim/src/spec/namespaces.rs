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
/// those of its process in the guest.
///
/// # Errors
/// A namespace that the guest cannot give.
pub(crate) fn translate(
    spec: &mut Map<String, Value>,
    sandbox: Option<PodSandbox>,
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
                network = path.filter(|path| !is_of(sandbox, kind, path)).map(Path::to_owned);
            }
            (_, None) => kept.push(entry),
            (kind, Some(path)) => kept.push(joined(kind, path, sandbox)?),
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

fn joined(kind: &str, path: &Path, sandbox: Option<PodSandbox>) -> Result<Value, NamespaceError> {
    match sandbox.filter(|_| is_of(sandbox, kind, path)) {
        Some(sandbox) => Ok(json!({
            "type": kind,
            "path": format!("/proc/{}/ns/{}", sandbox.guest_pid, proc_name(kind)),
        })),
        None => Err(NamespaceError::Foreign { kind: kind.to_owned(), path: path.to_owned() }),
    }
}

/// Whether `path` is that of the sandbox's namespace of this kind.
fn is_of(sandbox: Option<PodSandbox>, kind: &str, path: &Path) -> bool {
    sandbox.is_some_and(|sandbox| {
        path == Path::new(&format!("/proc/{}/ns/{}", sandbox.host_pid, proc_name(kind)))
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

    #[test]
    fn the_sandboxs_namespaces_become_those_of_its_process_in_the_guest() {
        let sandbox = Some(PodSandbox { host_pid: 77, guest_pid: 5 });
        let mut spec = spec(json!([{"type": "pid", "path": "/proc/77/ns/pid"},
            {"type": "ipc", "path": "/proc/77/ns/ipc"}, {"type": "network", "path": "/proc/77/ns/net"}]));
        assert_eq!(translate(&mut spec, sandbox), Ok(None), "the network is the pod's already");
        assert_eq!(
            spec["linux"]["namespaces"],
            json!([{"type": "pid", "path": "/proc/5/ns/pid"}, {"type": "ipc", "path": "/proc/5/ns/ipc"}])
        );
    }

    #[test]
    fn a_namespace_of_the_host_is_refused_with_its_path() {
        let listed = json!([{"type": "pid", "path": "/proc/1/ns/pid"}, {"type": "ipc"}, {"type": "network"}]);
        let sandbox = Some(PodSandbox { host_pid: 77, guest_pid: 5 });
        let message = translate(&mut spec(listed), sandbox).unwrap_err().to_string();
        assert!(message.contains("/proc/1/ns/pid"), "{message}");
    }

    #[test]
    fn an_unknown_type_is_refused_by_name() {
        let listed = json!([{"type": "quantum"}]);
        assert_eq!(translate(&mut spec(listed), None), Err(NamespaceError::Unknown("quantum".into())));
    }
}
