//! Streams as `kubectl exec`, `attach` and `port-forward` have them from containerd.

use std::fs;

use anyhow::ensure;

use super::fixture::{Node, Pod};
use crate::cri::messages::CONTAINER_RUNNING;
use crate::cri::streaming::{DATA, STDERR, STDIN, STDOUT};
use crate::e2e::context::{Context, eventually};

/// A port at which a server listens on loopback alone.
const PORT: u16 = 7070;

pub(super) fn streams(context: &Context) -> anyhow::Result<()> {
    let node = Node::new(context)?;
    let pod = node.run("streams")?;
    let script =
        "mkdir /www; echo first > /www/one; echo second > /www/two; exec httpd -f -p 127.0.0.1:7070 -h /www";
    let server = pod.start("server", &["sh", "-c", script])?;
    command(&pod, &server)?;
    terminal(&pod, &server)?;
    attachment(&pod)?;
    port(&pod)?;
    pod.remove()
}

fn command(pod: &Pod<'_>, container: &str) -> anyhow::Result<()> {
    let script =
        "read word; echo \"got $word\"; echo wrong >&2; head -c 100000 /dev/zero | tr '\\0' x; exit 7";
    let mut channels = pod.cri.exec_streaming(container, &["sh", "-c", script], false)?;
    channels.send(STDIN, b"apple\n")?;
    let status = channels.exit_status()?;
    ensure!(status == 7, "ended with {status}");
    let printed = channels.text(STDOUT);
    let filling = printed.strip_prefix("got apple\n").unwrap_or_default();
    ensure!(filling.len() == 100_000 && filling.bytes().all(|byte| byte == b'x'), "{printed:.100}");
    ensure!(channels.text(STDERR) == "wrong\n", "{:?}", channels.text(STDERR));
    let mut silent = pod.cri.exec_streaming(container, &["true"], false)?;
    ensure!(silent.exit_status()? == 0);
    Ok(())
}

fn terminal(pod: &Pod<'_>, container: &str) -> anyhow::Result<()> {
    // The size comes by a way of its own, so that it may be there before or after the lines.
    let script =
        "test -t 0 && test -t 2 && echo terminal; stty -echo; while read line; do stty size; done; exit 5";
    let mut channels = pod.cri.exec_streaming(container, &["sh", "-c", script], true)?;
    channels.expect(STDOUT, b"terminal")?;
    channels.resize(132, 43)?;
    let mut asked = 0;
    while !channels.text(STDOUT).contains("43 132") {
        asked += 1;
        channels.send(STDIN, b"size\n")?;
        // Each answer is a line.
        while channels.text(STDOUT).matches('\n').count() <= asked {
            channels.expect_more(STDOUT)?;
        }
        ensure!(asked < 1000, "the terminal does not change its size: {:?}", channels.text(STDOUT));
    }
    // What the end-of-file key of a terminal sends.
    channels.send(STDIN, b"\x04")?;
    let status = channels.exit_status()?;
    ensure!(status == 5, "ended with {status}: {:?}", channels.text(STDOUT));
    Ok(())
}

/// Somebody comes, goes and comes back, and the log is rotated meanwhile.
fn attachment(pod: &Pod<'_>) -> anyhow::Result<()> {
    let script = "while read line; do [ \"$line\" = end ] && exit 3; echo \"heard $line\"; done";
    let mut config = pod.container("listener", &["sh", "-c", script]);
    config.stdin = true;
    let listener = pod.start_with(&config)?;
    let mut first = pod.cri.attach(&listener, false)?;
    first.send(STDIN, b"one\n")?;
    first.expect(STDOUT, b"heard one\n")?;
    drop(first);
    ensure!(pod.cri.status(&listener)?.state == CONTAINER_RUNNING, "the container ended with its visitor");

    let path = format!("{}/listener.log", pod.config.log_directory);
    fs::rename(&path, format!("{path}.1"))?;
    pod.cri.reopen_log(&listener)?;
    let mut second = pod.cri.attach(&listener, false)?;
    second.send(STDIN, b"two\n")?;
    second.expect(STDOUT, b"heard two\n")?;
    second.send(STDIN, b"end\n")?;
    second.drain()?;
    // Both may have been on their way to the log when somebody attached had them already.
    eventually("the second line is in the new log", || {
        Ok(pod.log("listener")?.ends_with(" stdout F heard two\n"))
    })?;
    ensure!(!pod.log("listener")?.contains("heard one"), "{}", pod.log("listener")?);
    eventually("the first line is in the old log", || {
        Ok(fs::read_to_string(format!("{path}.1"))?.ends_with(" stdout F heard one\n"))
    })?;
    eventually("the container has ended", || Ok(pod.cri.status(&listener)?.exit_code == 3))
}

/// Two connections at once, which do not mix.
fn port(pod: &Pod<'_>) -> anyhow::Result<()> {
    // Until somebody listens a connection just ends.
    eventually("the server on loopback answers", || Ok(first_page(pod).is_ok()))?;
    let mut one = pod.cri.port_forward(&pod.id, PORT)?;
    let mut two = pod.cri.port_forward(&pod.id, PORT)?;
    two.send(DATA, b"GET /two HTTP/1.0\r\n\r\n")?;
    two.expect(DATA, b"\r\n\r\nsecond\n")?;
    one.send(DATA, b"GET /one HTTP/1.0\r\n\r\n")?;
    one.expect(DATA, b"\r\n\r\nfirst\n")?;
    two.drain()?;
    one.drain()?;
    ensure!(!one.text(DATA).contains("second") && !two.text(DATA).contains("first"));
    Ok(())
}

fn first_page(pod: &Pod<'_>) -> anyhow::Result<()> {
    let mut channels = pod.cri.port_forward(&pod.id, PORT)?;
    channels.send(DATA, b"GET /one HTTP/1.0\r\n\r\n")?;
    channels.expect(DATA, b"first\n")
}
