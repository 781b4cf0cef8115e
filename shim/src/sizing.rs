//! How large a pod's VM is.
//!
//! The size is fixed for the VM's life. It follows from the pod's limits where there are any: those that CRI's
//! annotations give for the whole pod, else those of the container that makes the pod.
//!
//! - memory: the limit plus `memory_overhead`, rounded up to 2 MiB; without a limit, `memory`.
//! - vCPUs: the CPU quota in whole CPUs, rounded up; without a quota, `vcpus`. A cpuset raises this to what it names,
//!   since the guest cannot confine a container to CPUs that it does not have.

use crate::config::Config;
use crate::spec::{Document, annotations};

/// The most virtual CPUs.
pub(crate) const VCPUS_MAX: u32 = 64;
/// The least memory in MiB.
pub(crate) const MEMORY_MIN: u64 = 64;
/// The most memory in MiB: just below 1 TiB.
pub(crate) const MEMORY_MAX: u64 = 1024 * 1024 - 1;

const MIB: u64 = 1024 * 1024;

/// The size of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    /// Virtual CPUs.
    pub(crate) vcpus: u32,
    /// Memory in MiB.
    pub(crate) memory_mib: u64,
}

/// A limit that no VM can have.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum SizeError {
    /// More memory than a VM can have.
    #[error(
        "a memory limit of {limit} bytes plus {overhead} MiB overhead exceeds the {MEMORY_MAX} MiB that a VM can have"
    )]
    TooMuchMemory {
        /// The limit in bytes.
        limit: u64,
        /// The configured overhead in MiB.
        overhead: u64,
    },
    /// More CPUs than a VM can have.
    #[error("limits that need {0} CPUs exceed the {VCPUS_MAX} that a VM can have")]
    TooManyCpus(u64),
    /// An annotation that is no number.
    #[error("annotation {key}: {value:?} is not a whole number")]
    NotANumber {
        /// The annotation.
        key: &'static str,
        /// Its value.
        value: String,
    },
    /// A cpuset that cannot be read.
    #[error("linux.resources.cpu.cpus: {0:?} is not a list of CPUs such as 0-2,5")]
    BadCpuset(String),
}

/// What a pod may use at most, as far as it says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Limits {
    memory_bytes: Option<u64>,
    cpus: Option<u64>,
    cpuset_cpus: u64,
}

/// The size of the VM for the pod that `spec`'s container makes.
///
/// # Errors
/// Limits that cannot be read or that no VM can have.
pub(crate) fn size(config: &Config, spec: &Document) -> Result<Size, SizeError> {
    let limits = limits(spec)?;
    let memory_mib = match limits.memory_bytes {
        Some(bytes) => bytes.div_ceil(MIB).saturating_add(config.memory_overhead).next_multiple_of(2),
        None => config.memory,
    };
    if memory_mib > MEMORY_MAX {
        let limit = limits.memory_bytes.unwrap_or_default();
        return Err(SizeError::TooMuchMemory { limit, overhead: config.memory_overhead });
    }
    let cpus = limits.cpus.unwrap_or(u64::from(config.vcpus)).max(limits.cpuset_cpus).max(1);
    let vcpus = u32::try_from(cpus).ok().filter(|cpus| *cpus <= VCPUS_MAX);
    Ok(Size { vcpus: vcpus.ok_or(SizeError::TooManyCpus(cpus))?, memory_mib: memory_mib.max(MEMORY_MIN) })
}

fn limits(spec: &Document) -> Result<Limits, SizeError> {
    let of_pod = annotated(spec)?;
    let of_container = written(spec)?;
    Ok(Limits {
        memory_bytes: of_pod.memory_bytes.or(of_container.memory_bytes),
        cpus: of_pod.cpus.or(of_container.cpus),
        cpuset_cpus: of_container.cpuset_cpus,
    })
}

/// What CRI says of the pod as a whole.
fn annotated(spec: &Document) -> Result<Limits, SizeError> {
    let number = |key: &'static str| match spec.annotation(key) {
        None => Ok(None),
        Some(value) => value
            .trim()
            .parse::<i64>()
            .map(Some)
            .map_err(|_| SizeError::NotANumber { key, value: value.to_owned() }),
    };
    let quota = number(annotations::SANDBOX_CPU_QUOTA)?;
    let period = number(annotations::SANDBOX_CPU_PERIOD)?;
    Ok(Limits {
        memory_bytes: number(annotations::SANDBOX_MEMORY)?.and_then(positive),
        cpus: whole_cpus(quota, period),
        cpuset_cpus: 0,
    })
}

/// What the container's own spec says.
fn written(spec: &Document) -> Result<Limits, SizeError> {
    let number = |pointer| spec.value().pointer(pointer).and_then(serde_json::Value::as_i64);
    let cpuset = spec.value().pointer("/linux/resources/cpu/cpus").and_then(serde_json::Value::as_str);
    Ok(Limits {
        memory_bytes: number("/linux/resources/memory/limit").and_then(positive),
        cpus: whole_cpus(number("/linux/resources/cpu/quota"), number("/linux/resources/cpu/period")),
        cpuset_cpus: cpuset.map_or(Ok(0), cpus_named)?,
    })
}

fn positive(number: i64) -> Option<u64> {
    u64::try_from(number).ok().filter(|number| *number > 0)
}

/// The kernel's period when a spec gives none, in microseconds (Documentation/admin-guide/cgroup-v2.rst, cpu.max).
const DEFAULT_PERIOD: u64 = 100_000;

fn whole_cpus(quota: Option<i64>, period: Option<i64>) -> Option<u64> {
    let quota = quota.and_then(positive)?;
    Some(quota.div_ceil(period.and_then(positive).unwrap_or(DEFAULT_PERIOD)))
}

/// How many CPUs a machine must have for `list` ("0-2,5") to name only CPUs that exist.
fn cpus_named(list: &str) -> Result<u64, SizeError> {
    let bad = || SizeError::BadCpuset(list.chars().take(100).collect());
    let mut needed = 0;
    for range in list.split(',').map(str::trim).filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let first: u32 = first.parse().map_err(|_| bad())?;
        let last: u32 = last.parse().map_err(|_| bad())?;
        if last < first {
            return Err(bad());
        }
        needed = needed.max(u64::from(last) + 1);
    }
    Ok(needed)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn size_of(spec: serde_json::Value) -> Result<Size, SizeError> {
        let config = Config { vcpus: 2, memory: 300, memory_overhead: 100, ..Config::default() };
        size(&config, &Document::from_value(spec).unwrap())
    }

    #[test]
    fn a_pod_without_limits_gets_the_configured_size() {
        assert_eq!(size_of(json!({})), Ok(Size { vcpus: 2, memory_mib: 300 }));
    }

    #[test]
    fn a_containers_limits_size_its_pod_with_the_overhead_on_top() {
        let spec = json!({"linux": {"resources": {
            "memory": {"limit": 67_108_865},
            "cpu": {"quota": 150_000, "period": 100_000},
        }}});
        assert_eq!(size_of(spec), Ok(Size { vcpus: 2, memory_mib: 166 }));
    }

    #[test]
    fn the_pods_annotations_go_before_the_containers_own_limits() {
        let spec = json!({
            "annotations": {
                "io.kubernetes.cri.sandbox-memory": "104857600",
                "io.kubernetes.cri.sandbox-cpu-quota": "300000",
                "io.kubernetes.cri.sandbox-cpu-period": "100000",
            },
            "linux": {"resources": {"memory": {"limit": 1_048_576}}},
        });
        assert_eq!(size_of(spec), Ok(Size { vcpus: 3, memory_mib: 200 }));
    }

    #[test]
    fn zero_and_minus_one_mean_no_limit() {
        let spec = json!({
            "annotations": {"io.kubernetes.cri.sandbox-memory": "0", "io.kubernetes.cri.sandbox-cpu-quota": "0"},
            "linux": {"resources": {"memory": {"limit": -1}, "cpu": {"quota": -1}}},
        });
        assert_eq!(size_of(spec), Ok(Size { vcpus: 2, memory_mib: 300 }));
    }

    #[test]
    fn a_cpuset_gets_the_cpus_that_it_names() {
        let spec = json!({"linux": {"resources": {"cpu": {"cpus": "0,3-4"}}}});
        assert_eq!(size_of(spec).unwrap().vcpus, 5);
        let spec = json!({"linux": {"resources": {"cpu": {"cpus": "4-3"}}}});
        assert_eq!(size_of(spec), Err(SizeError::BadCpuset("4-3".into())));
    }

    #[test]
    fn limits_beyond_what_a_vm_can_have_are_refused() {
        let spec = json!({"linux": {"resources": {"memory": {"limit": i64::MAX}}}});
        assert!(matches!(size_of(spec), Err(SizeError::TooMuchMemory { .. })));
        let spec = json!({"linux": {"resources": {"cpu": {"quota": 6_500_000, "period": 100_000}}}});
        assert_eq!(size_of(spec), Err(SizeError::TooManyCpus(65)));
    }

    #[test]
    fn an_annotation_that_is_no_number_is_refused_by_name() {
        let spec = json!({"annotations": {"io.kubernetes.cri.sandbox-memory": "1Gi"}});
        let message = size_of(spec).unwrap_err().to_string();
        assert!(message.contains("io.kubernetes.cri.sandbox-memory") && message.contains("1Gi"));
    }
}
