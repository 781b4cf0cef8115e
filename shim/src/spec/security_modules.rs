//! AppArmor and SELinux. The guest's kernel has neither, and a node that has one puts something of it into every spec: what
//! nobody has asked for is taken out, and what somebody has is left for the agent to refuse by name.

use std::sync::Once;

use serde_json::{Map, Value};

/// The AppArmor profiles that a container has whose user names none, as containerd's CRI plugin, Docker and nerdctl call theirs,
/// and what asks for none.
const DEFAULT_PROFILES: [&str; 4] =
    ["cri-containerd.apparmor.d", "docker-default", "nerdctl-default", "unconfined"];

static LABELS_TOLD: Once = Once::new();

/// Takes out of a `process` what a node's defaults say of it. `of_cri` is whether containerd's CRI plugin has written it: on a
/// node with SELinux that labels every container, whatever the pod's author says.
pub(crate) fn take_from_process(process: &mut Map<String, Value>, of_cri: bool) {
    let profile = process.get("apparmorProfile").and_then(Value::as_str);
    if profile.is_some_and(|profile| DEFAULT_PROFILES.contains(&profile)) {
        process.remove("apparmorProfile");
    }
    if of_cri {
        take_label(process, "selinuxLabel");
    }
}

/// The same of a whole spec.
pub(crate) fn take_from_spec(spec: &mut Map<String, Value>, of_cri: bool) {
    if let Some(process) = spec.get_mut("process").and_then(Value::as_object_mut) {
        take_from_process(process, of_cri);
    }
    if let Some(linux) = spec.get_mut("linux").and_then(Value::as_object_mut).filter(|_| of_cri) {
        take_label(linux, "mountLabel");
    }
}

/// Takes a label out, and says once in this shim's life that it does.
fn take_label(object: &mut Map<String, Value>, field: &str) {
    let label = object.remove(field);
    if let Some(label) = label.as_ref().and_then(Value::as_str).filter(|label| !label.is_empty()) {
        LABELS_TOLD.call_once(|| {
            tracing::warn!(
                field,
                label,
                "SELinux labels of containers have no effect: the guest has no SELinux, and its VMM keeps containerd's label"
            );
        });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn taken(mut spec: Value, of_cri: bool) -> Value {
        take_from_spec(spec.as_object_mut().unwrap(), of_cri);
        spec
    }

    #[test]
    fn a_nodes_default_profile_is_taken_out_and_one_that_was_asked_for_stays_to_be_refused() {
        for profile in DEFAULT_PROFILES {
            for of_cri in [true, false] {
                let spec = json!({"process": {"apparmorProfile": profile, "cwd": "/"}});
                assert_eq!(taken(spec, of_cri), json!({"process": {"cwd": "/"}}), "{profile}");
            }
        }
        let asked = json!({"process": {"apparmorProfile": "my-profile"}});
        assert_eq!(taken(asked.clone(), true), asked);
    }

    #[test]
    fn labels_that_cri_gives_every_container_are_taken_out_and_those_of_others_stay_to_be_refused() {
        let spec = json!({
            "process": {"selinuxLabel": "system_u:system_r:container_kvm_t:s0:c1,c2"},
            "linux": {"mountLabel": "system_u:object_r:container_file_t:s0:c1,c2", "sysctl": {}},
        });
        assert_eq!(taken(spec.clone(), true), json!({"process": {}, "linux": {"sysctl": {}}}));
        assert_eq!(taken(spec.clone(), false), spec);
    }
}
