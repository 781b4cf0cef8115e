//! `pod`: from RunPodSandbox to a running container, as a kubelet asks for it; one pod, and several at once.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Instant;

use anyhow::{Context, ensure};
use serde::Serialize;

use super::comparison::Comparison;
use super::runtimes::BUSYBOX;
use crate::cri::Cri;
use crate::cri::messages::{
    CONTAINER, CONTAINER_RUNNING, ContainerConfig, ContainerMetadata, ImageSpec, LinuxContainerConfig,
    LinuxContainerSecurityContext, LinuxPodSandboxConfig, NamespaceOption, PodSandboxConfig,
    PodSandboxMetadata,
};
use crate::ctr::finish;
use crate::report::start_timeline::Timeline;
use crate::report::statistics::Summary;
use crate::report::table::Table;

/// How many pods are asked for at once.
const AT_ONCE: [usize; 4] = [1, 2, 5, 10];
/// Handlers of the CRI plugin, by the names of their runtimes.
const RUNTIMES: [&str; 2] = [OURS, "runc"];
/// The one whose pods have a VM.
const OURS: &str = "kata";

/// Figures for one number of pods, in milliseconds until the last of them runs.
#[derive(Debug, Serialize)]
pub struct PodFigures {
    /// How many were asked for at once.
    pub pods: usize,
    /// By runtime.
    #[serde(flatten)]
    pub comparison: Comparison,
    /// What of it our pods' pause containers took each, to be made and started in a VM that was ready.
    pub pause: Option<Summary>,
}

/// Measures with each runtime `runs` times for one pod, after one time that does not count, and for several at once so
/// often that as many pods are started.
///
/// # Errors
/// When a pod does not run.
pub fn measure(runs: usize, scratch: &Path) -> anyhow::Result<Vec<PodFigures>> {
    let cri = Cri::connect()?;
    let mut figures = Vec::new();
    for pods in AT_ONCE {
        let mut samples: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        let mut pauses = Vec::new();
        let rounds = runs.div_ceil(pods);
        let first = usize::from(pods > 1);
        for round in first..=rounds {
            for runtime in RUNTIMES {
                let Took { all, pause } = run(&cri, runtime, pods, &scratch.join("bench-pod"))?;
                eprintln!("pod: {pods} at once, round {round} of {rounds}: {runtime} {all:.0} ms");
                if round > 0 {
                    samples.entry(runtime).or_default().push(all);
                    pauses.extend(pause);
                }
            }
        }
        figures.push(PodFigures { pods, comparison: Comparison::of(&samples), pause: Summary::of(&pauses) });
    }
    std::fs::remove_dir_all(scratch.join("bench-pod"))?;
    finish(Command::new("ip").args(["link", "delete", "saya0"]))?;
    Ok(figures)
}

/// What one round took, in milliseconds.
struct Took {
    /// Until a container ran in each pod.
    all: f64,
    /// The pause container of each pod that has a VM.
    pause: Vec<f64>,
}

/// Runs pods at once until a container runs in each; then they are removed.
fn run(cri: &Cri, runtime: &str, pods: usize, logs: &Path) -> anyhow::Result<Took> {
    let configs: Vec<PodSandboxConfig> = (0..pods).map(|number| pod_config(number, logs)).collect();
    let begin = Instant::now();
    let started: Vec<anyhow::Result<String>> = thread::scope(|scope| {
        let start = |config| scope.spawn(move || start(cri, runtime, config));
        let threads: Vec<_> = configs.iter().map(start).collect();
        let joined = threads.into_iter().map(thread::ScopedJoinHandle::join);
        joined.map(|joined| joined.unwrap_or_else(|_| anyhow::bail!("a pod's thread died"))).collect()
    });
    let all = begin.elapsed().as_secs_f64() * 1000.0;
    let timelines = started.iter().flatten().filter(|_| runtime == OURS);
    let pause: anyhow::Result<Vec<f64>> =
        timelines.map(|pod| Ok(Timeline::read("k8s.io", pod)?.first_container())).collect();
    for pod in started.iter().flatten() {
        cri.stop_pod(pod)?;
        cri.remove_pod(pod)?;
    }
    started.into_iter().collect::<anyhow::Result<Vec<_>>>().with_context(|| runtime.to_owned())?;
    Ok(Took { all, pause: pause? })
}

fn start(cri: &Cri, runtime: &str, config: &PodSandboxConfig) -> anyhow::Result<String> {
    let pod = cri.run_pod(config, runtime)?;
    let container = cri.create(&pod, config, &container_config())?;
    cri.start(&container)?;
    ensure!(cri.status(&container)?.state == CONTAINER_RUNNING, "the container does not run");
    Ok(pod)
}

fn pod_config(number: usize, logs: &Path) -> PodSandboxConfig {
    let name = format!("bench-{number}");
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: name.clone(),
            uid: format!("uid-{name}"),
            namespace: "bench".to_owned(),
            attempt: 0,
        }),
        log_directory: logs.join(&name).display().to_string(),
        hostname: name,
        linux: Some(LinuxPodSandboxConfig::default()),
        ..PodSandboxConfig::default()
    }
}

fn container_config() -> ContainerConfig {
    let own = NamespaceOption { pid: CONTAINER, ..NamespaceOption::default() };
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: "main".to_owned(), attempt: 0 }),
        image: Some(ImageSpec { image: BUSYBOX.to_owned() }),
        command: ["sleep", "3600"].map(str::to_owned).to_vec(),
        log_path: "main.log".to_owned(),
        linux: Some(LinuxContainerConfig {
            resources: None,
            security_context: Some(LinuxContainerSecurityContext {
                namespace_options: Some(own),
                ..LinuxContainerSecurityContext::default()
            }),
        }),
        ..ContainerConfig::default()
    }
}

/// The figures as a table.
pub fn table(figures: &[PodFigures]) -> Table {
    let mut table = Table::new([
        "pods at once",
        "runtime",
        "runs",
        "min ms",
        "median ms",
        "max ms",
        "× runc",
        "pause ms",
    ]);
    for of_number in figures {
        let pause = of_number.pause.map_or_else(String::new, |pause| format!("{:.1}", pause.median));
        for (name, summary) in &of_number.comparison.runtimes {
            table.row([
                of_number.pods.to_string(),
                name.clone(),
                summary.count.to_string(),
                format!("{:.0}", summary.min),
                format!("{:.0}", summary.median),
                format!("{:.0}", summary.max),
                of_number.comparison.ratio(name),
                if name == OURS { pause.clone() } else { String::new() },
            ]);
        }
    }
    table
}
