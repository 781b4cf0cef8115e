//! Further processes in a running container.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;

use anyhow::{Context as _, ensure};

use super::Test;
use super::context::{BUSYBOX, Context, converse, ctr};

pub(super) const TESTS: &[Test] = &[
    Test { name: "an_exec_has_its_own_status_and_input", check: status_and_input },
    Test { name: "an_exec_of_a_missing_binary_fails_and_names_it", check: missing_binary },
    Test { name: "killing_one_exec_leaves_the_container_running", check: kill_one },
    Test { name: "execs_at_once_do_not_mix_their_output", check: at_once },
];

fn status_and_input(context: &Context) -> anyhow::Result<()> {
    let container = context.start(BUSYBOX, "exec-status", &[], &["sleep", "3600"])?;
    let script = ["sh", "-c", "echo ready; cat; exit 5"];
    let exec = container.exec_command(&[], "one", &script).stdin(Stdio::piped()).spawn()?;
    let (printed, status) = converse(exec, b"through an exec")?;
    ensure!(printed == "ready\nthrough an exec" && status.code() == Some(5), "printed {printed:?}, {status}");
    container.remove()
}

fn missing_binary(context: &Context) -> anyhow::Result<()> {
    let container = context.start(BUSYBOX, "exec-missing", &[], &["sleep", "3600"])?;
    let ended = container.exec("one", &["no-such-binary"])?;
    ensure!(ended.status != Some(0) && ended.stderr.contains("no-such-binary"), "{ended:?}");
    container.exec("two", &["true"])?.expect_status(0)?;
    container.remove()
}

fn kill_one(context: &Context) -> anyhow::Result<()> {
    let container = context.start(BUSYBOX, "exec-kill", &[], &["sleep", "3600"])?;
    let mut exec =
        container.exec_command(&[], "victim", &["sh", "-c", "echo ready; exec sleep 3600"]).spawn()?;
    let mut line = String::new();
    BufReader::new(exec.stdout.take().context("no standard output")?).read_line(&mut line)?;
    ensure!(line == "ready\n", "printed {line:?}");
    ctr(["task", "kill", "--exec-id", "victim", "--signal", "SIGKILL", "exec-kill"])?;
    let status = exec.wait()?;
    ensure!(status.code() == Some(137), "the exec ended with {status}");
    container.exec("after", &["true"])?.expect_status(0)?;
    container.remove()
}

fn at_once(context: &Context) -> anyhow::Result<()> {
    let container = context.start(BUSYBOX, "exec-many", &[], &["sleep", "3600"])?;
    let mut execs = Vec::new();
    for number in 0..8 {
        // Each lives until it is told to go: ctr loses the output of a process that ends before it has opened the fifos.
        let script = format!("for i in 1 2 3 4 5; do echo {number}; done; read go");
        let mut command = container.exec_command(&[], &format!("exec-{number}"), &["sh", "-c", &script]);
        execs.push(command.stdin(Stdio::piped()).spawn()?);
    }
    for (number, mut exec) in execs.into_iter().enumerate() {
        let mut output = BufReader::new(exec.stdout.take().context("no standard output")?);
        let mut printed = String::new();
        for _ in 0..5 {
            output.read_line(&mut printed)?;
        }
        exec.stdin.take().context("no standard input")?.write_all(b"go\n")?;
        output.read_to_string(&mut printed)?;
        ensure!(exec.wait()?.success(), "exec {number} failed");
        ensure!(printed == format!("{number}\n").repeat(5), "exec {number} printed {printed:?}");
    }
    container.remove()
}
