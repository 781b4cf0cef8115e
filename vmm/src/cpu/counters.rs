//! How often vCPUs exit to user space, and why.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use kvm_ioctls::VcpuExit;

/// Names by index. The last one is for everything that a guest in order does not cause.
const NAMES: [&str; 7] = ["io_in", "io_out", "mmio_read", "mmio_write", "interrupted", "ended", "other"];

/// Exits of all vCPUs of a VM to user space, by reason.
#[derive(Debug, Default)]
pub struct ExitCounters([AtomicU64; NAMES.len()]);

impl ExitCounters {
    /// Counts what `KVM_RUN` has returned.
    pub(super) fn count(&self, exit: &Result<VcpuExit<'_>, kvm_ioctls::Error>) {
        let index = match exit {
            Ok(VcpuExit::IoIn(..)) => 0,
            Ok(VcpuExit::IoOut(..)) => 1,
            Ok(VcpuExit::MmioRead(..)) => 2,
            Ok(VcpuExit::MmioWrite(..)) => 3,
            Ok(VcpuExit::Intr) | Err(_) => 4,
            Ok(VcpuExit::Shutdown | VcpuExit::SystemEvent(..) | VcpuExit::Hlt) => 5,
            Ok(_) => 6,
        };
        if let Some(counter) = self.0.get(index) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The counts that are not zero, by reason.
    pub fn by_reason(&self) -> BTreeMap<String, u64> {
        let counts = self.0.iter().map(|counter| counter.load(Ordering::Relaxed));
        NAMES
            .iter()
            .zip(counts)
            .filter(|(_, count)| *count > 0)
            .map(|(name, n)| ((*name).into(), n))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_are_counted_by_reason_and_absent_ones_left_out() {
        let counters = ExitCounters::default();
        for _ in 0..3 {
            counters.count(&Ok(VcpuExit::IoOut(0x604, &[0])));
        }
        counters.count(&Ok(VcpuExit::MmioRead(0, &mut [0])));
        let counts = counters.by_reason();
        assert_eq!(counts.len(), 2);
        assert_eq!((counts["io_out"], counts["mmio_read"]), (3, 1));
    }
}
