//! `boot`: what lies between the VMM's exec and an agent that listens: time, instructions and VM exits by reason, phase by
//! phase. Under the lab's deterministic clock the figures repeat to within a percent.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use serde::Serialize;

use super::runtimes::{Runtime, timed};
use crate::ctr;
use crate::report::start_timeline::Timeline;
use crate::report::table::Table;

/// Where the kernel's tracing is.
const TRACING: &str = "/sys/kernel/tracing";

/// Nanoseconds of guest time per instruction under the lab's `-icount shift=1`.
const NANOSECONDS_PER_INSTRUCTION: f64 = 2.0;

/// One phase of the boot.
#[derive(Debug, Clone, Serialize)]
pub struct BootPhase {
    /// What takes place.
    pub name: String,
    /// How long, milliseconds.
    pub milliseconds: f64,
    /// Instructions of the whole machine, host and guest; only under the deterministic clock.
    pub instructions: Option<f64>,
    /// VM exits by the reason that KVM names.
    pub exits: BTreeMap<String, u64>,
}

impl BootPhase {
    fn exit_count(&self) -> u64 {
        self.exits.values().sum()
    }
}

/// One VM exit as the kernel's tracepoint `kvm:kvm_exit` saw it.
#[derive(Debug, Clone, PartialEq)]
struct Exit {
    nanoseconds: f64,
    reason: String,
}

/// Boots one pod with the tracepoint on. `deterministic` says that the clock counts instructions.
///
/// # Errors
/// When tracing is not to be had (it needs root and tracefs) or the pod does not start.
pub fn measure(deterministic: bool) -> anyhow::Result<Vec<BootPhase>> {
    let id = "bench-boot";
    // The first start finds nothing in the page cache; the second is the one that counts.
    timed(&mut Runtime::kata().run(&["--rm"], "bench-boot-warm", &["true"]))?;
    let trace = Trace::begin()?;
    timed(&mut Runtime::kata().run(&["--detach"], id, &["sleep", "3600"]))?;
    let exits = trace.end();
    let timeline = Timeline::read("default", id);
    ctr::remove(id)?;
    Ok(phases(&timeline?, &exits?, deterministic))
}

/// The tracepoint, on as long as this lives.
struct Trace;

impl Trace {
    fn begin() -> anyhow::Result<Self> {
        if !Path::new(TRACING).join("trace").exists() {
            timed(Command::new("mount").args(["-t", "tracefs", "tracefs", TRACING]))?;
        }
        write("tracing_on", "0")?;
        write("trace", "")?;
        write("trace_clock", "mono")?;
        write("buffer_size_kb", "16384")?;
        write("events/kvm/kvm_exit/enable", "1")?;
        write("tracing_on", "1")?;
        Ok(Self)
    }

    fn end(self) -> anyhow::Result<Vec<Exit>> {
        write("tracing_on", "0")?;
        let text = fs::read_to_string(Path::new(TRACING).join("trace")).context("cannot read the trace")?;
        let exits: Vec<Exit> = text.lines().filter_map(parse).collect();
        ensure!(!exits.is_empty(), "the trace holds no VM exit");
        Ok(exits)
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        for (file, value) in
            [("tracing_on", "0"), ("events/kvm/kvm_exit/enable", "0"), ("buffer_size_kb", "1")]
        {
            if let Err(error) = write(file, value) {
                eprintln!("{error:#}");
            }
        }
    }
}

fn write(file: &str, value: &str) -> anyhow::Result<()> {
    let path = Path::new(TRACING).join(file);
    fs::write(&path, value).with_context(|| format!("cannot write {value:?} to {}", path.display()))
}

/// Reads a line such as `vcpu0-312 [000] d.... 12.345678: kvm_exit: vcpu 0 reason npf rip 0x… info1 …`.
fn parse(line: &str) -> Option<Exit> {
    let (before, event) = line.split_once(": kvm_exit: ")?;
    let seconds: f64 = before.rsplit(' ').next()?.parse().ok()?;
    let reason = event.split_once("reason ")?.1.split_whitespace().next()?;
    Some(Exit { nanoseconds: seconds * 1e9, reason: reason.trim_start_matches("EXIT_").to_lowercase() })
}

#[allow(clippy::cast_precision_loss)]
fn phases(timeline: &Timeline, exits: &[Exit], deterministic: bool) -> Vec<BootPhase> {
    let moments = [
        ("VMM exec to first instruction", timeline.vmm_spawned_ns, timeline.first_instruction_ns),
        (
            "kernel, to the agent's first instruction",
            timeline.first_instruction_ns,
            timeline.agent_entered_ns,
        ),
        ("agent, to listening", timeline.agent_entered_ns, timeline.agent_listening_ns),
    ];
    moments
        .into_iter()
        .map(|(name, start, end)| {
            let (start, end) = (start as f64, end as f64);
            let mut counts = BTreeMap::new();
            for exit in exits.iter().filter(|exit| (start..end).contains(&exit.nanoseconds)) {
                *counts.entry(exit.reason.clone()).or_insert(0) += 1;
            }
            let instructions = deterministic.then_some((end - start) / NANOSECONDS_PER_INSTRUCTION);
            BootPhase {
                name: name.to_owned(),
                milliseconds: (end - start) / 1e6,
                instructions,
                exits: counts,
            }
        })
        .collect()
}

/// The figures as a table, the commonest reasons named.
pub fn table(phases: &[BootPhase]) -> Table {
    let mut table =
        Table::new(["from VMM exec to agent listening", "ms", "million instructions", "exits", "reasons"]);
    for phase in phases {
        table.row(row(
            &phase.name,
            phase.milliseconds,
            phase.instructions,
            phase.exit_count(),
            reasons(&phase.exits),
        ));
    }
    let milliseconds = phases.iter().map(|phase| phase.milliseconds).sum();
    let instructions = phases.iter().map(|phase| phase.instructions).sum();
    table.row(row(
        "total",
        milliseconds,
        instructions,
        phases.iter().map(BootPhase::exit_count).sum(),
        String::new(),
    ));
    table
}

fn row(name: &str, milliseconds: f64, instructions: Option<f64>, exits: u64, reasons: String) -> [String; 5] {
    let instructions = instructions.map_or_else(|| "–".to_owned(), |count| format!("{:.1}", count / 1e6));
    [name.to_owned(), format!("{milliseconds:.2}"), instructions, exits.to_string(), reasons]
}

fn reasons(exits: &BTreeMap<String, u64>) -> String {
    let mut sorted: Vec<_> = exits.iter().collect();
    sorted.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    sorted.iter().map(|(reason, count)| format!("{reason} {count}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_is_read_from_its_line_in_the_trace() {
        let line = "           vcpu0-312     [000] d....    12.500000: kvm_exit: vcpu 0 reason npf rip 0xffffffff81 info1 0x0";
        assert_eq!(parse(line), Some(Exit { nanoseconds: 12.5e9, reason: "npf".to_owned() }));
        assert_eq!(parse("# tracer: nop"), None);
    }

    #[test]
    fn an_exit_belongs_to_the_phase_in_which_it_happened() {
        let timeline = Timeline {
            vmm_spawned_ns: 0,
            first_instruction_ns: 100,
            agent_entered_ns: 200,
            agent_listening_ns: 300,
            ..Timeline::default()
        };
        let exit = |nanoseconds, reason: &str| Exit { nanoseconds, reason: reason.to_owned() };
        let phases = phases(
            &timeline,
            &[exit(100.0, "npf"), exit(150.0, "npf"), exit(250.0, "io"), exit(999.0, "io")],
            true,
        );
        assert_eq!(phases[0].exit_count(), 0);
        assert_eq!(phases[1].exits, BTreeMap::from([("npf".to_owned(), 2)]));
        assert_eq!(phases[2].exits, BTreeMap::from([("io".to_owned(), 1)]));
        assert_eq!(phases[1].instructions, Some(50.0));
    }
}
