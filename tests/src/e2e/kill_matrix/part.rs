//! What is killed.

use std::fs;
use std::process::{Command, Stdio};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};

use super::moment::Moment;
use crate::containerd;
use crate::ctr::ctr;
use crate::e2e::context::Context;
use crate::e2e::task_api::shim_of;

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
    /// Whether it is there, and can be reached, at the moment.
    pub(super) fn is_there(self, context: &Context, moment: Moment) -> bool {
        match self {
            Self::Shim => true,
            Self::Vmm if context.is_control() => Self::Process.is_there(context, moment),
            Self::Vmm => true,
            // containerd 1.6 knows nothing of a shim that it had started and not asked for a task when it was killed, whatever the
            // runtime (github.com/containerd/containerd/issues/6860).
            Self::Containerd => moment != Moment::Creating,
            Self::Process => moment != Moment::Creating,
            // It is the container's processes that do it.
            Self::Guest => !matches!(moment, Moment::Creating | Moment::Created),
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
    pub(super) fn kill(self, container: &str) -> anyhow::Result<()> {
        match self {
            Self::Shim => shim_of(container).map_or(Ok(()), end),
            Self::Vmm => vmm(container).map_or(Ok(()), end),
            Self::Containerd => end(containerd::process()?),
            Self::Process => {
                ctr(["task", "kill", "--signal", "KILL", container]).ok();
                Ok(())
            }
            Self::Guest => {
                // The answer is lost with who would give it.
                exec(container, "panic", "mount -t proc proc /sys && echo c > /sys/sysrq-trigger").ok();
                Ok(())
            }
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

/// How many descriptors and threads a process has.
pub(super) fn size(process: Pid) -> anyhow::Result<(usize, usize)> {
    let count =
        |what| anyhow::Ok(fs::read_dir(format!("/proc/{}/{what}", process.as_raw_nonzero()))?.count());
    Ok((count("fd")?, count("task")?))
}

/// Runs a shell script in the container to its end.
pub(super) fn exec(container: &str, id: &str, script: &str) -> anyhow::Result<()> {
    let mut command = Command::new("ctr");
    command.args(["task", "exec", "--exec-id", id, container, "sh", "-c", script]).stdin(Stdio::null());
    crate::ctr::finish(&mut command).map(drop)
}
