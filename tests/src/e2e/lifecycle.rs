//! A container comes, ends, and its exit status comes back.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use containerd_shim_protos::api::{DeleteResponse, Empty};
use containerd_shim_protos::ttrpc::Code;
use serde_json::json;

use super::Test;
use super::context::{BUSYBOX, Context, bind, ctr, eventually};
use super::task_api::{Refusal, Task};

pub(super) const TESTS: &[Test] = &[
    Test { name: "a_container_says_hello", check: hello },
    Test { name: "exit_statuses_come_back", check: exit_statuses },
    Test { name: "a_missing_binary_fails_the_start_and_is_named", check: missing_binary },
    Test { name: "a_file_that_may_not_be_executed_fails_the_start_and_is_named", check: not_executable },
    Test { name: "sigkill_ends_with_137", check: sigkill },
    Test { name: "sigterm_reaches_the_process_and_ends_with_its_143", check: sigterm },
    Test { name: "a_task_that_ended_stays_until_it_is_deleted", check: stopped_task_stays },
    Test { name: "a_second_container_of_the_same_name_is_refused", check: same_name },
    Test { name: "a_paused_container_stands_still_and_goes_on", check: paused },
    Test { name: "every_signal_arrives_and_a_signal_to_all_reaches_all", check: signals },
    Test { name: "clients_attach_wait_and_are_refused_what_cannot_be", check: clients },
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

fn paused(context: &Context) -> anyhow::Result<()> {
    let mount = bind(&context.scratch, "/share", "rbind:rw");
    let script = "while :; do echo >> /share/count; usleep 10000; done";
    let container = context.start(BUSYBOX, "paused", &["--mount", &mount], &["sh", "-c", script])?;
    let count =
        || Ok::<_, anyhow::Error>(fs::metadata(context.scratch.join("count")).map_or(0, |file| file.len()));
    eventually("it counts", || Ok(count()? > 0))?;
    ctr(["task", "pause", "paused"])?;
    ensure!(status_of("paused")? == "PAUSED", "it is {}", status_of("paused")?);
    let frozen = count()?;
    thread::sleep(Duration::from_millis(500));
    ensure!(count()? == frozen, "it counts on while it is paused");
    let task = Task::of("paused")?;
    let again: Result<Empty, Refusal> = task.call("Pause", &task.pause_request())?;
    ensure!(again.is_err(), "it was paused twice");
    // A signal waits for the resume, and SIGKILL for nothing.
    ctr(["task", "resume", "paused"])?;
    ensure!(status_of("paused")? == "RUNNING", "it is {}", status_of("paused")?);
    eventually("it counts again", || Ok(count()? > frozen))?;
    let again: Result<Empty, Refusal> = task.call("Resume", &task.resume_request())?;
    ensure!(again.is_err(), "it was resumed twice");
    container.remove()
}

/// A task's status as `ctr` lists it.
fn status_of(container: &str) -> anyhow::Result<String> {
    let list = ctr(["task", "ls"])?;
    let line = list.lines().find(|line| line.split_whitespace().next() == Some(container));
    let status = line.and_then(|line| line.split_whitespace().last()).map(str::to_owned);
    status.with_context(|| format!("no task {container} in {list:?}"))
}

fn signals(context: &Context) -> anyhow::Result<()> {
    let log = context.scratch.join("log");
    let uri = format!("file://{}", log.display());
    // 9 and 19 cannot be caught, 17 comes by itself, 32 and 33 are the C library's.
    let numbers: Vec<u32> = (1..=64).filter(|number| ![9, 17, 19, 32, 33].contains(number)).collect();
    let list = numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
    let script = format!(
        "for n in {list}; do trap \"echo got $n\" $n; done; sleep 3600 & echo ready; while :; do wait; done"
    );
    let container = context.start(BUSYBOX, "signals", &["--log-uri", &uri], &["sh", "-c", &script])?;
    let printed = |line: &str| -> anyhow::Result<bool> {
        Ok(fs::read_to_string(&log)?.lines().any(|printed| printed == line))
    };
    eventually("the traps are set", || printed("ready"))?;
    let task = Task::of("signals")?;
    for number in numbers {
        let _: Empty = task.expect("Kill", &task.kill_request("", number))?;
        let got = format!("got {number}");
        eventually(&got, || printed(&got))?;
    }
    // To all: the shell outlives it, its child and an exec do not.
    task.start_exec("bystander", &json!({"args": ["sleep", "3600"]}), None)?;
    ctr(["task", "kill", "--all", "--signal", "SIGTERM", "signals"])?;
    ensure!(task.wait("bystander")?.exit_status == 143, "an exec outlived a signal to all");
    ensure!(status_of("signals")? == "RUNNING", "the shell ended");
    let _: Empty = task.expect("Kill", &task.kill_request("", 9))?;
    ensure!(task.wait("")?.exit_status == 137, "it ended otherwise than by SIGKILL");
    let late = task.call::<Empty>("Kill", &task.kill_request("", 15))?;
    let code = late.as_ref().err().map(|refusal| refusal.code);
    ensure!(code == Some(Code::NOT_FOUND), "a signal to what has ended: {late:?}");
    container.remove()
}

fn clients(context: &Context) -> anyhow::Result<()> {
    let script = "while read line; do echo got $line; done";
    let container = context.start(BUSYBOX, "clients", &[], &["sh", "-c", script])?;
    let mut attach = Command::new("ctr");
    attach.args(["task", "attach", "clients"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut attached = attach.spawn()?;
    let mut keyboard = attached.stdin.take().context("no standard input")?;
    keyboard.write_all(b"pears\n")?;
    let mut line = String::new();
    BufReader::new(attached.stdout.take().context("no standard output")?).read_line(&mut line)?;
    ensure!(line == "got pears\n", "printed {line:?}");

    let processes = ctr(["task", "ps", "clients"])?;
    ensure!(processes.lines().count() == 2, "one process and a head line: {processes:?}");
    let refused = ctr(["task", "rm", "clients"]);
    ensure!(refused.as_ref().is_err_and(|error| format!("{error:#}").contains("running")), "{refused:?}");
    let task = Task::of("clients")?;
    let refused = task.call::<DeleteResponse>("Delete", &task.delete_request(""))?;
    ensure!(refused.as_ref().is_err_and(|refusal| refusal.message.contains("running")), "{refused:?}");
    if !context.is_control() {
        // runc needs a program that the lab does not have.
        let refused = ctr(["task", "checkpoint", "clients"]);
        ensure!(
            refused.as_ref().is_err_and(|error| format!("{error:#}").contains("not supported")),
            "{refused:?}"
        );
    }
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let task = task.clone();
            thread::spawn(move || task.wait(""))
        })
        .collect();
    ctr(["task", "kill", "--signal", "SIGKILL", "clients"])?;
    for wait in waiting {
        let ended = wait.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        ensure!(ended.exit_status == 137, "one of the clients saw {ended:?}");
    }
    ensure!(attached.wait()?.code() == Some(137), "the attached client saw another status");
    container.remove()
}
