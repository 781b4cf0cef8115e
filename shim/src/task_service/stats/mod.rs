//! A container's figures, from its cgroup's files in the guest to containerd's message.
//!
//! The files are the kernel's own text (Documentation/admin-guide/cgroup-v2.rst), but the guest may have sent anything:
//! what is not a number counts as 0.

mod version1;

use std::collections::{BTreeMap, HashMap};

use containerd_shim_protos::cgroups_v2::metrics::{
    CPUStat, HugeTlbStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PidsStat,
};
use protobuf::well_known_types::any::Any;

use crate::events::any;

/// The most block devices and page sizes that are reported.
const ENTRIES_MAX: usize = 64;

/// The longest name of a page size, such as `2MB`, in bytes.
const PAGE_SIZE_MAX: usize = 16;

/// What the files say, as containerd's message of the version that the host's own cgroups have: its clients expect
/// that one.
///
/// # Errors
/// A message that cannot be encoded.
pub(crate) fn message(files: &HashMap<String, String>, host_is_unified: bool) -> protobuf::Result<Any> {
    let metrics = metrics(files);
    if host_is_unified { any(&metrics) } else { any(&version1::metrics(&metrics)) }
}

/// The files whose numbers can be added up: one number, or lines of a key and a number.
const SUMMABLE: [&str; 6] =
    ["cpu.stat", "memory.current", "memory.swap.current", "memory.stat", "memory.events", "pids.current"];

/// The files of several cgroups as one that has them all below it would have them.
pub(crate) fn sum(cgroups: &[HashMap<String, String>]) -> HashMap<String, String> {
    let sum_of = |name: &str| {
        let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
        for line in cgroups.iter().filter_map(|files| files.get(name)).flat_map(|text| text.lines()) {
            let (key, number) = line.split_once(' ').unwrap_or(("", line));
            let sum = sums.entry(key).or_default();
            *sum = sum.saturating_add(number.trim().parse().unwrap_or(0));
        }
        let lines: Vec<_> =
            sums.iter().map(|(key, sum)| format!("{key} {sum}").trim_start().to_owned()).collect();
        lines.join("\n")
    };
    SUMMABLE.into_iter().map(|name| (name.to_owned(), sum_of(name))).collect()
}

/// The metrics that the files say.
fn metrics(files: &HashMap<String, String>) -> Metrics {
    let files = Files(files);
    Metrics {
        pids: Some(pids(files)).into(),
        cpu: Some(cpu(files)).into(),
        memory: Some(memory(files)).into(),
        memory_events: Some(memory_events(files)).into(),
        io: Some(io(files)).into(),
        hugetlb: hugetlb(files),
        ..Default::default()
    }
}

/// The files by their names.
#[derive(Clone, Copy)]
struct Files<'a>(&'a HashMap<String, String>);

impl<'a> Files<'a> {
    fn text(self, name: &str) -> &'a str {
        self.0.get(name).map(String::as_str).unwrap_or_default()
    }

    /// A file with one number. "max" is the largest one, as containerd's own shim has it.
    fn number(self, name: &str) -> u64 {
        match self.text(name).trim() {
            "max" => u64::MAX,
            number => number.parse().unwrap_or(0),
        }
    }

    /// A file of lines with a key and a number.
    fn keyed(self, name: &str) -> Keyed<'a> {
        let pairs = self.text(name).lines().filter_map(|line| line.split_once(' '));
        Keyed(pairs.map(|(key, number)| (key, number.trim().parse().unwrap_or(0))).collect())
    }
}

struct Keyed<'a>(HashMap<&'a str, u64>);

impl Keyed<'_> {
    fn number(&self, key: &str) -> u64 {
        self.0.get(key).copied().unwrap_or(0)
    }

    fn sum(&self, one: &str, other: &str) -> u64 {
        self.number(one).saturating_add(self.number(other))
    }
}

fn pids(files: Files<'_>) -> PidsStat {
    PidsStat { current: files.number("pids.current"), limit: files.number("pids.max"), ..Default::default() }
}

fn cpu(files: Files<'_>) -> CPUStat {
    let stat = files.keyed("cpu.stat");
    CPUStat {
        usage_usec: stat.number("usage_usec"),
        user_usec: stat.number("user_usec"),
        system_usec: stat.number("system_usec"),
        nr_periods: stat.number("nr_periods"),
        nr_throttled: stat.number("nr_throttled"),
        throttled_usec: stat.number("throttled_usec"),
        nr_bursts: stat.number("nr_bursts"),
        burst_usec: stat.number("burst_usec"),
        ..Default::default()
    }
}

fn memory(files: Files<'_>) -> MemoryStat {
    let stat = files.keyed("memory.stat");
    MemoryStat {
        anon: stat.number("anon"),
        file: stat.number("file"),
        kernel_stack: stat.number("kernel_stack"),
        slab: stat.number("slab"),
        sock: stat.number("sock"),
        shmem: stat.number("shmem"),
        file_mapped: stat.number("file_mapped"),
        file_dirty: stat.number("file_dirty"),
        file_writeback: stat.number("file_writeback"),
        anon_thp: stat.number("anon_thp"),
        inactive_anon: stat.number("inactive_anon"),
        active_anon: stat.number("active_anon"),
        inactive_file: stat.number("inactive_file"),
        active_file: stat.number("active_file"),
        unevictable: stat.number("unevictable"),
        slab_reclaimable: stat.number("slab_reclaimable"),
        slab_unreclaimable: stat.number("slab_unreclaimable"),
        pgfault: stat.number("pgfault"),
        pgmajfault: stat.number("pgmajfault"),
        workingset_refault: stat.sum("workingset_refault_anon", "workingset_refault_file"),
        workingset_activate: stat.sum("workingset_activate_anon", "workingset_activate_file"),
        workingset_nodereclaim: stat.number("workingset_nodereclaim"),
        pgrefill: stat.number("pgrefill"),
        pgscan: stat.number("pgscan"),
        pgsteal: stat.number("pgsteal"),
        pgactivate: stat.number("pgactivate"),
        pgdeactivate: stat.number("pgdeactivate"),
        pglazyfree: stat.number("pglazyfree"),
        pglazyfreed: stat.number("pglazyfreed"),
        thp_fault_alloc: stat.number("thp_fault_alloc"),
        thp_collapse_alloc: stat.number("thp_collapse_alloc"),
        usage: files.number("memory.current"),
        usage_limit: files.number("memory.max"),
        swap_usage: files.number("memory.swap.current"),
        swap_limit: files.number("memory.swap.max"),
        max_usage: files.number("memory.peak"),
        ..Default::default()
    }
}

fn memory_events(files: Files<'_>) -> MemoryEvents {
    let events = files.keyed("memory.events");
    MemoryEvents {
        low: events.number("low"),
        high: events.number("high"),
        max: events.number("max"),
        oom: events.number("oom"),
        oom_kill: events.number("oom_kill"),
        oom_group_kill: events.number("oom_group_kill"),
        ..Default::default()
    }
}

/// Lines such as `254:0 rbytes=1 wbytes=2 rios=3 wios=4 …`.
fn io(files: Files<'_>) -> IOStat {
    let usage = files.text("io.stat").lines().filter_map(io_entry).take(ENTRIES_MAX).collect();
    IOStat { usage, ..Default::default() }
}

fn io_entry(line: &str) -> Option<IOEntry> {
    let (device, figures) = line.split_once(' ')?;
    let (major, minor) = device.split_once(':')?;
    let figures: HashMap<&str, &str> =
        figures.split(' ').filter_map(|figure| figure.split_once('=')).collect();
    let number = |key| figures.get(key).and_then(|number| number.parse().ok()).unwrap_or(0);
    Some(IOEntry {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        rbytes: number("rbytes"),
        wbytes: number("wbytes"),
        rios: number("rios"),
        wios: number("wios"),
        ..Default::default()
    })
}

/// Files such as `hugetlb.2MB.current`.
fn hugetlb(files: Files<'_>) -> Vec<HugeTlbStat> {
    let mut sizes: Vec<&str> = files
        .0
        .keys()
        .filter_map(|name| name.strip_prefix("hugetlb.")?.strip_suffix(".current"))
        .filter(|size| size.len() <= PAGE_SIZE_MAX && size.bytes().all(|byte| byte.is_ascii_alphanumeric()))
        .collect();
    sizes.sort_unstable();
    sizes
        .into_iter()
        .take(ENTRIES_MAX)
        .map(|size| HugeTlbStat {
            current: files.number(&format!("hugetlb.{size}.current")),
            max: files.number(&format!("hugetlb.{size}.max")),
            failcnt: files.keyed(&format!("hugetlb.{size}.events")).number("max"),
            pagesize: size.to_owned(),
            ..Default::default()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(files: &[(&str, &str)]) -> Metrics {
        metrics(&files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect())
    }

    #[test]
    fn the_message_is_of_the_version_that_the_hosts_cgroups_have() {
        let files = HashMap::new();
        assert_eq!(message(&files, true).unwrap().type_url, "io.containerd.cgroups.v2.Metrics");
        assert_eq!(message(&files, false).unwrap().type_url, "io.containerd.cgroups.v1.Metrics");
    }

    #[test]
    fn the_kernels_figures_arrive_as_they_are() {
        let metrics = of(&[
            ("pids.current", "3\n"),
            ("pids.max", "max\n"),
            ("cpu.stat", "usage_usec 10\nuser_usec 6\nsystem_usec 4\nnr_throttled 2\n"),
            ("memory.current", "4096\n"),
            ("memory.max", "1048576\n"),
            ("memory.stat", "anon 100\nfile 200\nworkingset_refault_anon 1\nworkingset_refault_file 2\n"),
            ("memory.events", "oom 1\noom_kill 1\n"),
            ("io.stat", "254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n"),
            ("hugetlb.2MB.current", "0\n"),
            ("hugetlb.2MB.max", "2097152\n"),
        ]);
        assert_eq!((metrics.pids.current, metrics.pids.limit), (3, u64::MAX));
        assert_eq!((metrics.cpu.usage_usec, metrics.cpu.user_usec, metrics.cpu.nr_throttled), (10, 6, 2));
        assert_eq!((metrics.memory.usage, metrics.memory.usage_limit), (4096, 1_048_576));
        assert_eq!(
            (metrics.memory.anon, metrics.memory.file, metrics.memory.workingset_refault),
            (100, 200, 3)
        );
        assert_eq!(metrics.memory_events.oom_kill, 1);
        let io = &metrics.io.usage[0];
        assert_eq!((io.major, io.rbytes, io.wios), (254, 1, 4));
        assert_eq!((metrics.hugetlb[0].pagesize.as_str(), metrics.hugetlb[0].max), ("2MB", 2_097_152));
    }

    #[test]
    fn missing_and_nonsensical_files_count_as_nothing() {
        let metrics = of(&[
            ("cpu.stat", "usage_usec x\ngarbage"),
            ("io.stat", "a b c\n:\n"),
            ("pids.current", "-1"),
            ("hugetlb.\x1b[2J.current", "1"),
            ("hugetlb.2MB.rsvd.current", "1"),
        ]);
        assert_eq!(metrics.cpu.usage_usec, 0);
        assert_eq!(metrics.pids.current, 0);
        assert!(metrics.io.usage.is_empty() && metrics.hugetlb.is_empty());
    }

    #[test]
    fn figures_of_any_size_can_be_added_up() {
        let most = u64::MAX;
        let text = format!("workingset_refault_anon {most}\nworkingset_refault_file {most}\n");
        assert_eq!(of(&[("memory.stat", &text)]).memory.workingset_refault, most);
    }
}
