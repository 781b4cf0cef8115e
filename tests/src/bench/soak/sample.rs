//! What the host holds at a moment.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use rustix::process::Pid;

use crate::containerd;
use crate::processes::{mebibytes, resident};

/// Something that could grow.
pub(super) struct Metric {
    pub(super) name: &'static str,
    /// By how much more at the end is no leak.
    pub(super) noise: f64,
    read: fn(Pid) -> anyhow::Result<f64>,
}

/// All that is looked at. The noise: what kernel and containerd keep for later, and Go's collector has not got to.
pub(super) const METRICS: [Metric; 12] = [
    Metric { name: "memory MiB", noise: 48.0, read: |_| memory() },
    Metric { name: "open files", noise: 24.0, read: |_| open_files() },
    Metric { name: "processes", noise: 1.0, read: |_| Ok(processes()?.len() as f64) },
    Metric { name: "threads", noise: 8.0, read: |_| threads() },
    Metric { name: "mounts", noise: 0.0, read: |_| lines("/proc/self/mountinfo") },
    Metric { name: "network namespaces", noise: 0.0, read: |_| network_namespaces() },
    Metric { name: "interfaces", noise: 0.0, read: |_| entries("/sys/class/net") },
    Metric { name: "cgroups", noise: 0.0, read: |_| Ok(directories_below(Path::new("/sys/fs/cgroup"))) },
    Metric { name: "sockets", noise: 8.0, read: |_| sockets() },
    Metric { name: "containerd MiB", noise: 16.0, read: |containerd| resident(containerd) },
    Metric {
        name: "containerd's files",
        noise: 6.0,
        read: |containerd| entries(&format!("/proc/{}/fd", containerd.as_raw_nonzero())),
    },
    Metric {
        name: "containerd's threads",
        noise: 6.0,
        read: |containerd| entries(&format!("/proc/{}/task", containerd.as_raw_nonzero())),
    },
];

/// The values of all [`METRICS`].
#[derive(Debug)]
pub(super) struct Sample {
    /// When, since the beginning.
    pub(super) seconds: f64,
    pub(super) values: Vec<f64>,
}

impl Sample {
    /// What the host holds now.
    pub(super) fn now(begin: Instant) -> anyhow::Result<Self> {
        let containerd = containerd::process()?;
        let read = |metric: &Metric| (metric.read)(containerd).with_context(|| metric.name);
        let values = METRICS.iter().map(read).collect::<anyhow::Result<_>>()?;
        Ok(Self { seconds: begin.elapsed().as_secs_f64(), values })
    }

    /// The same without what the kernel only keeps because nobody has wanted the room.
    pub(super) fn at_rest(begin: Instant) -> anyhow::Result<Self> {
        rustix::fs::sync();
        fs::write("/proc/sys/vm/drop_caches", "3").context("dropping caches")?;
        Self::now(begin)
    }
}

/// Memory that is not available to whoever wants some.
fn memory() -> anyhow::Result<f64> {
    Ok(mebibytes("/proc/meminfo", "MemTotal")? - mebibytes("/proc/meminfo", "MemAvailable")?)
}

/// Open files of everybody (Documentation/admin-guide/sysctl/fs.rst, file-nr).
fn open_files() -> anyhow::Result<f64> {
    let text = fs::read_to_string("/proc/sys/fs/file-nr")?;
    text.split_whitespace().next().and_then(|number| number.parse().ok()).context("file-nr")
}

/// Sockets of everybody in this network namespace.
fn sockets() -> anyhow::Result<f64> {
    let text = fs::read_to_string("/proc/net/sockstat")?;
    let number = text.lines().find_map(|line| line.strip_prefix("sockets: used "));
    number.and_then(|number| number.trim().parse().ok()).context("sockstat")
}

#[allow(clippy::cast_precision_loss)]
fn lines(path: &str) -> anyhow::Result<f64> {
    Ok(fs::read_to_string(path)?.lines().count() as f64)
}

#[allow(clippy::cast_precision_loss)]
fn entries(directory: &str) -> anyhow::Result<f64> {
    Ok(fs::read_dir(directory).with_context(|| directory.to_owned())?.count() as f64)
}

/// The directories in /proc of all processes with a program.
fn processes() -> anyhow::Result<Vec<std::path::PathBuf>> {
    Ok(crate::processes::that_execute(|_| true)?)
}

/// Threads of all processes. One that ends meanwhile counts as none.
#[allow(clippy::cast_precision_loss)]
fn threads() -> anyhow::Result<f64> {
    let count = |process: &std::path::PathBuf| fs::read_dir(process.join("task")).map_or(0, Iterator::count);
    Ok(processes()?.iter().map(count).sum::<usize>() as f64)
}

/// Network namespaces that somebody is in or that have a name.
#[allow(clippy::cast_precision_loss)]
fn network_namespaces() -> anyhow::Result<f64> {
    let inhabited = processes()?.into_iter().map(|process| process.join("ns/net"));
    let named = fs::read_dir("/run/netns").into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let numbers: BTreeSet<u64> =
        inhabited.chain(named).filter_map(|path| Some(fs::metadata(path).ok()?.ino())).collect();
    Ok(numbers.len() as f64)
}

fn directories_below(directory: &Path) -> f64 {
    let Ok(entries) = fs::read_dir(directory) else { return 0.0 };
    let directories = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories.map(|entry| 1.0 + directories_below(&entry.path())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_a_host_has_is_read_as_a_number_and_this_process_is_in_it() {
        let own = rustix::process::getpid();
        for metric in METRICS {
            let value = (metric.read)(own).unwrap();
            assert!(value >= 0.0, "{}: {value}", metric.name);
        }
        assert!(!processes().unwrap().is_empty() && threads().unwrap() >= 1.0);
    }
}
