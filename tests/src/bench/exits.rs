//! VM exits as the host's kernel counts them: its tracepoints `kvm:kvm_exit` and `kvm:kvm_pio`.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use serde::Serialize;

use super::runtimes::timed;
use crate::report::table::Table;

/// Where the kernel's tracing is.
const TRACING: &str = "/sys/kernel/tracing";
const TRACEPOINTS: [&str; 2] = ["events/kvm/kvm_exit/enable", "events/kvm/kvm_pio/enable"];

/// Nanoseconds of guest time per instruction under the lab's `-icount shift=1`.
const NANOSECONDS_PER_INSTRUCTION: f64 = 2.0;

/// What the tracepoints saw of one virtual machine; times in nanoseconds of `CLOCK_MONOTONIC`.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Events {
    pub(super) exits: Vec<Exit>,
    pub(super) port_writes: Vec<PortWrite>,
}

/// One VM exit.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Exit {
    pub(super) nanoseconds: f64,
    pub(super) reason: String,
}

/// One byte written to an I/O port.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PortWrite {
    pub(super) nanoseconds: f64,
    pub(super) port: u64,
    pub(super) value: u64,
}

impl Events {
    fn parse(trace: &str) -> Self {
        let mut events = Self::default();
        for line in trace.lines() {
            events.exits.extend(parse_exit(line));
            events.port_writes.extend(parse_port_write(line));
        }
        events
    }
}

/// The tracepoints, on as long as this lives.
pub(super) struct Trace;

impl Trace {
    /// Forgets what was traced before.
    pub(super) fn begin() -> anyhow::Result<Self> {
        if !Path::new(TRACING).join("trace").exists() {
            timed(Command::new("mount").args(["-t", "tracefs", "tracefs", TRACING]))?;
        }
        // From here on whatever was set is set back, be it halfway.
        let trace = Self;
        write("tracing_on", "0")?;
        write("trace", "")?;
        write("trace_clock", "mono")?;
        // What comes first is what counts, should the buffer be too small.
        write("options/overwrite", "0")?;
        write("buffer_size_kb", "16384")?;
        TRACEPOINTS.iter().try_for_each(|tracepoint| write(tracepoint, "1"))?;
        write("tracing_on", "1")?;
        Ok(trace)
    }

    /// What was seen.
    pub(super) fn end(self) -> anyhow::Result<Events> {
        write("tracing_on", "0")?;
        let text = fs::read_to_string(Path::new(TRACING).join("trace")).context("cannot read the trace")?;
        let events = Events::parse(&text);
        ensure!(!events.exits.is_empty(), "the trace holds no VM exit");
        Ok(events)
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let off = TRACEPOINTS.map(|tracepoint| (tracepoint, "0"));
        let usual = [("options/overwrite", "1"), ("buffer_size_kb", "1")];
        for (file, value) in [("tracing_on", "0")].into_iter().chain(off).chain(usual) {
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
fn parse_exit(line: &str) -> Option<Exit> {
    let (nanoseconds, event) = split(line, "kvm_exit")?;
    let reason = event.split_once("reason ")?.1.split_whitespace().next()?;
    Some(Exit { nanoseconds, reason: reason.trim_start_matches("EXIT_").to_lowercase() })
}

/// Reads a line such as `vcpu0-312 [000] ..... 12.345678: kvm_pio: pio_write at 0x3f8 size 1 count 1 val 0x5b`.
fn parse_port_write(line: &str) -> Option<PortWrite> {
    let (nanoseconds, event) = split(line, "kvm_pio")?;
    let event = event.strip_prefix("pio_write at ")?;
    let number = |word: &str| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok();
    let port = number(event.split_whitespace().next()?)?;
    let value = number(event.split_once(" val ")?.1.split_whitespace().next()?)?;
    Some(PortWrite { nanoseconds, port, value })
}

/// Time and words of a line that tells of `event`.
fn split<'a>(line: &'a str, event: &str) -> Option<(f64, &'a str)> {
    let (before, words) = line.split_once(&format!(": {event}: "))?;
    let seconds: f64 = before.rsplit(' ').next()?.parse().ok()?;
    Some((seconds * 1e9, words))
}

/// One phase of a boot.
#[derive(Debug, Clone, Serialize)]
pub struct Phase {
    /// What takes place.
    pub name: String,
    /// How long, milliseconds.
    pub milliseconds: f64,
    /// Instructions of the whole machine, host and guest; only under the deterministic clock.
    pub instructions: Option<f64>,
    /// VM exits by the reason that KVM names.
    pub exits: BTreeMap<String, u64>,
}

impl Phase {
    /// What happened between two moments. `deterministic` says that the clock counts instructions.
    pub(super) fn new(name: &str, moments: Range<f64>, exits: &[Exit], deterministic: bool) -> Self {
        let mut counts = BTreeMap::new();
        for exit in exits.iter().filter(|exit| moments.contains(&exit.nanoseconds)) {
            *counts.entry(exit.reason.clone()).or_insert(0) += 1;
        }
        let nanoseconds = moments.end - moments.start;
        Self {
            name: name.to_owned(),
            milliseconds: nanoseconds / 1e6,
            instructions: deterministic.then_some(nanoseconds / NANOSECONDS_PER_INSTRUCTION),
            exits: counts,
        }
    }

    /// All exits.
    pub fn exit_count(&self) -> u64 {
        self.exits.values().sum()
    }

    /// Adds it to a table of five columns: name, time, instructions, exits, and their reasons, the commonest first.
    pub(super) fn add_to(&self, table: &mut Table) {
        let instructions =
            self.instructions.map_or_else(|| "–".to_owned(), |count| format!("{:.1}", count / 1e6));
        table.row([
            self.name.clone(),
            format!("{:.2}", self.milliseconds),
            instructions,
            self.exit_count().to_string(),
            reasons(&self.exits),
        ]);
    }
}

fn reasons(exits: &BTreeMap<String, u64>) -> String {
    let mut sorted: Vec<_> = exits.iter().collect();
    sorted.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    sorted.iter().map(|(reason, count)| format!("{reason} {count}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "# tracer: nop\n\
        \x20          vcpu0-312     [000] d....    12.500000: kvm_exit: vcpu 0 reason npf rip 0xffffffff81 info1 0x0\n\
        \x20      fc_vcpu 0-77      [001] .....    12.750000: kvm_pio: pio_write at 0x3f8 size 1 count 1 val 0x5b \n\
        \x20      fc_vcpu 0-77      [001] .....    12.750000: kvm_pio: pio_read at 0x3fd size 1 count 1 val 0x60 \n\
        \x20          vcpu0-312     [000] d....    13.000000: kvm_exit: vcpu 0 reason EXIT_HLT rip 0x1 info1 0x0\n";

    #[test]
    fn exits_and_writes_to_ports_are_read_from_the_trace() {
        let exit = |nanoseconds, reason: &str| Exit { nanoseconds, reason: reason.to_owned() };
        let events = Events::parse(TRACE);
        assert_eq!(events.exits, [exit(12.5e9, "npf"), exit(13e9, "hlt")]);
        assert_eq!(events.port_writes, [PortWrite { nanoseconds: 12.75e9, port: 0x3f8, value: 0x5b }]);
    }

    #[test]
    fn an_exit_belongs_to_the_phase_in_which_it_happened() {
        let exit = |nanoseconds, reason: &str| Exit { nanoseconds, reason: reason.to_owned() };
        let exits = [exit(99.0, "io"), exit(100.0, "npf"), exit(150.0, "npf"), exit(200.0, "io")];
        let phase = Phase::new("kernel", 100.0..200.0, &exits, true);
        assert_eq!(phase.exits, BTreeMap::from([("npf".to_owned(), 2)]));
        assert_eq!((phase.instructions, phase.exit_count()), (Some(50.0), 2));
        assert_eq!(Phase::new("kernel", 100.0..200.0, &exits, false).instructions, None);
    }
}
