//! How large a pod's VM is.
//!
//! The size is fixed for the VM's life. It follows from the pod's limits where there are any: those that CRI's
//! annotations give for the whole pod, else those of the container that makes the pod. What a pod requests of CPUs it has as well.
//!
//! A pod that [sets](crate::spec::settings) its size has no less than that, whatever its limits are.
//!
//! - memory: the limit plus `memory_overhead`, rounded up to 2 MiB; without a limit, `memory`.
//! - vCPUs: the CPU quota in whole CPUs, rounded up; without a quota, `vcpus`. What the pod requests by CRI raises this (a
//!   container's own shares do not: a weight is no number of CPUs), and so does a cpuset to what it names, since the guest cannot
//!   confine a container to CPUs that it does not have; but not one of CRI, which means the host's.
//! - huge pages: as many as the container's limits say, reserved when the guest boots, on top of its memory.

use crate::config::Config;
use crate::spec::number_list::{NotAList, NumberList};
use crate::spec::{Document, annotations};

/// The most virtual CPUs.
pub(crate) const VCPUS_MAX: u32 = 64;
/// The least memory in MiB.
pub(crate) const MEMORY_MIN: u64 = 64;
/// The most memory in MiB: just below 1 TiB.
pub(crate) const MEMORY_MAX: u64 = 1024 * 1024 - 1;

/// The most queue pairs of a network interface. As many interfaces as a VM can have devices then need fewer
/// descriptors than one message carries.
const QUEUE_PAIRS_MAX: u16 = 8;

/// Bytes in a MiB.
pub(crate) const MIB: u64 = 1024 * 1024;

/// The size of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    /// Virtual CPUs.
    pub(crate) vcpus: u32,
    /// Memory in MiB, huge pages included.
    pub(crate) memory_mib: u64,
    /// Huge pages of 2 MiB.
    pub(crate) pages_2m: u64,
    /// Huge pages of 1 GiB.
    pub(crate) pages_1g: u64,
}

impl Size {
    /// How many queue pairs a network interface is to have: one for each vCPU, up to [`QUEUE_PAIRS_MAX`].
    pub(crate) fn queue_pairs(&self) -> u16 {
        u16::try_from(self.vcpus).unwrap_or(u16::MAX).clamp(1, QUEUE_PAIRS_MAX)
    }
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
    #[error("limits or requests that need {0} CPUs exceed the {VCPUS_MAX} that a VM can have")]
    TooManyCpus(u64),
    /// An annotation that is no number.
    #[error("annotation {key}: {value:?} is not a whole number")]
    NotANumber {
        /// The annotation.
        key: &'static str,
        /// Its value.
        value: String,
    },
    /// Huge pages of a size that x86-64 does not have.
    #[error("linux.resources.hugepageLimits: pages of {0:?} are not supported: they must be 2MB or 1GB")]
    PageSize(String),
    /// A cpuset that cannot be read.
    #[error("linux.resources.cpu.cpus: {0}")]
    BadCpuset(#[from] NotAList),
}

/// What a pod may use at most, and how many CPUs it is to have at least, as far as it says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Limits {
    memory_bytes: Option<u64>,
    cpus: Option<u64>,
    requested_cpus: u64,
    cpuset_cpus: u64,
    pages_2m: u64,
    pages_1g: u64,
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
    let memory_mib = memory_mib.max(config.least_memory);
    let huge_mib = limits.pages_2m.saturating_mul(2).saturating_add(limits.pages_1g.saturating_mul(1024));
    let memory_mib = memory_mib.saturating_add(huge_mib);
    if memory_mib > MEMORY_MAX {
        let limit = memory_mib.saturating_sub(config.memory_overhead).saturating_mul(MIB);
        return Err(SizeError::TooMuchMemory { limit, overhead: config.memory_overhead });
    }
    let cpus = limits.cpus.unwrap_or(u64::from(config.vcpus));
    let cpus = cpus.max(limits.requested_cpus).max(limits.cpuset_cpus).max(config.least_vcpus.into()).max(1);
    let vcpus = u32::try_from(cpus).ok().filter(|cpus| *cpus <= VCPUS_MAX);
    Ok(Size {
        vcpus: vcpus.ok_or(SizeError::TooManyCpus(cpus))?,
        memory_mib: memory_mib.max(MEMORY_MIN),
        pages_2m: limits.pages_2m,
        pages_1g: limits.pages_1g,
    })
}

fn limits(spec: &Document) -> Result<Limits, SizeError> {
    let of_pod = annotated(spec)?;
    let of_container = written(spec)?;
    Ok(Limits {
        memory_bytes: of_pod.memory_bytes.or(of_container.memory_bytes),
        cpus: of_pod.cpus.or(of_container.cpus),
        requested_cpus: of_pod.requested_cpus,
        ..of_container
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
    let shares = number(annotations::SANDBOX_CPU_SHARES)?;
    Ok(Limits {
        memory_bytes: number(annotations::SANDBOX_MEMORY)?.and_then(positive),
        cpus: whole_cpus(quota, period),
        requested_cpus: shares.and_then(positive).map_or(0, |shares| shares.div_ceil(SHARES_OF_A_CPU)),
        ..Limits::default()
    })
}

/// What the container's own spec says.
fn written(spec: &Document) -> Result<Limits, SizeError> {
    let number = |pointer| spec.value().pointer(pointer).and_then(serde_json::Value::as_i64);
    let cpuset = spec.value().pointer("/linux/resources/cpu/cpus").and_then(serde_json::Value::as_str);
    // Those of CRI are the host's, and no guest confines a container to them.
    let cpuset = cpuset.filter(|list| !list.is_empty() && !spec.is_of_cri());
    let (pages_2m, pages_1g) = huge_pages(spec)?;
    Ok(Limits {
        memory_bytes: number("/linux/resources/memory/limit").and_then(positive),
        cpus: whole_cpus(number("/linux/resources/cpu/quota"), number("/linux/resources/cpu/period")),
        requested_cpus: 0,
        cpuset_cpus: cpuset.map_or(Ok(0), cpus_named)?,
        pages_2m,
        pages_1g,
    })
}

/// How many pages of 2 MiB and of 1 GiB the limits allow.
fn huge_pages(spec: &Document) -> Result<(u64, u64), SizeError> {
    let limits =
        spec.value().pointer("/linux/resources/hugepageLimits").and_then(serde_json::Value::as_array);
    let (mut pages_2m, mut pages_1g) = (0, 0);
    for entry in limits.into_iter().flatten() {
        let bytes = entry.get("limit").and_then(serde_json::Value::as_u64).unwrap_or_default();
        match entry.get("pageSize").and_then(serde_json::Value::as_str).unwrap_or_default() {
            "2MB" => pages_2m = bytes.div_ceil(2 * MIB),
            "1GB" => pages_1g = bytes.div_ceil(1024 * MIB),
            // What the container may not use the guest need not have.
            _ if bytes == 0 => {}
            other => return Err(SizeError::PageSize(other.to_owned())),
        }
    }
    Ok((pages_2m, pages_1g))
}

impl Size {
    /// What the guest's kernel has to be told.
    pub(crate) fn kernel_parameters(&self) -> Vec<String> {
        let mut parameters = Vec::new();
        for (size, count) in [("2M", self.pages_2m), ("1G", self.pages_1g)] {
            if count > 0 {
                parameters.push(format!("hugepagesz={size} hugepages={count}"));
            }
        }
        parameters
    }
}

fn positive(number: i64) -> Option<u64> {
    u64::try_from(number).ok().filter(|number| *number > 0)
}

/// The kernel's period when a spec gives none, in microseconds (Documentation/admin-guide/cgroup-v2.rst, cpu.max).
pub(crate) const CPU_PERIOD: u64 = 100_000;

/// What a kubelet makes of the request of one CPU (`cpu_shares` in `k8s.io/cri-api/pkg/apis/runtime/v1/api.proto`; a thousandth of a
/// CPU is 1024/1000, and a pod that requests none has 2).
const SHARES_OF_A_CPU: u64 = 1024;

fn whole_cpus(quota: Option<i64>, period: Option<i64>) -> Option<u64> {
    let quota = quota.and_then(positive)?;
    Some(quota.div_ceil(period.and_then(positive).unwrap_or(CPU_PERIOD)))
}

/// How many CPUs a machine must have for `list` ("0-2,5") to name only CPUs that exist.
fn cpus_named(list: &str) -> Result<u64, SizeError> {
    let list: NumberList = list.parse()?;
    Ok(u64::from(list.highest()) + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn size_of(spec: serde_json::Value) -> Result<Size, SizeError> {
        let config = Config { vcpus: 2, memory: 300, memory_overhead: 100, ..Config::default() };
        size(&config, &Document::from_value(spec).unwrap())
    }

    #[test]
    fn a_pod_without_limits_gets_the_configured_size() {
        assert_eq!(size_of(json!({})), Ok(Size { vcpus: 2, memory_mib: 300, pages_2m: 0, pages_1g: 0 }));
    }

    #[test]
    fn a_containers_limits_size_its_pod_with_the_overhead_on_top() {
        let spec = json!({"linux": {"resources": {
            "memory": {"limit": 67_108_865},
            "cpu": {"quota": 150_000, "period": 100_000},
        }}});
        assert_eq!(size_of(spec), Ok(Size { vcpus: 2, memory_mib: 166, pages_2m: 0, pages_1g: 0 }));
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
        assert_eq!(size_of(spec), Ok(Size { vcpus: 3, memory_mib: 200, pages_2m: 0, pages_1g: 0 }));
    }

    #[test]
    fn a_pod_has_the_cpus_that_it_requests_whatever_its_quota_is() {
        let vcpus = |shares: &str, quota: &str| {
            let annotations = json!({
                "io.kubernetes.cri.sandbox-cpu-shares": shares, "io.kubernetes.cri.sandbox-cpu-quota": quota,
            });
            size_of(json!({"annotations": annotations})).map(|size| size.vcpus)
        };
        assert_eq!(
            ["2", "2048", "2049", "-1"].map(|shares| vcpus(shares, "0")),
            [Ok(2), Ok(2), Ok(3), Ok(2)]
        );
        // A container without a limit beside one with a limit.
        assert_eq!(vcpus("4096", "100000"), Ok(4));
        assert_eq!(vcpus("512", "100000"), Ok(1));
        assert_eq!(vcpus("66561", "0"), Err(SizeError::TooManyCpus(66)));
        // Without CRI they are a weight.
        let spec = json!({"linux": {"resources": {"cpu": {"shares": 8192}}}});
        assert_eq!(size_of(spec).unwrap().vcpus, 2);
    }

    #[test]
    fn zero_and_minus_one_mean_no_limit() {
        let spec = json!({
            "annotations": {"io.kubernetes.cri.sandbox-memory": "0", "io.kubernetes.cri.sandbox-cpu-quota": "0"},
            "linux": {"resources": {"memory": {"limit": -1}, "cpu": {"quota": -1}}},
        });
        assert_eq!(size_of(spec), Ok(Size { vcpus: 2, memory_mib: 300, pages_2m: 0, pages_1g: 0 }));
    }

    #[test]
    fn a_cpuset_gets_the_cpus_that_it_names() {
        let spec = json!({"linux": {"resources": {"cpu": {"cpus": "0,3-4"}}}});
        assert_eq!(size_of(spec).unwrap().vcpus, 5);
        let spec = json!({"linux": {"resources": {"cpu": {"cpus": "4-3"}}}});
        assert!(matches!(size_of(spec), Err(SizeError::BadCpuset(_))));
        let spec = json!({
            "annotations": {"io.kubernetes.cri.container-type": "sandbox"},
            "linux": {"resources": {"cpu": {"cpus": "60-90"}}},
        });
        assert_eq!(size_of(spec).unwrap().vcpus, 2);
    }

    #[test]
    fn a_pod_that_sets_its_size_has_no_less_and_as_much_as_its_limits_need() {
        let size_of = |memory: u64, vcpus: u32| {
            let config = Config {
                memory_overhead: 100,
                least_memory: memory,
                least_vcpus: vcpus,
                ..Config::default()
            };
            let spec =
                json!({"linux": {"resources": {"memory": {"limit": 200 << 20}, "cpu": {"quota": 200_000}}}});
            let size = size(&config, &Document::from_value(spec).unwrap()).unwrap();
            (size.memory_mib, size.vcpus)
        };
        assert_eq!(size_of(0, 0), (300, 2));
        assert_eq!(size_of(299, 1), (300, 2));
        assert_eq!(size_of(301, 3), (301, 3));
    }

    #[test]
    fn huge_pages_come_on_top_and_the_kernel_is_told() {
        let spec = json!({"linux": {"resources": {"hugepageLimits": [
            {"pageSize": "2MB", "limit": 4_194_304}, {"pageSize": "1GB", "limit": 0}, {"pageSize": "64KB", "limit": 0}]}}});
        let size = size_of(spec).unwrap();
        assert_eq!((size.memory_mib, size.pages_2m, size.pages_1g), (304, 2, 0));
        assert_eq!(size.kernel_parameters(), ["hugepagesz=2M hugepages=2"]);

        let spec =
            json!({"linux": {"resources": {"hugepageLimits": [{"pageSize": "64KB", "limit": 65536}]}}});
        assert_eq!(size_of(spec), Err(SizeError::PageSize("64KB".into())));
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

    /// Numbers of all magnitudes, those beside what limits are made of among them.
    fn limit() -> impl Strategy<Value = i64> {
        prop_oneof![any::<i64>(), -2i64..3, (0u32..63).prop_map(|bits| (1i64 << bits) - 1), 1i64..1 << 34]
    }

    proptest! {
        #[test]
        fn any_limits_give_a_machine_that_can_be_and_holds_them_or_are_refused(
            memory in limit(), quota in limit(), period in limit(), pages in any::<u64>(), cpus in any::<u32>(),
        ) {
            let pages = if pages % 3 == 0 { pages } else { pages % (1 << 34) };
            let spec = json!({"linux": {"resources": {
                "memory": {"limit": memory},
                "cpu": {"quota": quota, "period": period, "cpus": format!("0-{}", cpus % 80)},
                "hugepageLimits": [{"pageSize": "2MB", "limit": pages}],
            }}});
            if let Ok(size) = size_of(spec) {
                prop_assert!((1..=VCPUS_MAX).contains(&size.vcpus));
                prop_assert!((MEMORY_MIN..=MEMORY_MAX).contains(&size.memory_mib));
                prop_assert!(size.vcpus > cpus % 80);
                let huge_mib = 2 * size.pages_2m;
                prop_assert!(u128::from(huge_mib) << 20 >= u128::from(pages));
                if let Some(bytes) = positive(memory) {
                    prop_assert!((size.memory_mib - huge_mib - 100) << 20 >= bytes);
                }
            }
        }
    }
}
