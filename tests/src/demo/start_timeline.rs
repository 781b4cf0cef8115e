//! The timeline of one start, as the shim wrote it down.

use std::fs;

use anyhow::Context;
use serde::Deserialize;

use crate::report::timeline::{Phase, draw};

/// The shim's file `timeline.json`: moments of one start, nanoseconds of `CLOCK_MONOTONIC`.
#[derive(Debug, Clone, Deserialize)]
struct Timeline {
    create_received_ns: u64,
    vmm_spawned_ns: u64,
    first_instruction_ns: u64,
    agent_entered_ns: u64,
    agent_listening_ns: u64,
    container_created_ns: u64,
    running_ns: u64,
}

/// The start of a pod as bars.
pub(super) fn picture(namespace: &str, pod: &str) -> anyhow::Result<String> {
    let path = format!("/run/saya/{namespace}/{pod}/timeline.json");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let timeline: Timeline =
        serde_json::from_str(&text).with_context(|| format!("{path} is not a timeline"))?;
    Ok(draw(&phases(&timeline), 48))
}

fn phases(timeline: &Timeline) -> Vec<Phase> {
    let moments = [
        ("create received", timeline.create_received_ns),
        ("VMM spawned", timeline.vmm_spawned_ns),
        ("VM set up, first vCPU instruction", timeline.first_instruction_ns),
        ("guest kernel, agent entered", timeline.agent_entered_ns),
        ("agent listening", timeline.agent_listening_ns),
        ("container created", timeline.container_created_ns),
        ("running", timeline.running_ns),
    ];
    let begin = moments.iter().map(|(_, at)| *at).min().unwrap_or(0);
    let mut sorted = moments.to_vec();
    sorted.sort_by_key(|(_, at)| *at);
    let pairs = sorted.iter().zip(sorted.iter().skip(1));
    pairs.map(|((_, start), (name, end))| phase(name, start - begin, end - begin)).collect()
}

#[allow(clippy::cast_precision_loss)]
fn phase(name: &str, start: u64, end: u64) -> Phase {
    Phase { name: name.to_owned(), start: start as f64 / 1e6, end: end as f64 / 1e6 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vmm_that_is_spawned_before_create_comes_first() {
        let timeline = Timeline {
            create_received_ns: 5_000_000,
            vmm_spawned_ns: 1_000_000,
            first_instruction_ns: 7_000_000,
            agent_entered_ns: 8_000_000,
            agent_listening_ns: 9_000_000,
            container_created_ns: 10_000_000,
            running_ns: 11_000_000,
        };
        let phases = phases(&timeline);
        assert_eq!(phases[0], Phase { name: "create received".to_owned(), start: 0.0, end: 4.0 });
        assert_eq!(phases.last().unwrap().end, 10.0);
    }
}
