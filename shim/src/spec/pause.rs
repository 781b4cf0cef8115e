//! The process that holds a pod's namespaces: a program of the guest's own, wherever a pause image would do no more.

use saya_agent_api::{AGENT_PROGRAM, HOLD_POD, POD_ROOT};
use serde_json::{Map, Value, json};

use super::Document;
use super::annotations::CONTAINER_TYPE;
use super::namespaces::{self, NamespaceError};

/// Where the program is in the process's root.
const PROGRAM: &str = "/pod";

/// What the pause images of Kubernetes run, and those made after them.
pub(crate) const PAUSE: &str = "/pause";

/// The user and group of the process: they own nothing.
const NOBODY: u32 = 65_535;

/// What CRI gives a pause container: a guest without memory ends others first.
const OOM_SCORE: i32 = -998;

/// Whether this is CRI's container that makes a pod, and does nothing else: the guest then needs no file of its image. One
/// in a user namespace is not among these, since its root has to belong to that namespace's root.
pub(crate) fn is_pause(spec: &Document) -> bool {
    let is_sandbox = spec.annotation(CONTAINER_TYPE) == Some("sandbox");
    is_sandbox && spec.value().pointer("/process/args") == Some(&json!([PAUSE])) && !has_user_namespace(spec)
}

fn has_user_namespace(spec: &Document) -> bool {
    let listed = spec.value().pointer("/linux/namespaces").and_then(Value::as_array);
    listed.into_iter().flatten().any(|entry| entry["type"] == "user")
}

/// The spec for the agent of the process that is to hold the namespaces of the pod `id`; none where the container that makes
/// the pod does more.
///
/// # Errors
/// A namespace that the guest cannot give.
pub(crate) fn holder(spec: &Document, id: &str) -> Result<Option<Value>, NamespaceError> {
    let Some(mut spec) = spec.value().as_object().filter(|_| is_pause(spec)).cloned() else {
        return Ok(None);
    };
    namespaces::translate(&mut spec, None)?;
    Ok(Some(holding(&spec, id)))
}

/// The guest's own program in an empty root, as nobody and without rights. Of `spec`, whose namespaces are translated, it has what
/// the pod's containers share.
pub(super) fn holding(spec: &Map<String, Value>, id: &str) -> Value {
    let linux = |key: &str| spec.get("linux").and_then(|linux| linux.get(key)).cloned().unwrap_or_default();
    json!({
        "ociVersion": "1.1.0",
        "hostname": spec.get("hostname").cloned().unwrap_or_default(),
        "domainname": spec.get("domainname").cloned().unwrap_or_default(),
        "root": {"path": POD_ROOT, "readonly": true},
        "mounts": [{"destination": PROGRAM, "type": "bind", "source": AGENT_PROGRAM, "options": ["bind", "ro"]}],
        "process": {
            "args": [PROGRAM, HOLD_POD],
            "cwd": "/",
            "user": {"uid": NOBODY, "gid": NOBODY},
            "noNewPrivileges": true,
            "oomScoreAdj": OOM_SCORE,
        },
        "linux": {
            "cgroupsPath": format!("/{id}"),
            "namespaces": linux("namespaces"),
            "sysctl": linux("sysctl"),
        },
    })
}
#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox(arguments: &Value, namespaces: &Value) -> Document {
        let spec = json!({
            "annotations": {"io.kubernetes.cri.container-type": "sandbox"},
            "process": {"args": arguments},
            "linux": {"namespaces": namespaces},
        });
        Document::from_value(spec).unwrap()
    }

    #[test]
    fn a_sandbox_that_does_more_than_pause_or_is_of_a_user_namespace_runs_its_own_program() {
        let own = json!([{"type": "pid"}]);
        assert!(is_pause(&sandbox(&json!(["/pause"]), &own)));
        assert!(!is_pause(&sandbox(&json!(["/pause", "-v"]), &own)));
        assert!(!is_pause(&sandbox(&json!(["/serve"]), &own)));
        assert!(!is_pause(&sandbox(&json!(["/pause"]), &json!([{"type": "pid"}, {"type": "user"}]))));
        let container = json!({"process": {"args": ["/pause"]}});
        assert!(!is_pause(&Document::from_value(container).unwrap()));
    }
}
