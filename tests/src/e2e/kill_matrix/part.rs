//! What is killed.

use std::fs;
use std::process::{Command, Stdio};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};

use super::moment::{Moment, Stage};
use crate::containerd;
use crate::ctr::ctr;
use crate::e2e::context::Context;
use crate::e2e::task_api::shim_of;
use crate::processes::resident;

/// A part of a pod, or of what it lives on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// The shim.
    Shim,
    /// The VMM. With runtimes that have none, the container's first process, whose pid it is.
    Vmm,
    /// The agent's child: the container's first process.
    Process,
    /// The guest's kernel, and with it the agent.
    Guest,
    /// containerd.
    Containerd,
}

impl Part {
    /// All of them. Of several that are killed at once the first goes first: who is asked for a kill has to be there for it.
    pub(super) const ALL: [Self; 5] = [Self::Process, Self::Guest, Self::Containerd, Self::Vmm, Self::Shim];

    /// Whether it is there, and can be reached, at the moment.
    pub(super) fn is_there(self, context: &Context, moment: Moment) -> bool {
        match self {
            Self::Shim => true,
            // containerd 1.6 leaves a shim of runc's alone that it had started and not asked for a task when it was killed
            // (github.com/containerd/containerd/issues/6860).
            Self::Vmm | Self::Process | Self::Containerd if context.is_control() => {
                moment != Moment::Creating
            }
            Self::Vmm | Self::Process | Self::Containerd => true,
            // Its guest is the host.
            Self::Guest => !context.is_control(),
        }
    }

    /// What the shim gives as the reason of the virtual machine's end, where that ends with this and the shim does not.
    pub(super) fn reason(self) -> Option<&'static str> {
        match self {
            Self::Vmm => Some("the VMM ended without a report (signal: 9"),
            Self::Guest => Some("the guest's kernel panicked: sysrq triggered crash"),
            Self::Shim | Self::Process | Self::Containerd => None,
        }
    }

    /// Kills it. What has ended by itself is as good.
    pub(super) fn kill(self, container: &str, stage: &Stage) -> anyhow::Result<()> {
        match (self, &stage.insider) {
            (Self::Shim, _) => shim_of(stage.pod).map_or(Ok(()), end),
            (Self::Vmm, _) => vmm(stage.pod).map_or(Ok(()), end),
            (Self::Containerd, _) => end(containerd::process()?),
            (Self::Process, _) if stage.moment != Moment::Creating => {
                ctr(["task", "kill", "--signal", "KILL", container]).ok();
                Ok(())
            }
            (Self::Process | Self::Guest, insider) => insider.as_ref().context("nobody inside")?.act(),
        }
    }
}

fn end(process: Pid) -> anyhow::Result<()> {
    match kill_process(process, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The VMM: the shim's child.
pub(super) fn vmm(container: &str) -> anyhow::Result<Pid> {
    let shim = shim_of(container)?.as_raw_nonzero();
    let children = fs::read_to_string(format!("/proc/{shim}/task/{shim}/children"))?;
    let first = children.split_whitespace().next().and_then(|pid| pid.parse().ok()).and_then(Pid::from_raw);
    first.with_context(|| format!("shim {shim} has no child"))
}

/// How many descriptors, threads and MiB a process has.
pub(super) fn size(process: Pid) -> anyhow::Result<[usize; 3]> {
    let count =
        |what| anyhow::Ok(fs::read_dir(format!("/proc/{}/{what}", process.as_raw_nonzero()))?.count());
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let memory = resident(process)? as usize;
    Ok([count("fd")?, count("task")?, memory])
}

/// Runs a shell script in the container to its end.
pub(super) fn exec(container: &str, id: &str, script: &str) -> anyhow::Result<()> {
    let mut command = Command::new("ctr");
    command.args(["task", "exec", "--exec-id", id, container, "sh", "-c", script]).stdin(Stdio::null());
    crate::ctr::finish(&mut command).map(drop)
}
