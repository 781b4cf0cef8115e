//! Commands in containers, what they print, and what they use.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, ensure};

use super::fixture::Node;
use crate::cri::Status;
use crate::cri::messages::{DEADLINE_EXCEEDED, LinuxContainerResources, LinuxPodSandboxConfig};
use crate::e2e::context::{Context, eventually};

const CGROUPS: &str = "/sys/fs/cgroup";
/// The cgroup above the pod's.
const PARENT: &str = "/saya-figures";
/// Longer than a line of a log may be (16 KiB in containerd).
const LONG_LINE: usize = 20_000;

pub(super) fn exec(context: &Context) -> anyhow::Result<()> {
    let node = Node::new(context)?;
    let pod = node.run("execs")?;
    let container = pod.start_idle("main")?;
    let ended = pod.exec(&container, &["sh", "-c", "echo out; echo err >&2; exit 9"])?;
    ensure!(
        (ended.stdout.as_slice(), ended.stderr.as_slice(), ended.exit_code) == (b"out\n", b"err\n", 9),
        "{ended:?}"
    );
    let large = pod.exec(&container, &["head", "-c", "1000000", "/dev/zero"])?;
    ensure!(large.stdout.len() == 1_000_000, "{} bytes came", large.stdout.len());

    let hung = node.cri.exec(&container, &["sleep", "987654"], Duration::from_secs(2));
    let code = hung.as_ref().err().and_then(|error| error.downcast_ref::<Status>()).map(|status| status.code);
    ensure!(code == Some(DEADLINE_EXCEEDED), "{hung:?}");
    eventually("the command is gone in the container", || {
        Ok(!pod.sh(&container, "ps")?.contains("sleep 987654"))
    })?;
    pod.remove()
}

pub(super) fn logs_and_figures(context: &Context) -> anyhow::Result<()> {
    let node = Node::new(context)?;
    make_parent()?;
    let mut config = node.pod_config("figures");
    config.linux =
        Some(LinuxPodSandboxConfig { cgroup_parent: PARENT.into(), ..LinuxPodSandboxConfig::default() });
    let pod = node.run_with(config)?;
    let script = format!(
        "echo first; echo second >&2; head -c {LONG_LINE} /dev/zero | tr '\\0' x; echo; echo ready; exec sleep 3600"
    );
    let container = pod.start("main", &["sh", "-c", &script])?;
    eventually("the container is ready", || Ok(pod.log("main")?.contains("stdout F ready")))
        .with_context(|| format!("its log: {:?}", pod.log("main")))?;
    let log = pod.log("main")?;
    ensure!(log.contains(" stdout F first\n") && log.contains(" stderr F second\n"), "{log}");
    let long: usize =
        log.lines().filter(|line| line.contains("stdout")).map(|line| line.matches('x').count()).sum();
    ensure!(long == LONG_LINE && log.contains(" stdout P x"), "{long} characters of the long line");
    // Rotated as a kubelet does.
    let path = format!("{}/main.log", pod.config.log_directory);
    fs::rename(&path, format!("{path}.1"))?;
    node.cri.reopen_log(&container)?;
    ensure!(pod.log("main")?.is_empty(), "the new log is not empty");

    let stats = node.cri.stats(&container)?;
    let memory = stats.memory.and_then(|memory| memory.working_set_bytes).context("no memory figure")?.value;
    let cpu = stats.cpu.and_then(|cpu| cpu.usage_core_nano_seconds).context("no CPU figure")?.value;
    ensure!(memory > 0 && cpu > 0, "memory {memory}, CPU {cpu}");
    let sandbox = node.cri.pod_stats(&pod.id)?.linux.context("no figures of the pod")?;
    let memory = sandbox.memory.as_ref().and_then(|memory| memory.working_set_bytes);
    ensure!(sandbox.containers.len() == 1 && memory.is_some_and(|memory| memory.value > 0), "{sandbox:?}");

    let limit = 48 << 20;
    let resources =
        LinuxContainerResources { memory_limit_in_bytes: limit, ..LinuxContainerResources::default() };
    node.cri.update(&container, resources)?;
    let shown = pod.sh(&container, "cat /sys/fs/cgroup/memory.max")?;
    ensure!(shown.trim() == limit.to_string(), "{shown}");
    pod.remove()?;
    Ok(fs::remove_dir(format!("{CGROUPS}{PARENT}"))?)
}

/// Makes the pod's cgroup, counted, as a kubelet does for each pod.
fn make_parent() -> anyhow::Result<()> {
    fs::write(format!("{CGROUPS}/cgroup.subtree_control"), "+cpu +memory")?;
    Ok(fs::create_dir(format!("{CGROUPS}{PARENT}"))?)
}
