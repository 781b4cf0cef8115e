//! The order in which containers come and go.

use std::fs;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::fixture::{GRACE, Node, Pod};
use crate::cri::messages::{CONTAINER_EXITED, CONTAINER_RUNNING, SANDBOX_READY};
use crate::e2e::context::{Context, eventually};
use crate::lab::newer_containerd;

/// How often the sidecar is restarted, and how often in the long form.
const RESTARTS: u32 = 5;
const MANY_RESTARTS: u32 = 20;

/// Where containerd keeps what it knows of its tasks.
const TASKS: &str = "/run/containerd/io.containerd.runtime.v2.task/k8s.io";

/// The lab's configuration announces version 3 of the Task service where containerd is new enough; containerd then finds a
/// container's shim by its pod. A pod by the Sandbox API, which another handler may make, has no task of its own.
fn expect_version(context: &Context, ids: [&str; 2]) -> anyhow::Result<()> {
    if context.is_control() || context.handler.is_some() || !newer_containerd::is_installed() {
        return Ok(());
    }
    for id in ids {
        let path = format!("{TASKS}/{id}/bootstrap.json");
        let known: Value = serde_json::from_slice(&fs::read(&path).with_context(|| path.clone())?)?;
        ensure!(known["version"] == 3, "{path}: {known}");
    }
    Ok(())
}

pub(super) fn any_order(context: &Context) -> anyhow::Result<()> {
    let node = Node::new(context)?;
    let pod = node.run("orders")?;

    // Created and never started.
    let unborn = pod.cri.create(&pod.id, &pod.config, &pod.container("unborn", &["true"]))?;
    pod.cri.remove(&unborn)?;
    // One after the other, the status of each told.
    for status in [0, 7] {
        let name = format!("status-{status}");
        let container = pod.start(&name, &["sh", "-c", &format!("exit {status}")])?;
        wait_for_exit(&pod, &container, status)?;
        pod.cri.remove(&container)?;
    }
    // The last one has gone: the pod stays, and takes more.
    ensure!(pod.cri.pod_status(&pod.id)?.state == SANDBOX_READY, "the pod ended with its containers");
    let main = pod.start_idle("main")?;
    expect_version(context, [&pod.id, &main])?;
    for attempt in 0..if context.long { MANY_RESTARTS } else { RESTARTS } {
        let mut config = pod.container("sidecar", &["sh", "-c", "echo $ATTEMPT > /attempt; exec sleep 3600"]);
        config
            .envs
            .push(crate::cri::messages::KeyValue { key: "ATTEMPT".into(), value: attempt.to_string() });
        if let Some(metadata) = config.metadata.as_mut() {
            metadata.attempt = attempt;
        }
        let sidecar = pod.start_with(&config)?;
        eventually("the sidecar works", || {
            Ok(pod.exec(&sidecar, &["cat", "/attempt"])?.stdout == format!("{attempt}\n").as_bytes())
        })?;
        pod.cri.stop(&sidecar, std::time::Duration::ZERO)?;
        wait_for_exit(&pod, &sidecar, 137)?;
        pod.cri.remove(&sidecar)?;
    }
    ensure!(pod.cri.status(&main)?.state == CONTAINER_RUNNING, "the other container did not stay");
    // Told to end, it does, with its own status; told again, nothing happens.
    pod.cri.stop(&main, GRACE)?;
    wait_for_exit(&pod, &main, 0)?;
    pod.cri.stop(&main, GRACE)?;
    pod.cri.remove(&main)?;
    let missing = pod.start("missing", &["/no/such/program"]).map_err(|error| format!("{error:#}"));
    ensure!(matches!(&missing, Err(error) if error.contains("/no/such/program")), "{missing:?}");
    pod.remove()
}

pub(super) fn stopped_with_contents(context: &Context) -> anyhow::Result<()> {
    let node = Node::new(context)?;
    let pod = node.run("full")?;
    let one = pod.start("one", &["sleep", "3600"])?;
    pod.start("two", &["sleep", "3600"])?;
    pod.cri.create(&pod.id, &pod.config, &pod.container("three", &["true"]))?;
    pod.cri.stop_pod(&pod.id)?;
    ensure!(pod.cri.pod_status(&pod.id)?.state != SANDBOX_READY, "the pod is ready after it was stopped");
    ensure!(pod.cri.status(&one)?.state == CONTAINER_EXITED, "a container goes on in a stopped pod");
    ensure!(pod.start("late", &["true"]).is_err(), "a container was started in a stopped pod");
    // Stopped and removed twice, as kubelets do.
    pod.cri.stop_pod(&pod.id)?;
    pod.cri.remove_pod(&pod.id)?;
    pod.cri.remove_pod(&pod.id)
}

pub(super) fn wait_for_exit(pod: &Pod<'_>, container: &str, expected: i32) -> anyhow::Result<()> {
    eventually("the container has ended", || Ok(pod.cri.status(container)?.state == CONTAINER_EXITED))?;
    let status = pod.cri.status(container)?;
    ensure!(status.exit_code == expected, "ended with {} ({})", status.exit_code, status.reason);
    Ok(())
}
