//! Nothing is left behind, whatever happened. The runner looks for leftovers after every test; these make many.

use std::thread;

use anyhow::ensure;
use rustix::process::{Signal, kill_process};

use super::Test;
use super::context::{BUSYBOX, Context, eventually};
use super::task_api::shim_of;

pub(super) const TESTS: &[Test] = &[
    Test { name: "ten_containers_one_after_another_leave_nothing", check: ten_in_sequence },
    Test { name: "five_containers_at_once_leave_nothing", check: five_at_once },
    Test { name: "a_killed_shim_is_cleaned_up_and_its_name_is_free_again", check: killed_shim },
];

fn ten_in_sequence(context: &Context) -> anyhow::Result<()> {
    for number in 0..10 {
        context.run(&[], &format!("sequence-{number}"), &["true"])?.expect_status(0)?;
    }
    Ok(())
}

fn five_at_once(context: &Context) -> anyhow::Result<()> {
    thread::scope(|scope| {
        let runs: Vec<_> = (0..5)
            .map(|number| scope.spawn(move || context.run(&[], &format!("wave-{number}"), &["echo", "here"])))
            .collect();
        for run in runs {
            let ended = run.join().map_err(|_| anyhow::anyhow!("a run panicked"))??.expect_status(0)?;
            ensure!(ended.text() == "here\n", "{ended:?}");
        }
        Ok(())
    })
}

fn killed_shim(context: &Context) -> anyhow::Result<()> {
    let orphan = context.start(BUSYBOX, "orphan", &[], &["sleep", "3600"])?;
    kill_shim_of("orphan")?;
    orphan.remove()?;
    // containerd cleans up after a dead shim in its own time, and refuses the name until then.
    eventually("the name is free again", || {
        let ended = context.run(&[], "orphan", &["echo", "again"])?;
        ensure!(ended.status == Some(0) || ended.stderr.contains("already exists"), "{ended:?}");
        Ok(ended.text() == "again\n")
    })
}

/// Kills the shim that containerd started for a container.
pub(super) fn kill_shim_of(container: &str) -> anyhow::Result<()> {
    Ok(kill_process(shim_of(container)?, Signal::KILL)?)
}
