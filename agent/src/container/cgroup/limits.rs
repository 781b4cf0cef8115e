//! `linux.resources` as writes to the files of a cgroup.

use std::collections::BTreeMap;

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxPids, LinuxResources};

use crate::error::SpecError;

/// One value for one file of the cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    /// The field of the spec that asks for it.
    pub(crate) field: String,
    /// The file.
    pub(crate) file: String,
    /// What is written.
    pub(crate) value: String,
    /// What to do where the kernel has no such file.
    pub(crate) without_file: WithoutFile,
}

/// What the absence of a file means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WithoutFile {
    /// The limit cannot be kept, which is an error.
    Refuse,
    /// There is nothing to limit, or it follows from another file.
    Pass,
}

const FIELD: &str = "linux.resources";

/// `CFS_PERIOD`: 100 ms, the kernel's default for cpu.max.
const DEFAULT_PERIOD: u64 = 100_000;

/// Everything that `resources` asks for, but the device rules.
pub(crate) fn settings(resources: &LinuxResources) -> Result<Vec<Setting>, SpecError> {
    let mut settings = Settings::default();
    if let Some(limit) = resources.pids().as_ref().map(LinuxPids::limit).filter(|l| *l != 0) {
        settings.add("pids.limit", "pids.max", number_or_max(limit));
    }
    if let Some(memory) = resources.memory() {
        settings.memory(memory)?;
    }
    if let Some(io) = resources.block_io() {
        settings.block_io(io)?;
    }
    if let Some(cpu) = resources.cpu() {
        settings.cpu(cpu)?;
    }
    settings.huge_pages(resources)?;
    settings.rdma(resources);
    refuse_network(resources)?;
    settings.unified(resources)?;
    Ok(settings.0)
}

#[derive(Default)]
struct Settings(Vec<Setting>);

impl Settings {
    fn add(&mut self, field: &str, file: &str, value: impl Into<String>) {
        self.0.push(Setting {
            field: format!("{FIELD}.{field}"),
            file: file.to_owned(),
            value: value.into(),
            without_file: WithoutFile::Refuse,
        });
    }

    fn memory(&mut self, memory: &LinuxMemory) -> Result<(), SpecError> {
        refuse_old_memory_fields(memory)?;
        if let Some(limit) = memory.limit().filter(|limit| *limit != 0) {
            self.add("memory.limit", "memory.max", number_or_max(limit));
        }
        if let Some(value) = swap_alone(memory)? {
            self.add("memory.swap", "memory.swap.max", value);
        }
        if let Some(reservation) = memory.reservation().filter(|reservation| *reservation != 0) {
            self.add("memory.reservation", "memory.low", number_or_max(reservation));
        }
        Ok(())
    }

    fn cpu(&mut self, cpu: &LinuxCpu) -> Result<(), SpecError> {
        let real_time = cpu.realtime_runtime().is_some_and(|value| value != 0)
            || cpu.realtime_period().is_some_and(|v| v != 0);
        if real_time {
            return Err(not_supported(
                "cpu.realtimeRuntime",
                "cgroup v2 has no budget for real-time processes",
            ));
        }
        if let Some(idle) = cpu.idle() {
            self.add("cpu.idle", "cpu.idle", idle.to_string());
        }
        // A group that is idle has no weight that could be set.
        if let Some(shares) = cpu.shares().filter(|shares| *shares != 0 && cpu.idle().unwrap_or(0) == 0) {
            self.add("cpu.shares", "cpu.weight", weight_of_shares(shares).to_string());
        }
        let quota = cpu.quota().filter(|quota| *quota != 0);
        let period = cpu.period().filter(|period| *period != 0);
        if quota.is_some() || period.is_some() {
            let quota = quota.map_or_else(|| "max".to_owned(), number_or_max);
            self.add("cpu.quota", "cpu.max", format!("{quota} {}", period.unwrap_or(DEFAULT_PERIOD)));
        }
        if let Some(burst) = cpu.burst() {
            self.add("cpu.burst", "cpu.max.burst", burst.to_string());
        }
        for (field, file, list) in
            [("cpu.cpus", "cpuset.cpus", cpu.cpus()), ("cpu.mems", "cpuset.mems", cpu.mems())]
        {
            if let Some(list) = list.as_ref().filter(|list| !list.is_empty()) {
                self.add(field, file, list);
            }
        }
        Ok(())
    }

    fn block_io(&mut self, io: &LinuxBlockIo) -> Result<(), SpecError> {
        if io.leaf_weight().is_some_and(|weight| weight != 0) {
            return Err(not_supported("blockIO.leafWeight", "cgroup v2 has no leaf weights"));
        }
        refuse_block_devices(io)?;
        if let Some(weight) = io.weight().filter(|weight| *weight != 0) {
            let weight = io_weight("blockIO.weight", weight)?;
            self.add("blockIO.weight", "io.weight", format!("default {weight}"));
        }
        Ok(())
    }

    fn huge_pages(&mut self, resources: &LinuxResources) -> Result<(), SpecError> {
        for (index, limit) in resources.hugepage_limits().iter().flatten().enumerate() {
            let field = format!("hugepageLimits[{index}]");
            let size = limit.page_size();
            if !size.chars().all(|character| character.is_ascii_alphanumeric()) || size.is_empty() {
                let problem = format!("is {size:?}; it is as 2MB");
                return Err(SpecError::invalid(format!("{FIELD}.{field}.pageSize"), problem));
            }
            // Where there are no pages of that size, none is what there is anyway.
            let without_file = if limit.limit() == 0 { WithoutFile::Pass } else { WithoutFile::Refuse };
            for (file, without_file) in [("max", without_file), ("rsvd.max", WithoutFile::Pass)] {
                self.0.push(Setting {
                    field: format!("{FIELD}.{field}"),
                    file: format!("hugetlb.{size}.{file}"),
                    value: number_or_max(limit.limit()),
                    without_file,
                });
            }
        }
        Ok(())
    }

    fn rdma(&mut self, resources: &LinuxResources) {
        for (device, limits) in resources.rdma().iter().flatten() {
            let number =
                |limit: Option<u32>| limit.map_or_else(|| "max".to_owned(), |limit| limit.to_string());
            let value = format!(
                "{device} hca_handle={} hca_object={}",
                number(limits.hca_handles()),
                number(limits.hca_objects())
            );
            self.add("rdma", "rdma.max", value);
        }
    }

    fn unified(&mut self, resources: &LinuxResources) -> Result<(), SpecError> {
        // In a fixed order, so that a failure is always the same one.
        let unified: BTreeMap<_, _> = resources.unified().iter().flatten().collect();
        for (file, value) in unified {
            if file.contains('/') || !file.contains('.') {
                let problem = "is not the name of a cgroup v2 file, as memory.high";
                return Err(SpecError::invalid(format!("{FIELD}.unified[{file:?}]"), problem));
            }
            for line in value.lines() {
                self.add(&format!("unified[{file:?}]"), file, line);
            }
        }
        Ok(())
    }
}

fn not_supported(field: &str, problem: &str) -> SpecError {
    SpecError::not_supported(format!("{FIELD}.{field}"), problem)
}

#[allow(deprecated, reason = "the fields are in the spec, and to be refused by name")]
fn refuse_old_memory_fields(memory: &LinuxMemory) -> Result<(), SpecError> {
    let table = [
        (
            "memory.kernel",
            memory.kernel().is_some_and(|limit| limit > 0),
            "cgroup v2 has one limit for all memory",
        ),
        (
            "memory.kernelTCP",
            memory.kernel_tcp().is_some_and(|limit| limit > 0),
            "cgroup v2 has one limit for all memory",
        ),
        ("memory.swappiness", memory.swappiness().is_some(), "cgroup v2 has no swappiness of a group"),
        (
            "memory.disableOOMKiller",
            memory.disable_oom_killer() == Some(true),
            "cgroup v2 always ends processes of a group that is out of memory",
        ),
        ("memory.useHierarchy", memory.use_hierarchy() == Some(false), "cgroup v2 is always hierarchical"),
    ];
    match table.iter().find(|(_, set, _)| *set) {
        Some((field, _, problem)) => Err(not_supported(field, problem)),
        None => Ok(()),
    }
}

/// The spec's limit is of memory and swap together; cgroup v2 has one for swap alone.
fn swap_alone(memory: &LinuxMemory) -> Result<Option<String>, SpecError> {
    let limit = memory.limit().unwrap_or(0);
    let invalid = |problem: String| Err(SpecError::invalid(format!("{FIELD}.memory.swap"), problem));
    match memory.swap().unwrap_or(0) {
        // No limit of memory means none of swap either.
        0 if limit == -1 => Ok(Some("max".to_owned())),
        0 => Ok(None),
        -1 => Ok(Some("max".to_owned())),
        swap if limit <= 0 => {
            invalid(format!("is {swap}, which includes memory; memory.limit must be set too"))
        }
        swap if swap < limit => {
            invalid(format!("is {swap}, which includes memory and is below memory.limit {limit}"))
        }
        swap => Ok(Some((swap - limit).to_string())),
    }
}

/// Limits of single devices, which the spec has by the host's numbers: a number may be another device's in the guest.
fn refuse_block_devices(io: &LinuxBlockIo) -> Result<(), SpecError> {
    fn some<T>(devices: &Option<Vec<T>>) -> bool {
        devices.as_ref().is_some_and(|devices| !devices.is_empty())
    }
    let table = [
        ("blockIO.weightDevice", some(io.weight_device())),
        ("blockIO.throttleReadBpsDevice", some(io.throttle_read_bps_device())),
        ("blockIO.throttleWriteBpsDevice", some(io.throttle_write_bps_device())),
        ("blockIO.throttleReadIOPSDevice", some(io.throttle_read_iops_device())),
        ("blockIO.throttleWriteIOPSDevice", some(io.throttle_write_iops_device())),
    ];
    match table.iter().find(|(_, set)| *set) {
        Some((field, _)) => Err(not_supported(field, "the guest has none of the host's block devices")),
        None => Ok(()),
    }
}

fn refuse_network(resources: &LinuxResources) -> Result<(), SpecError> {
    let Some(network) = resources.network() else {
        return Ok(());
    };
    if network.class_id().is_some_and(|id| id != 0) {
        return Err(not_supported("network.classID", "cgroup v2 has no network classes"));
    }
    if network.priorities().as_ref().is_some_and(|priorities| !priorities.is_empty()) {
        return Err(not_supported("network.priorities", "cgroup v2 has no network priorities"));
    }
    Ok(())
}

fn number_or_max(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

/// From cgroup v1's 2–262144 to cgroup v2's 1–10000, as the OCI runtimes convert it.
fn weight_of_shares(shares: u64) -> u64 {
    let shares = shares.clamp(2, 262_144);
    1 + (shares - 2) * 9999 / 262_142
}

/// From cgroup v1's 10–1000 to cgroup v2's 1–10000.
fn io_weight(field: &str, weight: u16) -> Result<u64, SpecError> {
    if !(10..=1000).contains(&weight) {
        let problem = format!("is {weight}; it is 10 to 1000");
        return Err(SpecError::invalid(format!("{FIELD}.{field}"), problem));
    }
    Ok(1 + (u64::from(weight) - 10) * 9999 / 990)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Vec<(String, String)>, String> {
        let resources: LinuxResources = serde_json::from_str(json).unwrap();
        settings(&resources)
            .map(|settings| settings.into_iter().map(|setting| (setting.file, setting.value)).collect())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn limits_become_the_files_of_cgroup_v2() {
        let table = [
            (r#"{"memory":{"limit":1048576}}"#, vec![("memory.max", "1048576")]),
            (r#"{"memory":{"limit":-1}}"#, vec![("memory.max", "max"), ("memory.swap.max", "max")]),
            (
                r#"{"memory":{"limit":100,"swap":150,"reservation":50}}"#,
                vec![("memory.max", "100"), ("memory.swap.max", "50"), ("memory.low", "50")],
            ),
            (
                r#"{"memory":{"limit":100,"swap":-1}}"#,
                vec![("memory.max", "100"), ("memory.swap.max", "max")],
            ),
            (r#"{"cpu":{"shares":1024}}"#, vec![("cpu.weight", "39")]),
            (r#"{"cpu":{"shares":2}}"#, vec![("cpu.weight", "1")]),
            (r#"{"cpu":{"shares":262144}}"#, vec![("cpu.weight", "10000")]),
            (r#"{"cpu":{"quota":50000}}"#, vec![("cpu.max", "50000 100000")]),
            (r#"{"cpu":{"quota":-1,"period":20000}}"#, vec![("cpu.max", "max 20000")]),
            (r#"{"cpu":{"cpus":"0-1","mems":"0"}}"#, vec![("cpuset.cpus", "0-1"), ("cpuset.mems", "0")]),
            (r#"{"cpu":{"idle":1,"shares":100}}"#, vec![("cpu.idle", "1")]),
            (r#"{"pids":{"limit":100}}"#, vec![("pids.max", "100")]),
            (r#"{"pids":{"limit":-1}}"#, vec![("pids.max", "max")]),
            (r#"{"pids":{"limit":0}}"#, vec![]),
            (r#"{"blockIO":{"weight":10}}"#, vec![("io.weight", "default 1")]),
            (r#"{"blockIO":{"weight":1000}}"#, vec![("io.weight", "default 10000")]),
            (
                r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4}]}"#,
                vec![("hugetlb.2MB.max", "4"), ("hugetlb.2MB.rsvd.max", "4")],
            ),
            (
                r#"{"unified":{"memory.high":"5","cpu.max":"1 2"}}"#,
                vec![("cpu.max", "1 2"), ("memory.high", "5")],
            ),
        ];
        for (json, expected) in table {
            let expected: Vec<_> =
                expected.into_iter().map(|(file, value)| (file.to_owned(), value.to_owned())).collect();
            assert_eq!(read(json), Ok(expected), "{json}");
        }
    }

    #[test]
    fn what_cannot_be_kept_is_refused_by_name() {
        let table = [
            (r#"{"memory":{"swap":100}}"#, "linux.resources.memory.swap: is 100"),
            (r#"{"memory":{"limit":100,"swap":50}}"#, "linux.resources.memory.swap: is 50"),
            (r#"{"memory":{"swappiness":5}}"#, "linux.resources.memory.swappiness: not supported"),
            (r#"{"memory":{"kernel":5}}"#, "linux.resources.memory.kernel: not supported"),
            (
                r#"{"memory":{"disableOOMKiller":true}}"#,
                "linux.resources.memory.disableOOMKiller: not supported",
            ),
            (r#"{"cpu":{"realtimeRuntime":5}}"#, "linux.resources.cpu.realtimeRuntime: not supported"),
            (r#"{"blockIO":{"weight":5}}"#, "linux.resources.blockIO.weight: is 5"),
            (r#"{"blockIO":{"leafWeight":50}}"#, "linux.resources.blockIO.leafWeight: not supported"),
            (
                r#"{"blockIO":{"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":1000}]}}"#,
                "linux.resources.blockIO.throttleReadBpsDevice: not supported",
            ),
            (r#"{"network":{"classID":5}}"#, "linux.resources.network.classID: not supported"),
            (r#"{"unified":{"../x.y":"1"}}"#, "linux.resources.unified[\"../x.y\"]: is not"),
            (
                r#"{"hugepageLimits":[{"pageSize":"../2MB","limit":4}]}"#,
                "linux.resources.hugepageLimits[0].pageSize",
            ),
        ];
        for (json, start) in table {
            let message = read(json).unwrap_err();
            assert!(message.starts_with(start), "{json}: {message}");
        }
    }
}
