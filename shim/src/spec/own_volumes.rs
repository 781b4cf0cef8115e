//! The volumes that begin and end with a pod, which nobody else has: `emptyDir`, and CRI's `/dev/shm`.

use std::ffi::OsStr;
use std::path::Path;

use super::Document;
use super::annotations::{SANDBOX_ID, SANDBOX_UID};

/// The directory in which a kubelet keeps the volumes of this kind, in that of a pod's volumes.
const EMPTY_DIR: &str = "kubernetes.io~empty-dir";

/// Knows a pod's own volumes by where they are on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OwnVolumes {
    /// Kubernetes' id of the pod.
    uid: String,
    /// containerd's id of the pod.
    sandbox: String,
}

impl OwnVolumes {
    /// Those of the pod to which a container belongs. None where containerd's CRI plugin does not say which pod that is.
    pub(crate) fn of(spec: &Document) -> Option<Self> {
        let given = |key| spec.annotation(key).filter(|value| !value.is_empty()).map(str::to_owned);
        Some(Self { uid: given(SANDBOX_UID)?, sandbox: given(SANDBOX_ID)? })
    }

    /// Whether `path` is one of the pod's `emptyDir` volumes: `…/pods/<uid>/volumes/kubernetes.io~empty-dir/<name>`. Those of other
    /// pods are among the host's directories.
    pub(crate) fn is_empty_dir(&self, path: &Path) -> bool {
        let mut names = path.iter().rev().skip(1);
        [EMPTY_DIR, "volumes", &self.uid, "pods"]
            .into_iter()
            .all(|name| names.next() == Some(OsStr::new(name)))
    }

    /// Whether `path` is where CRI has mounted what the pod's containers have at `/dev/shm`: `…/sandboxes/<id>/shm`.
    pub(crate) fn is_shared_memory(&self, path: &Path) -> bool {
        let mut names = path.iter().rev();
        ["shm", &self.sandbox, "sandboxes"].into_iter().all(|name| names.next() == Some(OsStr::new(name)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pods_own_volumes_are_known_by_their_places_and_those_of_others_are_not_among_them() {
        let annotations =
            json!({"io.kubernetes.cri.sandbox-uid": "u-1", "io.kubernetes.cri.sandbox-id": "s1"});
        let own =
            OwnVolumes::of(&Document::from_value(json!({"annotations": annotations})).unwrap()).unwrap();
        for (path, expected) in [
            ("/var/lib/kubelet/pods/u-1/volumes/kubernetes.io~empty-dir/cache", true),
            ("/var/lib/kubelet/pods/u-2/volumes/kubernetes.io~empty-dir/cache", false),
            ("/var/lib/kubelet/pods/u-1/volumes/kubernetes.io~empty-dir/cache/part", false),
            ("/var/lib/kubelet/pods/u-1/volumes/kubernetes.io~empty-dir", false),
            ("/var/lib/kubelet/pods/u-1/volumes/kubernetes.io~secret/key", false),
            ("/var/lib/kubelet/pods/u-1/volume-subpaths/cache/main/0", false),
        ] {
            assert_eq!(own.is_empty_dir(Path::new(path)), expected, "{path}");
        }
        let shared = "/run/containerd/io.containerd.grpc.v1.cri/sandboxes";
        assert!(own.is_shared_memory(&Path::new(shared).join("s1/shm")));
        assert!(!own.is_shared_memory(&Path::new(shared).join("s2/shm")));
        assert!(!own.is_shared_memory(Path::new("/dev/shm")));
    }

    #[test]
    fn a_container_of_no_pod_has_no_volumes_of_its_own() {
        let spec = json!({"annotations": {"io.kubernetes.cri.sandbox-id": "s1"}});
        assert_eq!(OwnVolumes::of(&Document::from_value(spec).unwrap()), None);
    }
}
