//! containerd's events: what its clients learn of a container's life.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use super::Test;
use super::context::{BUSYBOX, Context, ctr};
use super::task_api::Task;

pub(super) const TESTS: &[Test] =
    &[Test { name: "events_tell_a_containers_life_in_order_and_with_all_fields", check: story }];

/// How long the next event may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// `ctr events`, running.
pub(super) struct Events {
    process: Child,
    /// When each line came, and the line.
    lines: Receiver<(Instant, String)>,
}

/// An event: its topic and its fields.
#[derive(Debug)]
pub(super) struct Event {
    pub(super) topic: String,
    pub(super) fields: Value,
    /// When it came.
    pub(super) seen: Instant,
}

impl Events {
    /// Follows containerd's events from now on.
    pub(super) fn follow() -> anyhow::Result<Self> {
        let mut process =
            Command::new("ctr").arg("events").stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let output = process.stdout.take().context("no standard output")?;
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send((Instant::now(), line)).is_err() {
                    return;
                }
            }
        });
        let events = Self { process, lines };
        // The subscription is there once an event of our own comes back.
        let label = format!("follower={}", std::process::id());
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            ctr(["namespaces", "label", "default", &label])?;
            match events.lines.recv_timeout(Duration::from_secs(1)) {
                Ok(_) => return Ok(events),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => bail!("`ctr events` has ended"),
            }
        }
        bail!("`ctr events` shows no event within {} s", PATIENCE.as_secs())
    }

    /// The next event of a task.
    pub(super) fn next(&self) -> anyhow::Result<Event> {
        loop {
            let (seen, line) = self.lines.recv_timeout(PATIENCE).context("no further event")?;
            // Date, time, zone, zone's name, namespace, topic, fields.
            let Some((topic, fields)) =
                line.find("/tasks/").and_then(|start| line.get(start..)?.split_once(' '))
            else {
                continue;
            };
            let fields = serde_json::from_str(fields).with_context(|| format!("in the event {line:?}"))?;
            return Ok(Event { topic: topic.to_owned(), fields, seen });
        }
    }

    /// The first of the next events of tasks with this topic whose fields are as wanted.
    pub(super) fn first(&self, topic: &str, wanted: impl Fn(&Value) -> bool) -> anyhow::Result<Event> {
        loop {
            let event = self.next().with_context(|| format!("waiting for {topic}"))?;
            if event.topic == topic && wanted(&event.fields) {
                return Ok(event);
            }
        }
    }

    /// The next event of a task, which must be this one of that container.
    pub(super) fn expect(&self, topic: &str, container: &str) -> anyhow::Result<Value> {
        let event = self.next()?;
        let of = event.fields.get("container_id").and_then(Value::as_str);
        ensure!(
            event.topic == topic && of == Some(container),
            "instead of {topic} of {container} came {event:?}"
        );
        Ok(event.fields)
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        // It may have ended with containerd.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn story(context: &Context) -> anyhow::Result<()> {
    let events = Events::follow()?;
    let pid_file = context.scratch.join("pid").display().to_string();
    let container = context.start(BUSYBOX, "story", &["--pid-file", &pid_file], &["sleep", "3600"])?;
    let pid: u64 = std::fs::read_to_string(&pid_file)?.trim().parse()?;
    ensure!(
        std::path::Path::new(&format!("/proc/{pid}")).exists(),
        "process {pid} of the pid file is not there"
    );

    let create = events.expect("/tasks/create", "story")?;
    fields(&create, &["bundle", "container_id", "io", "pid", "rootfs"])?;
    ensure!(number(&create, "pid")? == pid, "{create}");
    ensure!(create["bundle"].as_str().is_some_and(|path| path.ends_with("/default/story")), "{create}");
    fields(&create["io"], &["stderr", "stdin", "stdout"])?;
    ensure!(create["rootfs"][0]["type"].is_string(), "{create}");
    let start = events.expect("/tasks/start", "story")?;
    fields(&start, &["container_id", "pid"])?;
    ensure!(number(&start, "pid")? == pid, "{start}");

    container.exec("one", &["sh", "-c", "exit 5"])?.expect_status(5)?;
    let added = events.expect("/tasks/exec-added", "story")?;
    fields(&added, &["container_id", "exec_id"])?;
    let started = events.expect("/tasks/exec-started", "story")?;
    fields(&started, &["container_id", "exec_id", "pid"])?;
    ensure!(added["exec_id"] == "one" && started["exec_id"] == "one", "{added} {started}");
    exited(&events.expect("/tasks/exit", "story")?, "one", number(&started, "pid")?, 5)?;

    ctr(["task", "pause", "story"])?;
    fields(&events.expect("/tasks/paused", "story")?, &["container_id"])?;
    ctr(["task", "resume", "story"])?;
    fields(&events.expect("/tasks/resumed", "story")?, &["container_id"])?;

    // An exec that is killed with its container is told of before it.
    Task::of("story")?.start_exec("victim", &serde_json::json!({"args": ["sleep", "3600"]}), None)?;
    events.expect("/tasks/exec-added", "story")?;
    let started = events.expect("/tasks/exec-started", "story")?;
    ctr(["task", "kill", "--signal", "SIGKILL", "story"])?;
    exited(&events.expect("/tasks/exit", "story")?, "victim", number(&started, "pid")?, 137)?;
    exited(&events.expect("/tasks/exit", "story")?, "story", pid, 137)?;
    container.remove()?;
    let delete = events.expect("/tasks/delete", "story")?;
    fields(&delete, &["container_id", "exit_status", "exited_at", "pid"])?;
    ensure!(number(&delete, "pid")? == pid && number(&delete, "exit_status")? == 137, "{delete}");
    Ok(())
}

fn exited(exit: &Value, id: &str, pid: u64, status: u64) -> anyhow::Result<()> {
    fields(exit, &["container_id", "exit_status", "exited_at", "id", "pid"])?;
    ensure!(
        exit["id"] == id && number(exit, "pid")? == pid && number(exit, "exit_status")? == status,
        "{exit}"
    );
    ensure!(exit["exited_at"].as_str().is_some_and(|time| time.starts_with("20")), "{exit}");
    Ok(())
}

/// Checks that an object has these fields and no other.
fn fields(object: &Value, expected: &[&str]) -> anyhow::Result<()> {
    let Some(object) = object.as_object() else { bail!("{object} is no object") };
    let mut names: Vec<&str> = object.keys().map(String::as_str).collect();
    names.sort_unstable();
    ensure!(names == expected, "{object:?} has {names:?} instead of {expected:?}");
    Ok(())
}

fn number(object: &Value, field: &str) -> anyhow::Result<u64> {
    object[field].as_u64().with_context(|| format!("{object} has no number {field:?}"))
}
