//! Pods when something beside them ends: containerd, or their virtual machine.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::fixture::Node;
use super::lifecycle::wait_for_exit;
use crate::cri::messages::{CONTAINER_EXITED, CONTAINER_RUNNING, Mount, SANDBOX_READY};
use crate::ctr::ctr;
use crate::e2e::context::{Context, eventually};
use crate::e2e::restart::kill_containerd;
use crate::lab::newer_containerd;

/// The status that containerd gives what it knows nothing of.
const UNKNOWN: i32 = 255;

/// Long enough for a shell to hear of a signal, on any machine.
const LONG_GRACE: Duration = Duration::from_secs(5);

pub(super) fn recovers(context: &Context) -> anyhow::Result<()> {
    let before = Node::new(context)?;
    let pod = before.run("lasting")?;
    let ticking = ["sh", "-c", "trap 'echo asked' TERM; while :; do echo tick; sleep 0.1; done"];
    let id = pod.start("ticking", &ticking)?;
    eventually("the container ticks", || Ok(pod.log("ticking")?.contains("tick")))?;
    let volume = context.scratch.join("volume");
    fs::create_dir(&volume)?;
    let mut leaving =
        pod.container("leaving", &["sh", "-c", "until [ -e /volume/go ]; do sleep 0.1; done; exit 9"]);
    leaving.mounts.push(Mount {
        container_path: "/volume".into(),
        host_path: volume.display().to_string(),
        ..Mount::default()
    });
    let leaving = pod.start_with(&leaving)?;
    kill_containerd(|| Ok(fs::write(volume.join("go"), "")?))?;

    // The connection to containerd has gone with it.
    let node = Node::new(context)?;
    let pod = node.adopt(pod);
    // containerd answers others before its CRI plugin has found what there is.
    eventually("the CRI plugin answers", || Ok(pod.cri.pod_status(&pod.id).is_ok()))?;
    ensure!(pod.cri.pod_status(&pod.id)?.state == SANDBOX_READY, "the pod is not ready any more");
    ensure!(pod.cri.status(&id)?.state == CONTAINER_RUNNING, "the container runs no more");
    ensure!(pod.sh(&id, "echo inside")? == "inside\n");
    // One has ended while nobody was there to be told. containerd 2 asks its shim for processes, hears of none, and takes it for one
    // that was never used (core/runtime/v2/shim_load.go); it does so with runc, too.
    let known = if newer_containerd::is_installed() { UNKNOWN } else { 9 };
    wait_for_exit(&pod, &leaving, known)?;
    let written = pod.log("ticking")?.len();
    eventually("the log grows on", || Ok(pod.log("ticking")?.len() > written))?;
    // It is asked to end, does not, and is killed when its time is over.
    pod.cri.stop(&id, LONG_GRACE)?;
    wait_for_exit(&pod, &id, 137)?;
    ensure!(pod.log("ticking")?.contains(" stdout F asked\n"), "it was not asked");

    let last = pod.start("last", &["sleep", "3600"])?;
    kill_process(process_of(&pod.id, &last)?, Signal::KILL)?;
    eventually("the pod is known as dead", || Ok(pod.cri.pod_status(&pod.id)?.state != SANDBOX_READY))?;
    if !context.is_control() {
        eventually("so is its container", || Ok(pod.cri.status(&last)?.state == CONTAINER_EXITED))?;
    }
    ensure!(pod.start("late", &["true"]).is_err(), "a container was started in a dead pod");
    pod.remove()?;
    // Its name and addresses are free.
    let next = node.run("lasting")?;
    next.start("again", &["true"])?;
    next.remove()
}

/// The process by which containerd knows a pod, which is its virtual machine's: that of its sandbox where that is a task,
/// and of a container of it.
pub(super) fn process_of(pod: &str, container: &str) -> anyhow::Result<Pid> {
    let list = ctr(["--namespace", "k8s.io", "task", "ls"])?;
    let lines: Vec<_> = list.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
    let of = |id| lines.iter().find(|words| words.first() == Some(&id));
    let pid = of(pod).or_else(|| of(container)).and_then(|words| words.get(1)?.parse().ok());
    pid.and_then(Pid::from_raw).with_context(|| format!("no task of pod {pod} in {list}"))
}
