//! Many streams, and much through them.

#![allow(clippy::unwrap_used, clippy::panic)]

#[macro_use]
mod common;

use std::fs;
use std::io::Write;

use common::{Machine, process_spec};

fn open_files(machine: &Machine) -> usize {
    fs::read_dir(format!("/proc/{}/fd", machine.pid())).unwrap().count()
}

fn threads(machine: &Machine) -> usize {
    fs::read_dir(format!("/proc/{}/task", machine.pid())).unwrap().count()
}

/// The agent closes what belonged to streams when their tasks have ended, which is soon after the answer.
async fn settle(machine: &Machine, files: usize) {
    for _ in 0..10_000 {
        if open_files(machine) == files {
            return;
        }
        // A request to the agent, so that it gets its turn.
        machine.pids("c").await;
    }
    panic!("{} files are open; there were {files}", open_files(machine));
}

#[tokio::test]
async fn many_processes_at_once_and_one_after_the_other_leave_no_file_and_no_thread() {
    let machine = machine!();
    let (streams, stdio) = machine.streams();
    machine.create("c", &machine.spec(&["cat"]), streams).await.unwrap();
    machine.start_process("c", "").await.unwrap();
    machine.pids("c").await;
    let files = open_files(&machine);
    let one = async |name: String| {
        let (streams, stdio) = machine.streams();
        machine.exec("c", &name, &process_spec(&["sh", "-c", "cat; exit 9"]), streams).await.unwrap();
        machine.start_process("c", &name).await.unwrap();
        let mut input = stdio.stdin.try_clone().unwrap();
        input.write_all(name.as_bytes()).unwrap();
        drop(input);
        let outcome = machine.finish("c", &name, stdio).await;
        assert_eq!((outcome.status, outcome.stdout.as_str()), (9, name.as_str()));
        machine.delete("c", &name).await.unwrap();
    };
    futures::future::join_all((0..50).map(|index| one(format!("at-once-{index}")))).await;
    for index in 0..100 {
        one(format!("in-turn-{index}")).await;
    }
    settle(&machine, files).await;
    assert_eq!(threads(&machine), 1);
    machine.finish("c", "", stdio).await;
}

#[tokio::test]
async fn a_reader_that_stands_still_stops_nobody_else() {
    let machine = machine!();
    let (streams, stalled) = machine.streams();
    machine
        .create("c", &machine.spec(&["sh", "-c", "cat /dev/zero & echo moved >&2; wait"]), streams)
        .await
        .unwrap();
    machine.start_process("c", "").await.unwrap();
    let (streams, stdio) = machine.streams();
    let process = process_spec(&["sh", "-c", "head -c 16777216 /dev/zero | cat"]);
    machine.exec("c", "e", &process, streams).await.unwrap();
    machine.start_process("c", "e").await.unwrap();
    let outcome = machine.finish("c", "e", stdio).await;
    assert_eq!((outcome.stdout.len(), outcome.exit.stdout_bytes), (16 << 20, 16 << 20));
    machine.signal("c", "", libc::SIGKILL, false).await.unwrap();
    let exit = machine.wait("c", "").await;
    let (stdout, stderr) = (common::read_to_end(stalled.stdout), common::read_to_end(stalled.stderr));
    assert_eq!(stdout.await.unwrap().len() as u64, exit.stdout_bytes);
    assert_eq!((stderr.await.unwrap(), exit.stderr_bytes), (b"moved\n".to_vec(), 6));
}

#[tokio::test]
async fn output_of_a_child_that_lives_on_comes_after_what_belongs_before_the_exit() {
    let machine = machine!();
    let (streams, stdio) = machine.streams();
    machine.create("c", &machine.spec(&["cat"]), streams).await.unwrap();
    machine.start_process("c", "").await.unwrap();
    let (streams, inner) = machine.streams();
    let process = process_spec(&["sh", "-c", "echo first; (read x </tmp/gate; echo later) & exit 2"]);
    machine.exec("c", "gate", &process_spec(&["mkfifo", "/tmp/gate"]), Default::default()).await.unwrap();
    machine.start_process("c", "gate").await.unwrap();
    machine.wait("c", "gate").await;
    machine.exec("c", "e", &process, streams).await.unwrap();
    machine.start_process("c", "e").await.unwrap();
    let exit = machine.wait("c", "e").await;
    assert_eq!((exit.exit_status, exit.stdout_bytes), (2, 6));
    machine
        .exec("c", "open", &process_spec(&["sh", "-c", "echo go > /tmp/gate"]), Default::default())
        .await
        .unwrap();
    machine.start_process("c", "open").await.unwrap();
    assert_eq!(machine.finish("c", "e", inner).await.stdout, "first\nlater\n");
    machine.finish("c", "", stdio).await;
}

#[tokio::test]
async fn a_stream_that_nobody_opens_fails_the_creation() {
    let machine = machine!();
    let streams = saya_agent_api::agent::Streams { stdout: u64::MAX, ..Default::default() };
    let error = machine.create("c", &machine.spec(&["true"]), streams).await.unwrap_err();
    assert_eq!(
        common::message(&error),
        (
            ttrpc::Code::DEADLINE_EXCEEDED,
            "no stream 18446744073709551615 has connected within 30 s".to_owned()
        )
    );
    assert!(!machine.cgroup().join("default").exists(), "the cgroup stays behind");
}
