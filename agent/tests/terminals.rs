//! Containers and processes on a terminal.

#![allow(clippy::unwrap_used)]

#[macro_use]
mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use common::{context, process_spec};
use saya_agent_api::agent::ResizeTerminalRequest;
use serde_json::json;

/// Reads until `end` has come.
async fn read_until(stream: &UnixStream, end: &'static str) -> String {
    let mut stream = stream.try_clone().unwrap();
    let read = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        let mut byte = [0];
        while !text.ends_with(end) {
            assert_eq!(stream.read(&mut byte).unwrap(), 1, "the terminal ended after {text:?}");
            text.push(char::from(byte[0]));
        }
        text
    });
    read.await.unwrap()
}

#[tokio::test]
async fn a_shell_on_a_terminal_has_job_control_and_a_size() {
    let machine = machine!();
    let mut spec = machine.spec(&["sh"]);
    spec["process"]["terminal"] = json!(true);
    let (streams, mut input, output) = machine.terminal(91, 33);
    machine.create("c", &spec, streams).await.unwrap();
    machine.start_process("c", "").await.unwrap();
    read_until(&output, "# ").await;
    input.write_all(b"stty size; tty; test -c /dev/console && echo console\n").unwrap();
    let text = read_until(&output, "# ").await;
    assert!(text.contains("33 91\r\n") && text.contains("/dev/pts/0\r\n"), "{text}");
    assert!(text.contains("\nconsole\r\n"), "{text}");
    let request = ResizeTerminalRequest {
        container_id: "c".into(),
        columns: 50,
        rows: 10,
        ..ResizeTerminalRequest::default()
    };
    machine.client.resize_terminal(context(), &request).await.unwrap();
    input.write_all(b"stty size\n").unwrap();
    read_until(&output, "10 50\r\n").await;
    read_until(&output, "# ").await;
    // What it prints says that the shell has put it in the foreground, so that Ctrl-C is its.
    input.write_all(b"sh -c 'echo go$((1)); exec sleep 1000'\n").unwrap();
    read_until(&output, "go1\r\n").await;
    input.write_all(&[3]).unwrap();
    read_until(&output, "# ").await;
    input.write_all(b"exit 5\n").unwrap();
    let exit = machine.wait("c", "").await;
    assert_eq!(exit.exit_status, 5);
    common::read_to_end(output).await.unwrap();
    machine.delete("c", "").await.unwrap();
}

#[tokio::test]
async fn all_that_a_process_wrote_to_its_terminal_belongs_before_its_exit() {
    let machine = machine!();
    let mut spec = machine.spec(&["cat"]);
    spec["process"]["terminal"] = json!(true);
    let (streams, _input, _output) = machine.terminal(80, 24);
    machine.create("c", &spec, streams).await.unwrap();
    machine.start_process("c", "").await.unwrap();
    // Its child keeps the terminal open.
    let mut process = process_spec(&["sh", "-c", "sleep 1000 & seq 1000; exit 4"]);
    process["terminal"] = json!(true);
    for round in 0..20 {
        let exec = format!("e{round}");
        let (streams, _input, output) = machine.terminal(80, 24);
        machine.exec("c", &exec, &process, streams).await.unwrap();
        machine.start_process("c", &exec).await.unwrap();
        let exit = machine.wait("c", &exec).await;
        assert_eq!(exit.exit_status, 4);
        // 1000 numbers of 2893 digits in all, and as many line ends of two characters.
        assert_eq!(exit.stdout_bytes, 2893 + 2000);
        assert!(read_until(&output, "1000\r\n").await.starts_with("1\r\n2\r\n"));
        machine.delete("c", &exec).await.unwrap();
    }
    machine.signal("c", "", libc::SIGKILL, false).await.unwrap();
    machine.wait("c", "").await;
}
