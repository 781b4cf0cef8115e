//! A container comes, ends, and its exit status comes back.

use anyhow::ensure;

use super::Test;
use super::context::{BUSYBOX, Context, ctr, eventually};

pub(super) const TESTS: &[Test] = &[
    Test { name: "a_container_says_hello", check: hello },
    Test { name: "exit_statuses_come_back", check: exit_statuses },
    Test { name: "a_missing_binary_fails_the_start_and_is_named", check: missing_binary },
    Test { name: "a_file_that_may_not_be_executed_fails_the_start_and_is_named", check: not_executable },
    Test { name: "sigkill_ends_with_137", check: sigkill },
    Test { name: "sigterm_reaches_the_process_and_ends_with_its_143", check: sigterm },
    Test { name: "a_task_that_ended_stays_until_it_is_deleted", check: stopped_task_stays },
    Test { name: "a_second_container_of_the_same_name_is_refused", check: same_name },
];

fn hello(context: &Context) -> anyhow::Result<()> {
    let ended = context.run(&[], "hello", &["echo", "hello"])?.expect_status(0)?;
    ensure!(ended.text() == "hello\n", "printed {:?}", ended.text());
    Ok(())
}

fn exit_statuses(context: &Context) -> anyhow::Result<()> {
    for (script, status) in [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("no-such-command", 127)] {
        context.run(&[], &format!("status-{status}"), &["sh", "-c", script])?.expect_status(status)?;
    }
    Ok(())
}

fn missing_binary(context: &Context) -> anyhow::Result<()> {
    for binary in ["no-such-binary", "/no/such/binary"] {
        let ended = context.run(&[], "missing", &[binary])?;
        ensure!(ended.status != Some(0), "a missing binary ran");
        ensure!(ended.stderr.contains(binary), "the error does not name {binary}: {}", ended.stderr);
    }
    Ok(())
}

fn not_executable(context: &Context) -> anyhow::Result<()> {
    let ended = context.run(&[], "denied", &["/etc/passwd"])?;
    ensure!(ended.status != Some(0), "a text file ran");
    ensure!(
        ended.stderr.contains("/etc/passwd") && ended.stderr.contains("permission denied"),
        "the error does not say what is wrong: {}",
        ended.stderr
    );
    Ok(())
}

fn sigkill(context: &Context) -> anyhow::Result<()> {
    let container = context.start_attached("sigkill", &["sh", "-c", "echo ready; exec sleep 3600"])?;
    ensure!(container.line == "ready", "printed {:?}", container.line);
    container.kill("SIGKILL")?;
    let status = container.wait()?;
    ensure!(status.code() == Some(137), "ended with {status}");
    Ok(())
}

fn sigterm(context: &Context) -> anyhow::Result<()> {
    let script = "trap 'exit 143' TERM; echo ready; while :; do sleep 3600 & wait $!; done";
    let container = context.start_attached("sigterm", &["sh", "-c", script])?;
    container.kill("SIGTERM")?;
    let status = container.wait()?;
    ensure!(status.code() == Some(143), "ended with {status}");
    Ok(())
}

fn stopped_task_stays(context: &Context) -> anyhow::Result<()> {
    let container = context.start(BUSYBOX, "stopped", &[], &["sleep", "3600"])?;
    ctr(["task", "kill", "--signal", "SIGKILL", "stopped"])?;
    eventually("the task is listed as stopped", || {
        let list = ctr(["task", "ls"])?;
        Ok(list.lines().any(|line| line.starts_with("stopped ") && line.trim_end().ends_with("STOPPED")))
    })?;
    container.remove()
}

fn same_name(context: &Context) -> anyhow::Result<()> {
    let container = context.start(BUSYBOX, "twin", &[], &["sleep", "3600"])?;
    let second = context.run(&[], "twin", &["true"])?;
    ensure!(second.status != Some(0), "the second container ran");
    ensure!(second.stderr.contains("already exists"), "{}", second.stderr);
    container.remove()
}
