//! A part of a pod is killed in the middle of something. Its containers end as killed, containerd knows it, and nothing
//! is left: the runner looks for that after every test.

use std::process::Child;

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::Test;
use super::context::{BUSYBOX, Context, Running, ctr, eventually};
use super::jail::vmm_of;
use super::leftovers::kill_shim_of;

pub(super) const TESTS: &[Test] =
    &[Test { name: "a_pod_of_which_a_part_is_killed_at_any_moment_ends_and_leaves_nothing", check: matrix }];

/// What is killed.
#[derive(Debug, Clone, Copy)]
enum Victim {
    Shim,
    /// With runtimes that have none, the container's first process, whose pid it is.
    Vmm,
}

/// In the middle of what.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// A process writes to the root file system without end.
    Writing,
    /// A client waits for a second process.
    Executing,
    /// A client's request to end the container is on its way.
    Ending,
}

const CASES: &[(Victim, Moment)] = &[
    (Victim::Vmm, Moment::Writing),
    (Victim::Vmm, Moment::Executing),
    (Victim::Shim, Moment::Executing),
    (Victim::Shim, Moment::Ending),
];

fn matrix(context: &Context) -> anyhow::Result<()> {
    for &(victim, moment) in CASES {
        case(context, victim, moment).with_context(|| format!("{victim:?} killed, {moment:?}"))?;
    }
    Ok(())
}

fn case(context: &Context, victim: Victim, moment: Moment) -> anyhow::Result<()> {
    const NAME: &str = "matrix";
    let command: &[&str] = match moment {
        Moment::Writing => {
            &["sh", "-c", "while dd if=/dev/zero of=/file bs=1M count=4 2>/dev/null; do :; done"]
        }
        _ => &["sleep", "3600"],
    };
    let container = context.start(BUSYBOX, NAME, &[], command)?;
    let client = begin(&container, moment)?;
    match victim {
        Victim::Shim => kill_shim_of(NAME)?,
        Victim::Vmm => kill_vmm(NAME)?,
    }
    if let Some(mut client) = client {
        // Whatever it is told, it is told something.
        client.wait()?;
    }
    eventually("the task is not running any more", || {
        let tasks = ctr(["task", "list"])?;
        Ok(!tasks.lines().any(|line| line.starts_with(NAME) && line.contains("RUNNING")))
    })?;
    container.remove()?;
    eventually("the name is free again", || {
        let ended = context.run(&[], NAME, &["echo", "again"])?;
        ensure!(ended.status == Some(0) || ended.stderr.contains("already exists"), "{ended:?}");
        Ok(ended.text() == "again\n")
    })
}

/// Brings the container to the moment; the client that waits for something then, if one does.
fn begin(container: &Running, moment: Moment) -> anyhow::Result<Option<Child>> {
    match moment {
        Moment::Writing => Ok(None),
        Moment::Executing => {
            let mut command = container.exec_command(&[], "second", &["sh", "-c", "echo there; sleep 3600"]);
            let mut client = command.spawn()?;
            let mut line = [0; 6];
            std::io::Read::read_exact(client.stdout.as_mut().context("no standard output")?, &mut line)?;
            Ok(Some(client))
        }
        Moment::Ending => {
            let mut command = std::process::Command::new("ctr");
            Ok(Some(command.args(["task", "kill", "--signal", "KILL", &container.id]).spawn()?))
        }
    }
}

fn kill_vmm(container: &str) -> anyhow::Result<()> {
    let vmm = vmm_of(container)?;
    let pid = vmm.file_name().and_then(|name| name.to_str()).and_then(|pid| pid.parse().ok());
    let pid = pid.and_then(Pid::from_raw).with_context(|| format!("{} is no process", vmm.display()))?;
    match kill_process(pid, Signal::KILL) {
        // Who was asked to end may have been faster.
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
