//! The container that makes a pod, as far as the guest has one.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, ensure};

use super::fixture::Node;
use super::sharing;
use crate::cri::messages::NamespaceOption;
use crate::e2e::context::Context;

/// It costs no page cache, since no file of its image reaches the guest: its root file system is mounted nowhere, and what holds the
/// pod's namespaces is the program that has booted the guest.
pub(super) fn nothing_of_its_image(context: &Context) -> anyhow::Result<()> {
    context.for_ours_alone("runc's pods run the image's program")?;
    let node = Node::new(context)?;
    let mut config = node.pod_config("held");
    // Its processes are seen by all of the pod's containers.
    config.linux = Some(sharing::with_namespaces(NamespaceOption::default()));
    let pod = node.run_with(config)?;
    let observer = pod.start_idle("observer")?;
    let holder = pod.sh(&observer, "tr '\\0' ' ' < /proc/1/cmdline")?;
    ensure!(holder == "/pod hold-pod ", "the pod is held by {holder:?}");

    let shared = Path::new("/run/saya/k8s.io").join(&pod.id).join("share");
    let names = |directory: &str| -> anyhow::Result<Vec<String>> {
        let path = shared.join(directory);
        let entries = fs::read_dir(&path).with_context(|| format!("reading {}", path.display()))?;
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    };
    let roots = names("private")?;
    ensure!(roots == [observer.as_str()], "root file systems of {roots:?} are shared with the guest");
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let of_image = format!("/{}/rootfs ", pod.id);
    ensure!(!mounts.contains(&format!("private{of_image}")), "{mounts}");
    pod.remove()
}
