//! `memory`: what the host pays for idle pods: the PSS of shim and VMM, without and with the guest's own memory.

use std::fs;

use anyhow::Context;
use serde::Serialize;

use super::runtimes::{Runtime, timed};
use crate::ctr::remove;
use crate::processes;
use crate::report::table::Table;

/// Our binary: processes are told by the file that they execute.
const SHIM: &str = "containerd-shim-kata-v2";

/// What one number of pods costs, KiB.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PodMemory {
    /// How many pods idle.
    pub pods: usize,
    /// PSS of all shims and VMMs, without guest memory.
    pub overhead_kib: u64,
    /// PSS of the guests' memory.
    pub guest_kib: u64,
    /// How many processes that is.
    pub processes: usize,
    /// How many threads they have.
    pub threads: usize,
}

/// Starts pods up to each of `steps` and measures at each, then takes them away.
///
/// # Errors
/// When a pod does not start or /proc cannot be read.
pub fn measure(steps: &[usize]) -> anyhow::Result<Vec<PodMemory>> {
    let mut figures = Vec::new();
    let mut running = Vec::new();
    let outcome = (|| {
        for &pods in steps {
            while running.len() < pods {
                let id = format!("bench-memory-{}", running.len());
                timed(&mut Runtime::kata().run(&["--detach"], &id, &["sleep", "3600"]))?;
                running.push(id);
            }
            eprintln!("memory: {pods} pods idle");
            figures.push(measure_now(pods)?);
        }
        Ok(())
    })();
    for id in &running {
        remove(id)?;
    }
    outcome.map(|()| figures)
}

/// Measures all shims and VMMs that run now.
///
/// # Errors
/// When /proc cannot be read.
pub fn measure_now(pods: usize) -> anyhow::Result<PodMemory> {
    let mut total = PodMemory { pods, overhead_kib: 0, guest_kib: 0, processes: 0, threads: 0 };
    for process in processes::that_execute(|program| program.ends_with(SHIM))? {
        let smaps = fs::read_to_string(process.join("smaps")).context("cannot read smaps")?;
        let (overhead, guest) = split_pss(&smaps);
        total.overhead_kib += overhead;
        total.guest_kib += guest;
        total.processes += 1;
        total.threads += fs::read_dir(process.join("task"))?.count();
    }
    Ok(total)
}

/// What marks the guest's memory among `VmFlags` (proc(5)): neither in core dumps nor copied to children. A shim or VMM has no
/// other such mapping.
const GUEST_MEMORY: [&str; 2] = ["dd", "dc"];

/// Adds up the `Pss:` lines of an smaps file, in KiB: all mappings but the guest's memory, and that. The flags of a
/// mapping come last.
fn split_pss(smaps: &str) -> (u64, u64) {
    let (mut overhead, mut guest, mut pss) = (0, 0, 0);
    for line in smaps.lines() {
        if let Some(value) = line.strip_prefix("Pss:") {
            pss = value.trim().trim_end_matches(" kB").parse().unwrap_or(0);
        } else if let Some(flags) = line.strip_prefix("VmFlags:") {
            let is_guest = GUEST_MEMORY.iter().all(|flag| flags.split_whitespace().any(|one| one == *flag));
            if is_guest { guest += pss } else { overhead += pss }
        }
    }
    (overhead, guest)
}

/// The figures as a table.
pub fn table(figures: &[PodMemory]) -> Table {
    let mut table = Table::new([
        "idle pods",
        "shim + VMM MiB",
        "per pod MiB",
        "guest memory MiB",
        "processes",
        "threads",
    ]);
    for step in figures {
        table.row([
            step.pods.to_string(),
            mebibytes(step.overhead_kib),
            mebibytes(step.overhead_kib / step.pods.max(1) as u64),
            mebibytes(step.guest_kib),
            step.processes.to_string(),
            step.threads.to_string(),
        ]);
    }
    table
}

#[allow(clippy::cast_precision_loss)]
fn mebibytes(kib: u64) -> String {
    format!("{:.1}", kib as f64 / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_is_told_from_the_rest() {
        let smaps = "55d0-55d1 r-xp 00000000 fe:00 12 /usr/local/bin/shim\nRss: 5 kB\nPss: 100 kB\nVmFlags: rd ex mr\n\
                     7f00-7f10 rw-p 00000000 00:00 0\nPss:  4096 kB\nPss_Dirty: 9 kB\nVmFlags: rd wr dc dd hg\n\
                     7f20-7f21 r--p 00000000 00:00 0 [vvar]\nPss: 20 kB\nVmFlags: rd mr pf io de dd\n";
        assert_eq!(split_pss(smaps), (120, 4096));
    }
}
