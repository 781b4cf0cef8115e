//! The OOM score of a pod on the host. Its processes are one process there, the VMM, which would have containerd's score
//! otherwise: with that it is among the last to be killed, whatever the pod is worth.

use super::process::Phase;
use super::tasks::{Container, Tasks};

impl Tasks {
    /// Gives the VMM the least of the scores that the pod's containers have, so that it is no more likely to be killed than
    /// any of them would be. Where none has one, it keeps what it has.
    pub(super) fn adjust_oom_score(&self) {
        let scores = self.containers().into_iter().filter_map(|container| score(&container));
        let Some(score) = scores.min() else { return };
        let Ok(vm) = self.pod().vm() else { return };
        if let Err(error) = vm.set_oom_score(score) {
            tracing::warn!(score, vmm = vm.pid(), %error, "the VMM keeps another OOM score than its pod has");
        }
    }
}

/// The score of a container, if it counts: the one that makes a pod under CRI has that of a part of the node, which says nothing
/// of the pod.
fn score(container: &Container) -> Option<i32> {
    let has_ended = matches!(container.init.phase(), Phase::Stopped(_));
    container.traits.oom_score.filter(|_| !has_ended)
}
