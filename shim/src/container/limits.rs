//! A container's limits of memory and CPUs, against what its pod's virtual machine has.

use serde_json::{Map, Value};

use crate::sizing::{CPU_PERIOD, MIB, Size};

/// What a container may use at most. `None` is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Bytes.
    memory: Option<u64>,
    cpu: Option<CpuTime>,
}

/// Time on CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct CpuTime {
    /// Microseconds that may be used, on all CPUs together,
    quota: u64,
    /// in so many.
    period: u64,
}

/// A limit that is raised above what the machine has.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum RaisedTooFar {
    /// Of memory.
    #[error(
        "linux.resources.memory.limit: {limit} bytes are more than the {memory_mib} MiB of the pod's virtual machine, which cannot grow: make the pod anew with this limit"
    )]
    Memory {
        /// The limit.
        limit: u64,
        /// What the machine has.
        memory_mib: u64,
    },
    /// Of CPUs.
    #[error(
        "linux.resources.cpu.quota: {quota} µs in {period} µs are more than the {vcpus} CPUs of the pod's virtual machine, which cannot grow: make the pod anew with this limit"
    )]
    Cpu {
        /// The limit.
        quota: u64,
        /// The same.
        period: u64,
        /// What the machine has.
        vcpus: u32,
    },
}

impl Limits {
    /// These limits, changed as `resources` of an OCI spec say. What they do not name stays.
    pub(super) fn after(self, resources: &Map<String, Value>) -> Self {
        let number = |object: &str, key: &str| {
            let number = resources.get(object)?.get(key)?.as_i64();
            number.filter(|number| *number != 0)
        };
        let memory = match number("memory", "limit") {
            None => self.memory,
            Some(limit) => u64::try_from(limit).ok(),
        };
        let period =
            number("cpu", "period").and_then(|period| u64::try_from(period).ok()).unwrap_or(CPU_PERIOD);
        let cpu = match number("cpu", "quota") {
            None => self.cpu,
            Some(quota) => u64::try_from(quota).ok().map(|quota| CpuTime { quota, period }),
        };
        Self { memory, cpu }
    }

    /// Whether a machine of this size can give what these limits have more than `before`.
    ///
    /// # Errors
    /// The first one that it cannot. One that was that high before is none.
    pub(super) fn check_raised(self, before: Self, size: Size) -> Result<(), RaisedTooFar> {
        if let Some(limit) = self.memory
            && limit > size.memory_mib.saturating_mul(MIB)
            && before.memory.is_none_or(|before| limit > before)
        {
            return Err(RaisedTooFar::Memory { limit, memory_mib: size.memory_mib });
        }
        let machine = CpuTime { quota: size.vcpus.into(), period: 1 };
        if let Some(time) = self.cpu
            && time.is_more_than(machine)
            && before.cpu.is_none_or(|before| time.is_more_than(before))
        {
            let CpuTime { quota, period } = time;
            return Err(RaisedTooFar::Cpu { quota, period, vcpus: size.vcpus });
        }
        Ok(())
    }
}

impl CpuTime {
    fn is_more_than(self, other: Self) -> bool {
        u128::from(self.quota) * u128::from(other.period) > u128::from(other.quota) * u128::from(self.period)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const SIZE: Size = Size { vcpus: 2, memory_mib: 256, pages_2m: 0, pages_1g: 0 };

    fn after(limits: Limits, resources: &Value) -> Limits {
        limits.after(resources.as_object().unwrap())
    }

    #[test]
    fn a_limit_may_be_raised_as_far_as_the_machine_goes_and_stay_or_sink_beyond_that() {
        let small = json!({"memory": {"limit": 64 << 20}, "cpu": {"quota": 50_000, "period": 100_000}});
        let large = json!({"memory": {"limit": 1 << 30}, "cpu": {"quota": 500_000, "period": 100_000}});
        let no_limits = json!({});
        let table = [
            (&small, json!({"memory": {"limit": 256 << 20}, "cpu": {"quota": 200_000}}), true),
            (&small, json!({"memory": {"limit": (256 << 20) + 1}}), false),
            (&small, json!({"cpu": {"quota": 200_001}}), false),
            (&small, json!({"cpu": {"quota": 200_000, "period": 50_000}}), false),
            (&small, json!({"memory": {"limit": -1}, "cpu": {"quota": -1}}), true),
            (&small, json!({"memory": {"limit": 0}, "cpu": {"quota": 0, "shares": 2}}), true),
            (&small, json!({"pids": {"limit": 5}}), true),
            (&large, large.clone(), true),
            (&large, json!({"memory": {"limit": 1 << 29}, "cpu": {"quota": 400_000}}), true),
            (&large, json!({"memory": {"limit": 2_u64 << 30}}), false),
            (&large, json!({"cpu": {"quota": 500_001}}), false),
            (&no_limits, json!({"memory": {"limit": 1 << 30}}), false),
            (&no_limits, json!({"memory": {"limit": 1 << 20}}), true),
        ];
        for (before, resources, is_possible) in table {
            let before = after(Limits::default(), before);
            let checked = after(before, &resources).check_raised(before, SIZE);
            assert_eq!(checked.is_ok(), is_possible, "{before:?} {resources}: {checked:?}");
        }
    }

    #[test]
    fn what_is_raised_too_far_is_told_with_both_figures() {
        let check = |resources| after(Limits::default(), &resources).check_raised(Limits::default(), SIZE);
        let memory = check(json!({"memory": {"limit": 1 << 30}})).unwrap_err().to_string();
        assert!(memory.contains("1073741824 bytes") && memory.contains("256 MiB"), "{memory}");
        let cpu = check(json!({"cpu": {"quota": 300_000}})).unwrap_err().to_string();
        assert!(cpu.contains("300000 µs in 100000 µs") && cpu.contains("2 CPUs"), "{cpu}");
    }
}
