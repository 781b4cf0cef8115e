//! A guest that hangs: nothing waits for it for ever, and its end leaves nothing.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::Test;
use super::context::{BUSYBOX, Context, ctr, eventually};
use super::events::Events;
use super::jail::vmm_of;
use super::task_api::Task;

pub(super) const TESTS: &[Test] = &[
    Test { name: "a_guest_that_hangs_ends_with_its_first_unanswered_call", check: unanswered },
    Test { name: "a_guest_that_never_gets_ready_is_given_up", check: never_ready },
];

/// The configuration of this machine's installation, if it has one.
const INSTALLED: &str = "/etc/saya/config.toml";

fn unanswered(context: &Context) -> anyhow::Result<()> {
    context.for_ours_alone("it has no guest")?;
    let file = configuration(context, &[("agent_timeout", 10.into())], &[])?;
    let events = Events::follow()?;
    let calls: &[Call] = if context.long { &[Call::Kill, Call::Exec, Call::Pause] } else { &[Call::Kill] };
    for call in calls {
        let container =
            context.start(BUSYBOX, "hung", &["--runtime-config-path", &file], &["sleep", "3600"])?;
        events.expect("/tasks/create", "hung")?;
        events.expect("/tasks/start", "hung")?;
        let task = Task::of("hung")?;
        let vmm = vmm_of("hung")?;
        stop(&vmm)?;
        match call {
            // It is ended either way.
            Call::Kill => drop(ctr(["task", "kill", "--signal", "KILL", "hung"])?),
            Call::Exec => {
                let refused = container.exec("late", &["true"])?;
                told(&refused.stderr)?;
                events.expect("/tasks/exec-added", "hung")?;
            }
            Call::Pause => told(&ctr(["task", "pause", "hung"]).err().context("it paused")?.to_string())?,
        }
        let mut exit = events.expect("/tasks/exit", "hung")?;
        if matches!(call, Call::Exec) && exit["id"] == "late" {
            exit = events.expect("/tasks/exit", "hung")?;
        }
        ensure!(exit["exit_status"] == 137 && exit["id"] == "hung", "{call:?}: {exit}");
        ensure!(task.wait("")?.exit_status == 137, "{call:?}: the status is another one");
        eventually("the VMM is gone", || Ok(!vmm.exists()))?;
        container.remove()?;
        events.expect("/tasks/delete", "hung")?;
    }
    Ok(())
}

/// What is asked of a guest that hangs.
#[derive(Debug, Clone, Copy)]
enum Call {
    Kill,
    Exec,
    Pause,
}

fn told(message: &str) -> anyhow::Result<()> {
    ensure!(message.contains("has not answered") && message.contains("agent_timeout"), "{message}");
    Ok(())
}

/// Stops all threads of a process: to the host, a machine whose guest does nothing any more.
fn stop(process: &Path) -> anyhow::Result<()> {
    let pid = process.file_name().and_then(|name| name.to_str()).and_then(|pid| pid.parse().ok());
    let pid = pid.and_then(Pid::from_raw).with_context(|| format!("{} is no process", process.display()))?;
    Ok(kill_process(pid, Signal::STOP)?)
}

fn never_ready(context: &Context) -> anyhow::Result<()> {
    context.for_ours_alone("it has no guest")?;
    // Without a first process the kernel mounts a root file system, and told so it waits for its device for ever.
    // On a slow machine there is a console to show only after a while.
    let limit = if context.long { 60 } else { 5 };
    let parameters = ["rdinit=/absent", "root=/dev/vda9p1", "rootwait", "loglevel=7"];
    let file = configuration(context, &[("boot_timeout", limit.into())], &parameters)?;
    let ended = context.run(&["--runtime-config-path", &file], "unready", &["true"])?;
    ensure!(ended.status != Some(0), "{ended:?}");
    let reason = format!("not ready within {limit} s (configuration key boot_timeout)");
    ensure!(ended.stderr.contains(&reason), "{ended:?}");
    ensure!(!context.long || ended.stderr.contains("Waiting for root device"), "no console in {ended:?}");
    Ok(())
}

/// A configuration file: this machine's, with these keys and further kernel parameters.
pub(super) fn configuration(
    context: &Context,
    keys: &[(&str, toml::Value)],
    parameters: &[&str],
) -> anyhow::Result<String> {
    let installed = fs::read_to_string(INSTALLED).unwrap_or_default();
    let mut table: toml::Table = toml::from_str(&installed)?;
    for (key, value) in keys {
        table.insert((*key).to_owned(), value.clone());
    }
    let list = table.entry("kernel_parameters").or_insert_with(|| toml::Value::Array(Vec::new()));
    let list = list.as_array_mut().context("kernel_parameters is no list")?;
    list.extend(parameters.iter().map(|parameter| toml::Value::String((*parameter).to_owned())));
    let path: PathBuf = context.scratch.join("config.toml");
    fs::write(&path, table.to_string())?;
    Ok(path.display().to_string())
}
