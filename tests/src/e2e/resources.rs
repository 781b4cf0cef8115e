//! Limits: seen in the container's cgroup, enforced, changed while it runs, and measured.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use containerd_shim_protos::api::{StatsRequest, StatsResponse};
use containerd_shim_protos::cgroups::metrics as v1;
use containerd_shim_protos::cgroups_v2::metrics as v2;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::ttrpc::Code;
use serde_json::{Value, json};

use super::Test;
use super::context::{BUSYBOX, Context, ImageRoot, ctr, eventually};
use super::events::Events;
use super::image_root::merge;
use super::task_api::{Task, shim_of};

/// Where the host's cgroups are mounted.
const CGROUPS: &str = "/sys/fs/cgroup";

pub(super) const TESTS: &[Test] = &[
    Test { name: "limits_are_in_the_cgroups_files_enforced_and_changed_while_it_runs", check: limits },
    Test { name: "memory_that_runs_out_ends_the_eater_alone_and_is_told", check: out_of_memory },
    Test { name: "metrics_are_those_of_the_cgroups_files", check: metrics },
    Test { name: "a_pod_is_in_the_host_cgroup_that_the_spec_names", check: host_cgroup },
    Test { name: "huge_pages_are_there_as_the_limits_say", check: huge_pages },
];

/// Lets a container see its own cgroup's files at `/sys/fs/cgroup`.
fn show_cgroup(spec: &mut Value) {
    let cgroup = json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
        "options": ["ro", "nosuid", "noexec", "nodev"]});
    for (list, entry) in [("/mounts", cgroup), ("/linux/namespaces", json!({"type": "cgroup"}))] {
        if let Some(list) = spec.pointer_mut(list).and_then(Value::as_array_mut)
            && !list.contains(&entry)
        {
            list.retain(|present| present.get("destination") != Some(&json!("/sys/fs/cgroup")));
            list.push(entry);
        }
    }
}

fn limits(context: &Context) -> anyhow::Result<()> {
    let root = ImageRoot::mount(BUSYBOX, context.scratch.join("root"))?;
    let resources = json!({
        "memory": {"limit": 64 << 20, "reservation": 32 << 20},
        "cpu": {"shares": 512, "quota": 50_000, "period": 100_000, "cpus": "0", "mems": "0"},
        "pids": {"limit": 32},
        "unified": {"memory.high": "50331648"},
    });
    let container = root.start(context, "limits", &["sleep", "3600"], |spec| {
        merge(spec, &json!({"linux": {"resources": resources}}));
        show_cgroup(spec);
    })?;
    let task = Task::of("limits")?;
    let show =
        "cd /sys/fs/cgroup; cat memory.max memory.low memory.high cpu.weight cpu.max cpuset.cpus pids.max";
    let shown = task.shell("show", &context.scratch, show)?;
    ensure!(shown == "67108864\n33554432\n50331648\n20\n50000 100000\n0\n32\n", "{shown:?}");

    // They end with the shell: under the control, what starts the next process needs room for itself.
    let forks = "P=; trap 'kill $P; wait' EXIT; i=0; while [ $i -lt 33 ]; do sleep 3600 & P=\"$P $!\"; i=$((i+1)); done";
    let (status, text) = task.exec("forks", &context.scratch, &json!({"args": ["sh", "-c", forks]}))?;
    ensure!(
        status != 0 && text.contains("fork"),
        "33 processes under a limit of 32: status {status}, {text:?}"
    );
    // Busy for a second of its own under half a processor.
    let busy = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; grep nr_throttled /sys/fs/cgroup/cpu.stat";
    let throttled = task.shell("busy", &context.scratch, busy)?;
    ensure!(throttled.trim() != "nr_throttled 0", "half a processor was never throttled");

    let update = json!({"memory": {"limit": 96 << 20}, "cpu": {"shares": 2048, "quota": -1, "period": 50_000},
        "pids": {"limit": 64}});
    let updated = task.update(&update)?;
    ensure!(updated.is_ok(), "{updated:?}");
    let shown = task.shell("again", &context.scratch, show)?;
    ensure!(shown == "100663296\n33554432\n50331648\n79\nmax 50000\n0\n64\n", "{shown:?}");
    let refused = task.update(&json!({"cpu": {"cpus": "4096"}}))?;
    ensure!(refused.is_err(), "a processor that there is not was taken");
    // runc 1.1 does not know the field, and lets the kernel end processes.
    if !context.is_control() {
        let checked = task.update(&json!({"memory": {"limit": 1 << 16, "checkBeforeUpdate": true}}))?;
        let words = checked.as_ref().err().map(|refusal| refusal.message.as_str()).unwrap_or_default();
        ensure!(words.contains("bytes are in use"), "{checked:?}");
        for (update, figures) in [
            (json!({"memory": {"limit": 8_u64 << 30}}), ["8589934592 bytes", "160 MiB"]),
            (json!({"cpu": {"quota": 200_000, "period": 100_000}}), ["200000 µs", "1 CPUs"]),
        ] {
            let raised = task.update(&update)?;
            let named = raised.as_ref().err().is_some_and(|refusal| {
                refusal.code == Code::FAILED_PRECONDITION
                    && figures.iter().all(|figure| refusal.message.contains(figure))
            });
            ensure!(named, "{update}: {raised:?}");
        }
        task.shell("unharmed", &context.scratch, "true")?;
    }
    container.remove()
}

fn out_of_memory(context: &Context) -> anyhow::Result<()> {
    let events = Events::follow()?;
    let limit = (48 << 20).to_string();
    let container = context.start(BUSYBOX, "hungry", &["--memory-limit", &limit], &["sleep", "3600"])?;
    let ended = container.exec("eater", &["tail", "/dev/zero"])?;
    ensure!(ended.status == Some(137), "{ended:?}");
    for topic in ["/tasks/create", "/tasks/start", "/tasks/exec-added", "/tasks/exec-started"] {
        events.expect(topic, "hungry")?;
    }
    // The kernel's notice and the process's end come by two ways.
    let mut topics = [events.next()?.topic, events.next()?.topic];
    topics.sort_unstable();
    ensure!(topics == ["/tasks/exit", "/tasks/oom"], "{topics:?}");
    container.exec("after", &["true"])?.expect_status(0)?;
    container.remove()
}

fn metrics(context: &Context) -> anyhow::Result<()> {
    if !is_unified() {
        context.for_ours_alone("with runc the container's files are those of the host's cgroup v1")?;
    }
    let root = ImageRoot::mount(BUSYBOX, context.scratch.join("root"))?;
    // So much that the shell which reads the files, and is counted with the rest, makes less than a hundredth of it.
    let script = "dd if=/dev/zero of=/dev/shm/much bs=1M count=60; exec sleep 3600";
    let container = root.start(context, "metrics", &["sh", "-c", script], |spec| {
        merge(spec, &json!({"linux": {"resources": {"memory": {"limit": 96 << 20}, "pids": {"limit": 50}}}}));
        show_cgroup(spec);
    })?;
    let task = Task::of("metrics")?;
    task.shell("written", &context.scratch, "until [ $(cat /proc/1/comm) = sleep ]; do :; done")?;
    let files = |exec: &str| -> anyhow::Result<HashMap<String, u64>> {
        let show = "cd /sys/fs/cgroup; for f in memory.current memory.max pids.max; do echo $f $(cat $f); done; \
            cat memory.stat cpu.stat";
        let text = task.shell(exec, &context.scratch, show)?;
        let pairs = text.lines().filter_map(|line| line.split_once(' '));
        Ok(pairs.filter_map(|(key, value)| Some((key.to_owned(), value.parse().ok()?))).collect())
    };
    let before = files("before")?;
    let stats: StatsResponse =
        task.expect("Stats", &StatsRequest { id: "metrics".into(), ..Default::default() })?;
    let after = files("after")?;
    for (name, figure) in figures(&stats.stats)? {
        let of =
            |files: &HashMap<String, u64>| files.get(name).copied().with_context(|| format!("no {name}"));
        let (low, high) = (of(&before)?.min(of(&after)?), of(&before)?.max(of(&after)?));
        ensure!(
            figure >= low - low / 100 && figure <= high + high / 100,
            "{name} is {figure}, not {low} to {high}"
        );
    }
    ensure!(after.get("file").is_some_and(|file| *file >= 60 << 20), "{after:?}");
    // And as `ctr` shows them.
    let table = ctr(["task", "metrics", "metrics"])?;
    ensure!(table.contains("memory"), "{table:?}");
    container.remove()
}

/// The figures of the metrics type of this host's cgroup version, by the names of the guest's files.
fn figures(stats: &Any) -> anyhow::Result<Vec<(&'static str, u64)>> {
    if is_unified() {
        ensure!(stats.type_url == "io.containerd.cgroups.v2.Metrics", "{}", stats.type_url);
        let figures = v2::Metrics::parse_from_bytes(&stats.value)?;
        let (memory, cpu) = (&figures.memory, &figures.cpu);
        ensure!(figures.pids.current == 1, "{figures:?}");
        return Ok(vec![
            ("memory.current", memory.usage),
            ("memory.max", memory.usage_limit),
            ("pids.max", figures.pids.limit),
            ("file", memory.file),
            ("shmem", memory.shmem),
            ("pgfault", memory.pgfault),
            ("usage_usec", cpu.usage_usec),
            ("user_usec", cpu.user_usec),
        ]);
    }
    ensure!(stats.type_url == "io.containerd.cgroups.v1.Metrics", "{}", stats.type_url);
    let figures = v1::Metrics::parse_from_bytes(&stats.value)?;
    let (memory, cpu) = (&figures.memory, &figures.cpu.usage);
    ensure!(figures.pids.current == 1, "{figures:?}");
    Ok(vec![
        ("memory.current", memory.usage.usage),
        ("memory.max", memory.usage.limit),
        ("pids.max", figures.pids.limit),
        ("file", memory.total_cache),
        ("pgfault", memory.total_pg_fault),
        ("usage_usec", cpu.total / 1000),
        ("user_usec", cpu.user / 1000),
    ])
}

/// Where the host's hierarchies are: one with cgroup v2, one for each controller with v1.
fn hierarchies() -> anyhow::Result<Vec<PathBuf>> {
    if is_unified() {
        return Ok(vec![CGROUPS.into()]);
    }
    fs::read_dir(CGROUPS)?.map(|entry| Ok(entry?.path())).collect()
}

/// Whether the host has cgroup v2 alone.
fn is_unified() -> bool {
    Path::new(CGROUPS).join("cgroup.controllers").exists()
}

/// The processes in the cgroup `path`, which are the same ones in every hierarchy.
fn members(path: &str) -> anyhow::Result<Vec<String>> {
    let mut members = Vec::new();
    for hierarchy in hierarchies()? {
        let directory = hierarchy.join(path);
        let text = fs::read_to_string(directory.join("cgroup.procs"))
            .with_context(|| format!("there is no cgroup {}", directory.display()))?;
        members.push(text.lines().map(str::to_owned).collect::<Vec<_>>());
    }
    members.dedup();
    ensure!(members.len() == 1, "the hierarchies differ: {members:?}");
    members.pop().context("no hierarchy is mounted")
}

fn host_cgroup(context: &Context) -> anyhow::Result<()> {
    let path = context.start(BUSYBOX, "placed", &["--cgroup", "/default/e2e-placed"], &["sleep", "3600"])?;
    let task = ctr(["task", "ls"])?;
    let pid = task.lines().find_map(|line| line.strip_prefix("placed").map(str::trim)).unwrap_or_default();
    let pid = pid.split_whitespace().next().context("no pid")?.to_owned();
    let inside = members("default/e2e-placed")?;
    ensure!(inside.contains(&pid), "the task's process {pid} is not among {inside:?}");
    if !context.is_control() {
        let shim = shim_of("placed")?.as_raw_nonzero().to_string();
        ensure!(inside.contains(&shim), "the shim {shim} is not among {inside:?}");
    }
    path.remove()?;
    if context.is_control() {
        // runc asks systemd for a slice, which the lab does not have.
        return Ok(());
    }
    let cgroup = "saya-e2e.slice:pod:placed";
    let systemd = context.start(BUSYBOX, "sliced", &["--cgroup", cgroup], &["sleep", "3600"])?;
    let inside = members("saya.slice/saya-e2e.slice/pod-placed.scope")?;
    ensure!(inside.len() >= 2, "the shim and its machine are not there: {inside:?}");
    systemd.remove()?;
    // Slices are whoever's manages them: systemd's, and here the test's. The scope goes with the shim, a moment later.
    for hierarchy in hierarchies()? {
        let slice = hierarchy.join("saya.slice/saya-e2e.slice");
        eventually("the scope has gone", || Ok(!slice.join("pod-placed.scope").exists()))?;
        fs::remove_dir(&slice)?;
        fs::remove_dir(hierarchy.join("saya.slice"))?;
    }
    Ok(())
}

fn huge_pages(context: &Context) -> anyhow::Result<()> {
    context.for_ours_alone("with runc they are the host's, which has none")?;
    let root = ImageRoot::mount(BUSYBOX, context.scratch.join("root"))?;
    let script = "cat /sys/fs/cgroup/hugetlb.2MB.max; grep -E 'HugePages_(Total|Free)' /proc/meminfo; nproc";
    let ended = root.run(context, "huge", |spec| {
        let resources = json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 8 << 20}],
            "cpu": {"quota": 150_000, "period": 100_000}});
        merge(spec, &json!({"process": {"args": ["sh", "-c", script]}, "linux": {"resources": resources}}));
        show_cgroup(spec);
    })?;
    let ended = ended.expect_status(0)?;
    let words: Vec<String> = ended.text().split_whitespace().map(str::to_owned).collect();
    ensure!(words == ["8388608", "HugePages_Total:", "4", "HugePages_Free:", "4", "2"], "{words:?}");
    Ok(())
}
