//! `boot`: what lies between the VMM's exec and an agent that listens: time, instructions and VM exits by reason, phase by
//! phase. Under the lab's deterministic clock the figures repeat to within a percent.

use serde::Serialize;

use super::exits::{Exit, Phase, Trace};
use super::monitors::Monitor;
use super::runtimes::{Runtime, timed};
use crate::ctr;
use crate::report::start_timeline::Timeline;
use crate::report::table::Table;

/// What `boot` measures.
#[derive(Debug, Serialize)]
pub struct BootFigures {
    /// The boot of a pod, phase by phase.
    pub pod: Vec<Phase>,
    /// The same kernel under other VMMs.
    pub monitors: Vec<Monitor>,
}

/// Boots one pod with the tracepoints on. `deterministic` says that the clock counts instructions.
///
/// # Errors
/// When tracing is not to be had (it needs root and tracefs) or the pod does not start.
pub fn measure(deterministic: bool) -> anyhow::Result<Vec<Phase>> {
    let id = "bench-boot";
    // The first start finds nothing in the page cache; the second is the one that counts.
    timed(&mut Runtime::kata().run(&["--rm"], "bench-boot-warm", &["true"]))?;
    let trace = Trace::begin()?;
    timed(&mut Runtime::kata().run(&["--detach"], id, &["sleep", "3600"]))?;
    let events = trace.end();
    let timeline = Timeline::read("default", id);
    ctr::remove(id)?;
    Ok(phases(&timeline?, &events?.exits, deterministic))
}

#[allow(clippy::cast_precision_loss)]
fn phases(timeline: &Timeline, exits: &[Exit], deterministic: bool) -> Vec<Phase> {
    let moments = [
        timeline.vmm_spawned_ns,
        timeline.first_instruction_ns,
        timeline.agent_entered_ns,
        timeline.agent_listening_ns,
    ];
    let [spawned, first_instruction, agent_entered, agent_listening] = moments.map(|moment| moment as f64);
    [
        ("VMM exec to first instruction", spawned..first_instruction),
        ("kernel, to the agent's first instruction", first_instruction..agent_entered),
        ("agent, to listening", agent_entered..agent_listening),
        ("total", spawned..agent_listening),
    ]
    .into_iter()
    .map(|(name, moments)| Phase::new(name, moments, exits, deterministic))
    .collect()
}

/// The figures as a table.
pub fn table(phases: &[Phase]) -> Table {
    let mut table =
        Table::new(["from VMM exec to agent listening", "ms", "million instructions", "exits", "reasons"]);
    phases.iter().for_each(|phase| phase.add_to(&mut table));
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_phases_follow_one_another_and_add_up() {
        let timeline = Timeline {
            vmm_spawned_ns: 0,
            first_instruction_ns: 100,
            agent_entered_ns: 200,
            agent_listening_ns: 300,
            ..Timeline::default()
        };
        let exits =
            [100.0, 150.0, 250.0, 999.0].map(|nanoseconds| Exit { nanoseconds, reason: "npf".into() });
        let counts: Vec<_> = phases(&timeline, &exits, true).iter().map(Phase::exit_count).collect();
        assert_eq!(counts, [0, 2, 1, 3]);
    }
}
