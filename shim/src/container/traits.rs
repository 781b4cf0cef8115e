//! What a container's spec says of it that matters as long as it lives.

use serde_json::Value;

use super::limits::Limits;
use crate::spec::Document;

/// What a container is like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Traits {
    /// Whether its processes end with its first one, because they are in a pid namespace of their own.
    pub(crate) own_pid_namespace: bool,
    /// Whether containerd's CRI plugin has made it.
    pub(crate) of_cri: bool,
    /// Its first process's OOM score, unless it is the container that makes a pod under CRI: that has one of its own.
    pub(crate) oom_score: Option<i32>,
    /// Whether its first process runs from the beginning.
    pub(crate) runs_already: bool,
    /// What it may use at most when it is created.
    pub(crate) limits: Limits,
}

impl Traits {
    /// Those that a container has whose spec is `spec`, and `guest` for the guest.
    pub(super) fn new(spec: &Document, guest: &Value) -> Self {
        let resources = spec.value().pointer("/linux/resources").and_then(Value::as_object);
        Self {
            own_pid_namespace: has_own_pid_namespace(guest),
            of_cri: spec.is_of_cri(),
            oom_score: oom_score(spec),
            runs_already: false,
            limits: resources.map(|resources| Limits::default().after(resources)).unwrap_or_default(),
        }
    }
}

fn oom_score(spec: &Document) -> Option<i32> {
    let makes_pod_of_cri = spec.is_of_cri() && spec.makes_pod();
    let score = spec.value().pointer("/process/oomScoreAdj")?.as_i64()?;
    i32::try_from(score).ok().filter(|_| !makes_pod_of_cri)
}

/// Whether the spec asks for a pid namespace of its own and not to join another's.
fn has_own_pid_namespace(guest: &Value) -> bool {
    let namespaces = guest.pointer("/linux/namespaces").and_then(Value::as_array);
    namespaces.into_iter().flatten().any(|entry| entry["type"] == "pid" && entry.get("path").is_none())
}
