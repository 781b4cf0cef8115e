//! When what happened on the way from containerd's call to a running container.

use std::path::Path;
use std::sync::Mutex;
use std::{fs, io};

use serde::Serialize;

use crate::clock::monotonic_ns;

/// A point of the way. All times are nanoseconds of the host's `CLOCK_MONOTONIC`; absent ones have not come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Timeline {
    /// The shim's long-running process began.
    pub(crate) shim_started_ns: Option<u64>,
    /// The VMM's process was made.
    pub(crate) vmm_spawned_ns: Option<u64>,
    /// The VMM reached its entry.
    pub(crate) vmm_entered_ns: Option<u64>,
    /// The VMM had its configuration.
    pub(crate) vmm_configured_ns: Option<u64>,
    /// Guest memory was mapped.
    pub(crate) memory_ready_ns: Option<u64>,
    /// The guest's kernel was loaded.
    pub(crate) kernel_loaded_ns: Option<u64>,
    /// The first vCPU was about to run.
    pub(crate) first_instruction_ns: Option<u64>,
    /// The agent entered user space, as the guest's clock measured it back from `agent_listening_ns`.
    pub(crate) agent_entered_ns: Option<u64>,
    /// The agent's connection arrived: it listens.
    pub(crate) agent_listening_ns: Option<u64>,
    /// How long the process that holds the pod's namespaces took to be made and started, in nanoseconds of the guest's clock:
    /// a part of what follows `agent_listening_ns`, and no point of the way.
    pub(crate) holder_took_ns: Option<u64>,
    /// The guest's mounts, names and network were set up.
    pub(crate) sandbox_configured_ns: Option<u64>,
    /// containerd's first create call arrived.
    pub(crate) create_received_ns: Option<u64>,
    /// The first container's root file system was mounted.
    pub(crate) rootfs_mounted_ns: Option<u64>,
    /// The first container was created.
    pub(crate) container_created_ns: Option<u64>,
    /// containerd's first start call arrived.
    pub(crate) start_received_ns: Option<u64>,
    /// The first container ran.
    pub(crate) container_running_ns: Option<u64>,
}

/// A timeline that several tasks write.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    timeline: Mutex<Timeline>,
}

impl Recorder {
    /// Sets the field that `field` picks to now, if it has not been set before.
    pub(crate) fn mark(&self, field: impl FnOnce(&mut Timeline) -> &mut Option<u64>) {
        let now = monotonic_ns();
        self.change(|timeline| {
            field(timeline).get_or_insert(now);
        });
    }

    /// Changes several fields at once.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Timeline)) {
        if let Ok(mut timeline) = self.timeline.lock() {
            change(&mut timeline);
        }
    }

    /// What is known so far.
    pub(crate) fn snapshot(&self) -> Timeline {
        self.timeline.lock().map(|timeline| *timeline).unwrap_or_default()
    }

    /// Writes what is known so far as JSON to `path`.
    ///
    /// # Errors
    /// What the system returned.
    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        fs::write(path, serde_json::to_vec(&self.snapshot())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_mark_of_a_point_counts() {
        let recorder = Recorder::default();
        recorder.mark(|timeline| &mut timeline.create_received_ns);
        let first = recorder.snapshot().create_received_ns;
        recorder.mark(|timeline| &mut timeline.create_received_ns);
        assert!(first.is_some());
        assert_eq!(recorder.snapshot().create_received_ns, first);
    }
}
