//! Bytes flow, in order, complete, and apart.

use std::fs;
use std::process::Stdio;

use anyhow::ensure;
use sha2::{Digest, Sha256};

use super::Test;
use super::context::{BUSYBOX, Context, converse, ctr};

pub(super) const TESTS: &[Test] = &[
    Test { name: "sixty_four_mebibytes_pass_through_cat_unchanged", check: through_cat },
    Test { name: "standard_error_is_kept_apart", check: stderr_apart },
    Test { name: "the_end_of_input_reaches_the_process", check: end_of_input },
    Test { name: "output_written_just_before_the_exit_is_complete", check: last_output },
    Test { name: "null_io_discards_output_and_keeps_the_status", check: null_io },
    Test { name: "a_file_log_uri_gets_the_output", check: file_log },
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
