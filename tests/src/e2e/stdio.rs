//! Bytes flow, in order, complete, and apart.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use anyhow::ensure;
use containerd_shim_protos::api::{DeleteResponse, Empty, ExecProcessRequest, StartResponse};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::Test;
use super::context::{BUSYBOX, Context, converse, ctr, eventually};
use super::task_api::Task;

pub(super) const TESTS: &[Test] = &[
    Test { name: "sixty_four_mebibytes_pass_through_cat_unchanged", check: through_cat },
    Test { name: "standard_error_is_kept_apart", check: stderr_apart },
    Test { name: "the_end_of_input_reaches_the_process", check: end_of_input },
    Test { name: "output_written_just_before_the_exit_is_complete", check: last_output },
    Test { name: "null_io_discards_output_and_keeps_the_status", check: null_io },
    Test { name: "a_file_log_uri_gets_the_output", check: file_log },
    Test { name: "a_binary_logger_gets_both_outputs_and_one_that_is_not_there_is_named", check: loggers },
    Test { name: "readers_of_output_may_come_late_go_away_and_come_again", check: readers_come_and_go },
];

fn through_cat(context: &Context) -> anyhow::Result<()> {
    let input = pseudo_random(64 << 20);
    let ended = context.run_with_input(&[], "cat", &["cat"], &input)?;
    ensure!(ended.status == Some(0), "cat ended with {:?}: {}", ended.status, ended.stderr);
    ensure!(ended.stdout.len() == input.len(), "{} bytes of {} came back", ended.stdout.len(), input.len());
    ensure!(Sha256::digest(&ended.stdout) == Sha256::digest(&input), "the bytes that came back differ");
    Ok(())
}

/// Bytes that do not repeat (xorshift64), the same at every run.
fn pseudo_random(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn stderr_apart(context: &Context) -> anyhow::Result<()> {
    let ended = context.run(&[], "apart", &["sh", "-c", "echo out; echo err >&2"])?.expect_status(0)?;
    ensure!(ended.text() == "out\n" && ended.stderr == "err\n", "{ended:?}");
    Ok(())
}

fn end_of_input(context: &Context) -> anyhow::Result<()> {
    let script = ["sh", "-c", "echo ready; wc -c; echo done"];
    let ctr = context.run_command(&["--rm"], BUSYBOX, "eof", &script).stdin(Stdio::piped()).spawn()?;
    let (printed, status) = converse(ctr, b"12345")?;
    ensure!(status.success() && printed == "ready\n5\ndone\n", "printed {printed:?}, {status}");
    Ok(())
}

fn last_output(context: &Context) -> anyhow::Result<()> {
    let script = "dd if=/dev/zero bs=1M count=4 2>/dev/null; echo last";
    let ended = context.run(&[], "last", &["sh", "-c", script])?.expect_status(0)?;
    ensure!(ended.stdout.len() == (4 << 20) + 5, "{} bytes came", ended.stdout.len());
    ensure!(ended.stdout.ends_with(b"last\n"), "the last line is missing");
    Ok(())
}

fn null_io(context: &Context) -> anyhow::Result<()> {
    let ended =
        context.run(&["--null-io"], "null", &["sh", "-c", "echo unseen; exit 3"])?.expect_status(3)?;
    ensure!(ended.stdout.is_empty(), "printed {:?}", ended.text());
    Ok(())
}

fn file_log(context: &Context) -> anyhow::Result<()> {
    let log = context.scratch.join("log");
    let uri = format!("file://{}", log.display());
    let script = "echo logged; echo also >&2; exec sleep 3600";
    let container = context.start(BUSYBOX, "filelog", &["--log-uri", &uri], &["sh", "-c", script])?;
    // The lines come before the sleep, and an exec sees the sleep.
    container
        .exec("wait", &["sh", "-c", "until grep -q sleep /proc/1/cmdline; do :; done"])?
        .expect_status(0)?;
    ctr(["task", "kill", "--signal", "SIGKILL", "filelog"])?;
    container.remove()?;
    let text = fs::read_to_string(&log)?;
    ensure!(text.contains("logged\n") && text.contains("also\n"), "the log holds {text:?}");
    Ok(())
}

fn loggers(context: &Context) -> anyhow::Result<()> {
    let script = "#!/bin/sh\ntrap '' TERM\nexec 5>&-\ncat <&3 >$1/out &\ncat <&4 >$1/err\nwait\n\
        echo $CONTAINER_NAMESPACE/$CONTAINER_ID >$1/who\n";
    let logger = program(&context.scratch.join("logger"), script)?;
    let flags = |logger: &str| format!("binary://{logger}?{}", context.scratch.display());
    let ended = context.run(
        &["--log-uri", &flags(&logger)],
        "logged",
        &["sh", "-c", "echo out; echo err >&2; exit 4"],
    )?;
    ended.expect_status(4)?;
    let read = |name: &str| {
        Ok::<_, anyhow::Error>(fs::read_to_string(context.scratch.join(name)).unwrap_or_default())
    };
    eventually("the logger has ended", || Ok(read("who")? == "default/logged\n"))?;
    ensure!(read("out")? == "out\n" && read("err")? == "err\n", "{:?}, {:?}", read("out")?, read("err")?);

    let ended = context.run(&["--log-uri", &flags("/no/such/logger")], "unlogged", &["true"])?;
    ensure!(ended.status != Some(0) && ended.stderr.contains("/no/such/logger"), "{ended:?}");
    Ok(())
}

fn program(path: &Path, text: &str) -> anyhow::Result<String> {
    fs::write(path, text)?;
    fs::set_permissions(path, PermissionsExt::from_mode(0o755))?;
    Ok(path.display().to_string())
}

/// Nobody reads at first, then somebody who goes away, then somebody else.
fn readers_come_and_go(context: &Context) -> anyhow::Result<()> {
    context.for_ours_alone("runc's shim starts no process before its output has a reader")?;
    let container = context.start(BUSYBOX, "readers", &[], &["sleep", "3600"])?;
    let task = Task::of("readers")?;
    let fifo = context.scratch.join("fifo");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::RWXU, 0)?;
    let wait = |file: &str| format!("until [ -e {file} ]; do usleep 10000; done");
    let script = format!("echo one; {}; echo two; {}; exit 8", wait("/first"), wait("/second"));
    let request = ExecProcessRequest {
        stdout: fifo.display().to_string(),
        ..task.exec_request("writer", &task.process(&json!({"args": ["sh", "-c", script]}))?)
    };
    let _: Empty = task.expect("Exec", &request)?;
    let _: StartResponse = task.expect("Start", &task.start_request("writer"))?;
    for (number, expected) in ["one\n", "two\n"].into_iter().enumerate() {
        let mut line = String::new();
        BufReader::new(fs::File::open(&fifo)?).read_line(&mut line)?;
        ensure!(line == expected, "reader {number} got {line:?}");
        let name = ["/first", "/second"][number];
        container.exec(&format!("touch-{number}"), &["touch", name])?.expect_status(0)?;
    }
    ensure!(task.wait("writer")?.exit_status == 8, "the writer did not end as it wanted");
    let _: DeleteResponse = task.expect("Delete", &task.delete_request("writer"))?;
    container.remove()
}
