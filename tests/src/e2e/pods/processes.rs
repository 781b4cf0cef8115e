//! Commands in containers, what they print, and what they use.

use std::collections::HashMap;
use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};

use super::fixture::{CGROUPS, Node, ParentCgroup, Pod};
use super::lifecycle::wait_for_exit;
use crate::cri::Status;
use crate::cri::messages::{ContainerConfig, DEADLINE_EXCEEDED, LinuxContainerResources, MemoryUsage};
use crate::ctr::finish;
use crate::e2e::context::{Context, eventually};

/// The cgroup above the pod's.
const PARENT: &str = "/saya-figures";
/// What the container keeps in memory, in bytes: a buffer that nobody takes.
const FILLING: u64 = 32 << 20;
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
    let parent = ParentCgroup::make(PARENT)?;
    let mut config = node.pod_config("figures");
    config.linux = Some(parent.of_pod());
    let pod = node.run_with(config)?;
    let script = format!(
        "echo first; echo second >&2; head -c {LONG_LINE} /dev/zero | tr '\\0' x; echo; echo ready; dd if=/dev/zero bs={FILLING} count=1 2>/dev/null | sleep 3600"
    );
    let container = pod.start_with(&given_cpus(pod.container("main", &["sh", "-c", &script]), "0"))?;
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

    figures_agree(&node, &pod, &container)?;
    traffic_is_counted(&node, &pod)?;
    let limit = 96 << 20;
    let resources = LinuxContainerResources {
        memory_limit_in_bytes: limit,
        cpu_period: 50_000,
        cpu_quota: 25_000,
        ..resources_with_cpus("0")
    };
    // With runc the kubelet, or systemd, has to set limits again that a container has lost.
    let before = if context.is_control() { None } else { Some(lose_limits(&parent, &pod)?) };
    node.cri.update(&container, resources)?;
    let shown = pod.sh(&container, "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max")?;
    ensure!(shown == format!("{limit}\n25000 50000\n"), "{shown}");
    if let Some(before) = before {
        ensure!(limits_on_host(&parent, &pod)? == before, "the pod's limits on the host were {before:?}");
    }
    runs_on_what_is_given(context, &parent, &pod)?;
    killed_for_memory(context, &pod)?;
    pod.remove()
}

/// CPUs and memory nodes of the node, as a kubelet gives them away.
fn resources_with_cpus(cpus: &str) -> LinuxContainerResources {
    LinuxContainerResources {
        cpuset_cpus: cpus.into(),
        cpuset_mems: "0".into(),
        ..LinuxContainerResources::default()
    }
}

fn given_cpus(mut container: ContainerConfig, cpus: &str) -> ContainerConfig {
    if let Some(linux) = container.linux.as_mut() {
        linux.resources = Some(resources_with_cpus(cpus));
    }
    container
}

/// A pod whose one container has been given the CPU 0 runs there, and wherever the node lets it as long as another container may
/// run anywhere. A CPU that the node does not have is refused.
fn runs_on_what_is_given(context: &Context, parent: &ParentCgroup, pod: &Pod<'_>) -> anyhow::Result<()> {
    let expect = |cpus: &str| -> anyhow::Result<()> {
        // runc's pod is its pause container alone.
        let has = |found: &str| context.is_control() || found == cpus;
        let found = fs::read_to_string(parent.file(&pod.id).join("cpuset.cpus"))?;
        ensure!(has(&found), "the pod runs on {found:?} and not on {cpus:?}");
        Ok(())
    };
    let everywhere = || fs::read_to_string(format!("{CGROUPS}/cpuset.cpus.effective"));
    expect("0\n")?;
    let refused = pod.start_with(&given_cpus(pod.container("impossible", &["true"]), "4096"));
    let told = refused.as_ref().err().map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(told.contains("cpuset.cpus"), "{refused:?}");
    expect("0\n")?;
    let anywhere = pod.start_idle("anywhere")?;
    expect(&everywhere()?)?;
    pod.cri.stop(&anywhere, Duration::ZERO)?;
    pod.cri.remove(&anywhere)?;
    expect("0\n")
}

/// The limits of the pod's cgroup on the host.
fn limits_on_host(parent: &ParentCgroup, pod: &Pod<'_>) -> std::io::Result<[String; 2]> {
    let read = |file| fs::read_to_string(parent.file(&pod.id).join(file));
    Ok([read("memory.max")?, read("pids.max")?])
}

/// Has the pod's cgroup lose its limits, as it does below a slice that systemd sets up anew, and answers what they were.
fn lose_limits(parent: &ParentCgroup, pod: &Pod<'_>) -> anyhow::Result<[String; 2]> {
    let limits = limits_on_host(parent, pod).context("the limits of the pod's cgroup")?;
    ensure!(!limits.iter().any(|limit| limit.starts_with("max")), "the pod has no limit: {limits:?}");
    fs::write(parent.file("cgroup.subtree_control"), "-memory -pids")?;
    ensure!(limits_on_host(parent, pod).is_err(), "the limits are still there");
    Ok(limits)
}

/// A container that needs more than it may have ends as a whole where a kubelet has said so (1.28 does, on cgroup v2), and it is known why.
fn killed_for_memory(context: &Context, pod: &Pod<'_>) -> anyhow::Result<()> {
    let mut greedy = pod.container("greedy", &["sh", "-c", "tail /dev/zero; sleep 3600"]);
    if let Some(linux) = greedy.linux.as_mut() {
        linux.resources = Some(LinuxContainerResources {
            memory_limit_in_bytes: 24 << 20,
            unified: HashMap::from([("memory.oom.group".into(), "1".into())]),
            ..LinuxContainerResources::default()
        });
    }
    let greedy = pod.start_with(&greedy)?;
    wait_for_exit(pod, &greedy, 137)?;
    if context.is_control() {
        // runc's shim misses it when the container's end comes first.
        return Ok(());
    }
    eventually("it is known why it ended", || Ok(pod.cri.status(&greedy)?.reason == "OOMKilled"))
        .with_context(|| format!("{:?}", pod.cri.status(&greedy)))
}

/// How many bytes a ping carries.
const PING: u64 = 1400;

/// What goes through the pod's interface is the pod's.
fn traffic_is_counted(node: &Node<'_>, pod: &Pod<'_>) -> anyhow::Result<()> {
    let bytes = || -> anyhow::Result<[u64; 2]> {
        let network = node.cri.pod_stats(&pod.id)?.linux.and_then(|linux| linux.network);
        let interface = network.and_then(|network| network.default_interface).context("no interface")?;
        ensure!(interface.name == "eth0", "{interface:?}");
        let [received, sent] = [interface.rx_bytes, interface.tx_bytes];
        Ok([received.context("no figure")?.value, sent.context("no figure")?.value])
    };
    let before = bytes()?;
    let arguments =
        ["ping", "-c", "1", "-W", "20", "-s", &PING.to_string(), &pod.address()?].map(str::to_owned);
    finish(Command::new("busybox").args(arguments))?;
    let after = bytes()?;
    for (before, after) in before.iter().zip(&after) {
        ensure!(after - before >= PING, "{before:?} bytes before a ping of {PING} and {after:?} after it");
    }
    Ok(())
}

/// Compares what containerd says of a pod and its container, in every way that CRI has, with what the container's cgroup says
/// inside.
fn figures_agree(node: &Node<'_>, pod: &Pod<'_>, container: &str) -> anyhow::Result<()> {
    let inside = || -> anyhow::Result<(u64, u64)> {
        let script = "cd /sys/fs/cgroup && awk '/^usage_usec/ {print $2}' cpu.stat && cat memory.current && \
            awk '/^inactive_file/ {print $2}' memory.stat";
        let figures: Vec<u64> =
            pod.sh(container, script)?.lines().map(str::parse).collect::<Result<_, _>>()?;
        let [cpu, memory, inactive] = figures[..] else { anyhow::bail!("{figures:?}") };
        Ok((cpu, memory.saturating_sub(inactive)))
    };
    eventually("the memory is full", || Ok(inside()?.1 >= FILLING))?;
    let (cpu_before, _) = inside()?;
    let listed = node.cri.list_stats(&pod.id)?;
    let alone = node.cri.stats(container)?;
    let of_pod = node.cri.pod_stats(&pod.id)?.linux.context("no figures of the pod")?;
    let (cpu_after, memory_inside) = inside()?;
    for stats in [listed.as_slice(), &[alone], &of_pod.containers] {
        let [stats] = stats else { anyhow::bail!("{} containers in {stats:?}", stats.len()) };
        ensure!(stats.attributes.as_ref().is_some_and(|it| it.id == container), "{stats:?}");
        let cpu = stats.cpu.as_ref().and_then(|cpu| cpu.usage_core_nano_seconds).context("no CPU figure")?;
        let cpu = cpu.value / 1000;
        ensure!(
            cpu_before <= cpu && cpu <= cpu_after,
            "{cpu} µs of CPU, where inside {cpu_before} to {cpu_after} were"
        );
        let memory = working_set(stats.memory.as_ref())?;
        // The commands that read it were there for one and gone for the other.
        ensure!(
            memory >= FILLING && memory.abs_diff(memory_inside) < FILLING / 4,
            "{memory} and {memory_inside} inside"
        );
    }
    // The pod's is the host's figure, with all that a container has, and what is around it.
    let memory = working_set(of_pod.memory.as_ref())?;
    ensure!((FILLING..1 << 30).contains(&memory), "the pod uses {memory} bytes of memory");
    let cpu = of_pod.cpu.as_ref().and_then(|cpu| cpu.usage_core_nano_seconds).context("no CPU figure")?;
    ensure!(cpu.value > 0, "the pod uses no CPU");
    let processes = of_pod.process.and_then(|process| process.process_count).context("no processes")?;
    ensure!(processes.value >= 3, "the pod has {} processes", processes.value);
    Ok(())
}

fn working_set(memory: Option<&MemoryUsage>) -> anyhow::Result<u64> {
    let figure = memory.and_then(|memory| memory.working_set_bytes.as_ref());
    Ok(figure.context("no memory figure")?.value)
}
