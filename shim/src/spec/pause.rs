//! The process that holds a pod's namespaces: a program of the guest's own, wherever a pause image would do no more.

use saya_agent_api::{AGENT_PROGRAM, HOLD_POD, POD_ROOT};
use serde_json::{Map, Value, json};

use super::Document;
use super::annotations::CONTAINER_TYPE;

/// Where the program is in the process's root.
const PROGRAM: &str = "/pod";

/// What the pause images of Kubernetes run, and those made after them.
const PAUSE: &str = "/pause";

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

/// Has the guest's own program be the process of `spec`, in an empty root. User and rights stay as they are.
pub(crate) fn hold_pod(spec: &mut Map<String, Value>) {
    spec.insert("root".into(), json!({"path": POD_ROOT, "readonly": true}));
    let program =
        json!({"destination": PROGRAM, "type": "bind", "source": AGENT_PROGRAM, "options": ["bind", "ro"]});
    spec.insert("mounts".into(), json!([program]));
    if let Some(process) = spec.entry("process").or_insert_with(|| json!({})).as_object_mut() {
        process.insert("args".into(), json!([PROGRAM, HOLD_POD]));
        process.insert("cwd".into(), json!("/"));
    }
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
