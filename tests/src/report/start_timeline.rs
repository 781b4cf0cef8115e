//! The timeline of one start, as the shim wrote it down.

use std::fs;

use anyhow::Context;
use serde::Deserialize;

use super::timeline::{Phase, draw};

/// The shim's file `timeline.json`: moments of one start, nanoseconds of `CLOCK_MONOTONIC`.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Timeline {
    /// The shim's process began.
    pub shim_started_ns: u64,
    /// containerd's `create` reached the shim.
    pub create_received_ns: u64,
    /// The shim spawned the VMM, which may be before `create`.
    pub vmm_spawned_ns: u64,
    /// The first vCPU was about to run.
    pub first_instruction_ns: u64,
    /// The VMM's process began.
    pub vmm_entered_ns: u64,
    /// The agent's `main` began.
    pub agent_entered_ns: u64,
    /// The agent listened.
    pub agent_listening_ns: u64,
    /// How long the process took that holds a pod's namespaces; none where a container of its own does that.
    pub holder_took_ns: Option<u64>,
    /// The agent had set up what the pod's containers share.
    pub sandbox_configured_ns: u64,
    /// The container was made, short of its exec.
    pub container_created_ns: u64,
    /// containerd's `start` reached the shim.
    pub start_received_ns: u64,
    /// Its process ran.
    pub container_running_ns: u64,
}

impl Timeline {
    /// Reads what the shim of `pod` in containerd's `namespace` wrote.
    ///
    /// # Errors
    /// When the pod does not run or its file is not a timeline.
    pub fn read(namespace: &str, pod: &str) -> anyhow::Result<Self> {
        let path = format!("/run/saya/{namespace}/{pod}/timeline.json");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        serde_json::from_str(&text).with_context(|| format!("{path} is not a timeline"))
    }

    /// How long the first container took to be made and started, of a VM that was ready, or with the VM where the guest begins
    /// with it; in milliseconds.
    #[allow(clippy::cast_precision_loss)]
    pub fn first_container(&self) -> f64 {
        let ready = self.sandbox_configured_ns.max(self.create_received_ns);
        let made = self.container_created_ns.saturating_sub(ready);
        let started = self.container_running_ns.saturating_sub(self.start_received_ns);
        (self.holder_took_ns.unwrap_or_default() + made + started) as f64 / 1e6
    }

    /// The start as bars.
    pub fn picture(&self) -> String {
        draw(&phases(self), 48)
    }
}

fn phases(timeline: &Timeline) -> Vec<Phase> {
    let moments = [
        ("shim started", timeline.shim_started_ns),
        ("VMM spawned", timeline.vmm_spawned_ns),
        ("VMM executed", timeline.vmm_entered_ns),
        ("VM built, first vCPU instruction", timeline.first_instruction_ns),
        ("guest kernel, agent entered", timeline.agent_entered_ns),
        ("agent listening", timeline.agent_listening_ns),
        ("containerd's create received", timeline.create_received_ns),
        ("sandbox configured", timeline.sandbox_configured_ns),
        ("container created", timeline.container_created_ns),
        ("containerd's start received", timeline.start_received_ns),
        ("running", timeline.container_running_ns),
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
    fn the_first_container_is_told_from_the_vm_that_it_waited_for() {
        let timeline = Timeline {
            create_received_ns: 5_000_000,
            sandbox_configured_ns: 9_000_000,
            container_created_ns: 10_000_000,
            start_received_ns: 20_000_000,
            container_running_ns: 20_500_000,
            ..Timeline::default()
        };
        assert_eq!(timeline.first_container(), 1.5);
        let begun_with = Timeline { holder_took_ns: Some(250_000), ..timeline };
        assert_eq!(begun_with.first_container(), 1.75);
    }

    #[test]
    fn each_phase_begins_where_the_one_before_ended_whatever_their_order() {
        let timeline = Timeline {
            shim_started_ns: 1_000_000,
            vmm_spawned_ns: 2_000_000,
            vmm_entered_ns: 3_000_000,
            first_instruction_ns: 7_000_000,
            agent_entered_ns: 8_000_000,
            agent_listening_ns: 9_000_000,
            create_received_ns: 5_000_000,
            holder_took_ns: None,
            sandbox_configured_ns: 9_500_000,
            container_created_ns: 10_000_000,
            start_received_ns: 10_500_000,
            container_running_ns: 11_000_000,
        };
        let phases = phases(&timeline);
        assert_eq!(phases[0], Phase { name: "VMM spawned".to_owned(), start: 0.0, end: 1.0 });
        assert_eq!(phases[2].name, "containerd's create received");
        assert!(phases.windows(2).all(|pair| pair[0].end == pair[1].start));
        assert_eq!(phases.last().unwrap().end, 10.0);
    }
}
