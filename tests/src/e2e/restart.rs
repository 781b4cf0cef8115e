//! containerd goes and comes again; its containers do not notice. Whoever runs containerd starts it anew: systemd, the lab.

use std::fs;

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::Test;
use super::context::{BUSYBOX, Context, bind, ctr, eventually};
use super::events::Events;
use super::task_api::Task;
use crate::containerd;

pub(super) const TESTS: &[Test] =
    &[Test { name: "containers_outlive_a_killed_containerd_and_are_found_again", check: restart }];

fn restart(context: &Context) -> anyhow::Result<()> {
    let log = context.scratch.join("log");
    let uri = format!("file://{}", log.display());
    let ticks = ["sh", "-c", "while :; do echo tick; usleep 50000; done"];
    let survivor = context.start(BUSYBOX, "survivor", &["--log-uri", &uri], &ticks)?;
    let mount = bind(&context.scratch, "/share", "rbind:rw");
    let until = ["sh", "-c", "until [ -e /share/go ]; do usleep 50000; done; exit 6"];
    context.start(BUSYBOX, "mortal", &["--null-io", "--mount", &mount], &until)?;
    let before = line_of("survivor")?;

    // One ends while nobody is there to be told.
    kill_containerd(|| Ok(fs::write(context.scratch.join("go"), "")?))?;

    ensure!(line_of("survivor")? == before, "it was {before:?} and is {:?}", line_of("survivor")?);
    let written = fs::metadata(&log)?.len();
    eventually("the log grows on", || Ok(fs::metadata(&log)?.len() > written))?;
    let exec = survivor.exec("after", &["echo", "still here"])?.expect_status(0)?;
    ensure!(exec.text() == "still here\n", "{exec:?}");
    eventually("the other has ended", || Ok(line_of("mortal")?.ends_with("STOPPED")))?;
    ensure!(Task::of("mortal")?.wait("")?.exit_status == 6, "its status is lost");
    let events = Events::follow()?;
    // Ends with the status of the task.
    ctr(["task", "rm", "mortal"]).ok();
    events.expect("/tasks/delete", "mortal")?;
    ctr(["container", "rm", "mortal"])?;

    let task = Task::of("survivor")?;
    ctr(["task", "kill", "--signal", "SIGKILL", "survivor"])?;
    let exit = events.expect("/tasks/exit", "survivor")?;
    ensure!(exit["exit_status"] == 137 && task.wait("")?.exit_status == 137, "{exit}");
    survivor.remove()
}

/// Kills containerd, does something while there is none, and waits until there is another.
pub(super) fn kill_containerd(meanwhile: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let killed = containerd::process()?;
    kill_process(killed, Signal::KILL)?;
    meanwhile()?;
    wait_for_another(killed)
}

/// Waits until there is another containerd than the one that was `killed`.
pub(super) fn wait_for_another(killed: Pid) -> anyhow::Result<()> {
    eventually("containerd is back", || {
        Ok(containerd::process().is_ok_and(|pid| pid != killed) && ctr(["task", "ls"]).is_ok())
    })
}

/// A task's line in the list, its words joined by one space.
fn line_of(container: &str) -> anyhow::Result<String> {
    let list = ctr(["task", "ls"])?;
    let line = list.lines().find(|line| line.split_whitespace().next() == Some(container));
    let line = line.with_context(|| format!("no task {container} in {list:?}"))?;
    Ok(line.split_whitespace().collect::<Vec<_>>().join(" "))
}
