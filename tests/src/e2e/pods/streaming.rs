//! Streams as `kubectl exec`, `attach` and `port-forward` have them from containerd.

use std::fs;

use anyhow::ensure;

use super::fixture::{Node, Pod};
use super::lifecycle::wait_for_exit;
use crate::cri::messages::CONTAINER_RUNNING;
use crate::cri::streaming::{Channels, DATA, STDERR, STDIN, STDOUT};
use crate::e2e::context::{Context, eventually};

/// Ports at which servers listen on loopback alone.
const PORT: u16 = 7070;
const OTHER_PORT: u16 = 7071;

pub(super) fn streams(context: &Context) -> anyhow::Result<()> {
    let node = Node::new(context)?;
    let pod = node.run("streams")?;
    let script = "mkdir /www /other; echo first > /www/one; echo second > /www/two; echo third > /other/three; \
        httpd -p 127.0.0.1:7071 -h /other && exec httpd -f -p 127.0.0.1:7070 -h /www";
    let server = pod.start("server", &["sh", "-c", script])?;
    command(&pod, &server)?;
    terminal(&pod, &server)?;
    attachment(&pod)?;
    attached_terminal(&pod)?;
    input_of_one_visitor(&pod)?;
    ports(&pod)?;
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

/// Prints the size of its terminal for each line. The size comes by a way of its own, so that it may be there before or after the lines.
const MEASURE: &str =
    "test -t 0 && test -t 2 && echo terminal; stty -echo; while read line; do stty size; done; exit 5";

fn terminal(pod: &Pod<'_>, container: &str) -> anyhow::Result<()> {
    let mut channels = pod.cri.exec_streaming(container, &["sh", "-c", MEASURE], true)?;
    channels.expect(STDOUT, b"terminal")?;
    resized(&mut channels)?;
    let status = channels.exit_status()?;
    ensure!(status == 5, "ended with {status}: {:?}", channels.text(STDOUT));
    Ok(())
}

/// The same for the first process of a container.
fn attached_terminal(pod: &Pod<'_>) -> anyhow::Result<()> {
    let mut config = pod.container("terminal", &["sh", "-c", MEASURE]);
    (config.stdin, config.tty) = (true, true);
    let container = pod.start_with(&config)?;
    let mut channels = pod.cri.attach(&container, true)?;
    resized(&mut channels)?;
    channels.drain()?;
    wait_for_exit(pod, &container, 5)?;
    eventually("the log is written", || Ok(pod.log("terminal")?.contains(" stdout F terminal")))
}

/// Gives the terminal of [`MEASURE`] a size, waits until it has it, and ends the script.
fn resized(channels: &mut Channels) -> anyhow::Result<()> {
    channels.resize(132, 43)?;
    let mut asked = 0;
    while !channels.text(STDOUT).contains("43 132") {
        asked += 1;
        channels.send(STDIN, b"size\n")?;
        // Each answer is a line.
        while channels.text(STDOUT).matches('\n').count() < asked {
            channels.expect_more(STDOUT)?;
        }
        ensure!(asked < 1000, "the terminal does not change its size: {:?}", channels.text(STDOUT));
    }
    // What the end-of-file key of a terminal sends.
    channels.send(STDIN, b"\x04")
}

/// With the first who was attached goes the standard input of a container that is to have one visitor (`stdinOnce`).
fn input_of_one_visitor(pod: &Pod<'_>) -> anyhow::Result<()> {
    let script = "while read line; do echo \"heard $line\"; done; exit 4";
    let mut config = pod.container("once", &["sh", "-c", script]);
    (config.stdin, config.stdin_once) = (true, true);
    let container = pod.start_with(&config)?;
    let mut visitor = pod.cri.attach(&container, false)?;
    visitor.send(STDIN, b"one\n")?;
    visitor.expect(STDOUT, b"heard one\n")?;
    ensure!(pod.cri.status(&container)?.state == CONTAINER_RUNNING, "it ended with its visitor there");
    drop(visitor);
    wait_for_exit(pod, &container, 4)
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
    wait_for_exit(pod, &listener, 3)
}

/// Two connections at once to one port and one to another, which do not mix.
fn ports(pod: &Pod<'_>) -> anyhow::Result<()> {
    // Until somebody listens a connection just ends.
    eventually("the server on loopback answers", || Ok(first_page(pod).is_ok()))?;
    let mut one = pod.cri.port_forward(&pod.id, PORT)?;
    let mut two = pod.cri.port_forward(&pod.id, PORT)?;
    let mut three = pod.cri.port_forward(&pod.id, OTHER_PORT)?;
    three.send(DATA, b"GET /three HTTP/1.0\r\n\r\n")?;
    three.expect(DATA, b"\r\n\r\nthird\n")?;
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
