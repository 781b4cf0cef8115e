//! Pods by containerd's Sandbox API, without a pause container.

use std::process::Command;

use anyhow::{Context as _, ensure};

use super::fixture::Node;
use super::{lifecycle, recovery, sharing};
use crate::cri::messages::{NODE, NamespaceOption, SANDBOX_READY};
use crate::ctr::{ctr, finish};
use crate::e2e::context::{Context, NotApplicable, eventually};

/// The lab's runtime handler with `sandboxer = "shim"`.
pub(super) const HANDLER: &str = "kata-sandbox";

pub(super) fn pod(context: &Context) -> anyhow::Result<()> {
    context.for_ours_alone("runc has its pods made by containerd")?;
    // "containerd github.com/containerd/containerd/v2 2.1.9+unknown"
    if !finish(Command::new("containerd").arg("--version"))?.contains("containerd/v2") {
        return Err(NotApplicable("containerd before 2.0 has no Sandbox API for CRI").into());
    }
    let context = Context {
        runtime: context.runtime.clone(),
        handler: Some(HANDLER.to_owned()),
        scratch: context.scratch.clone(),
        long: context.long,
    };
    without_pause(&context).context("a pod")?;
    sharing::namespaces(&context).context("what pods share")?;
    sharing::processes(&context).context("processes")?;
    lifecycle::stopped_with_contents(&context).context("stopped with what runs in it")?;
    recovery::recovers(&context).context("containerd or the pod is killed")
}

fn without_pause(context: &Context) -> anyhow::Result<()> {
    let node = Node::new(context)?;
    let pod = node.run("pauseless")?;
    let listed = ctr(["--namespace", "k8s.io", "containers", "list", "--quiet"])?;
    ensure!(!listed.contains(&pod.id), "the pod has a container that makes it: {listed}");
    let missing = pod.start("missing", &["/no/such/program"]).map_err(|error| format!("{error:#}"));
    ensure!(matches!(&missing, Err(error) if error.contains("/no/such/program")), "{missing:?}");
    let main = pod.start("main", &["sh", "-c", "echo said; exec sleep 3600"])?;
    ensure!(pod.sh(&main, "cat /etc/hostname")? == "pauseless\n");
    eventually("the log is written", || Ok(pod.log("main")?.contains("said")))?;
    ensure!(node.cri.pod_status(&pod.id)?.state == SANDBOX_READY);

    for (name, options) in [
        ("pid", NamespaceOption { pid: NODE, ..NamespaceOption::default() }),
        ("ipc", NamespaceOption { ipc: NODE, ..NamespaceOption::default() }),
    ] {
        let mut config = node.pod_config(&format!("host-{name}"));
        config.linux = Some(sharing::with_namespaces(options));
        let refused = node.run_with(config).map(|_| ()).map_err(|error| format!("{error:#}"));
        let words = format!("the host's {name} namespace");
        ensure!(matches!(&refused, Err(error) if error.contains(&words)), "{refused:?}");
    }
    pod.remove()
}
