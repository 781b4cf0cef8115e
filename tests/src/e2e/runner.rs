//! Runs the tests: each in a process of its own, with a deadline, and with a look for leftovers after it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};

use super::Test;
use super::context::{Context, NotApplicable};
use crate::ctr::remove_all;
use crate::leaks::Holdings;

/// How long a test may take before it counts as hung. Emulated machines are slow; this is no measure of speed.
const DEADLINE: Duration = Duration::from_secs(600);

/// The same for the long form of one: dozens of containers, one after the other.
const LONG_DEADLINE: Duration = Duration::from_secs(3600);

/// How long what a test left may take to go: a shim ends a moment after containerd has answered its client.
const SETTLE: Duration = Duration::from_secs(15);

/// What is asked of the runner.
#[derive(Debug, Clone)]
pub struct Selection {
    /// containerd's name of the runtime under test.
    pub runtime: String,
    /// This shard's number and how many there are.
    pub shard: (usize, usize),
    /// Only tests whose name contains this.
    pub only: String,
    /// Only the tests of pods, which go by CRI.
    pub pods: bool,
    /// CRI's runtime handler for pods, where it is not the usual one of the runtime.
    pub handler: Option<String>,
    /// Whether tests that have a long form run in it.
    pub long: bool,
}

/// How the tests ended.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Verdict {
    /// Names.
    pub passed: Vec<String>,
    /// Names and what was wrong.
    pub failed: Vec<Failure>,
    /// Names and why.
    pub skipped: Vec<Skip>,
}

/// A test that failed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Failure {
    /// Its name.
    pub name: String,
    /// What was wrong.
    pub message: String,
}

/// A test that did not run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Skip {
    /// Its name.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// Runs the selected tests and prints a line for each.
///
/// # Errors
/// When the runner itself cannot work; a failed test is part of the verdict.
pub fn run(selection: &Selection) -> anyhow::Result<Verdict> {
    let tests = selected(selection);
    ensure!(!tests.is_empty(), "no test's name contains {:?}", selection.only);
    let mut verdict = Verdict::default();
    for test in tests {
        let begin = Instant::now();
        let outcome = run_one(&test, selection);
        let took = begin.elapsed().as_secs_f64();
        match outcome {
            Ok(Outcome::Passed) => {
                println!("PASS {took:>6.1} s  {}", test.name);
                verdict.passed.push(test.name.to_owned());
            }
            Ok(Outcome::Skipped(reason)) => {
                println!("SKIP {took:>6.1} s  {}: {reason}", test.name);
                verdict.skipped.push(Skip { name: test.name.to_owned(), reason });
            }
            Err(error) => {
                println!("FAIL {took:>6.1} s  {}\n     {error:#}", test.name);
                verdict.failed.push(Failure { name: test.name.to_owned(), message: format!("{error:#}") });
            }
        }
    }
    Ok(verdict)
}

/// The tests of this shard: every n-th.
fn selected(selection: &Selection) -> Vec<Test> {
    let (shard, of) = selection.shard;
    let tests = if selection.pods { super::of_pods() } else { super::all() };
    let wanted = tests.into_iter().filter(|test| test.name.contains(&selection.only));
    wanted.enumerate().filter(|(index, _)| index % of.max(1) == shard).map(|(_, test)| test).collect()
}

/// How a test ended that found nothing wrong.
#[derive(Debug)]
pub enum Outcome {
    /// It has checked its promise.
    Passed,
    /// It does not apply, for this reason.
    Skipped(String),
}

/// The exit status of a test's process that was skipped; the reason is on its standard error.
pub const SKIPPED: u8 = 77;

fn run_one(test: &Test, selection: &Selection) -> anyhow::Result<Outcome> {
    let before = Holdings::now();
    let outcome = run_in_process(test.name, selection);
    let removed = remove_containers();
    let left = wait_until_gone(&before);
    let outcome = outcome?;
    removed?;
    ensure!(left.is_empty(), "left behind: {}", left.join(", "));
    Ok(outcome)
}

/// Runs one test as a child (`saya-e2e --run NAME`), and kills it with all it started when its time is over.
fn run_in_process(name: &str, selection: &Selection) -> anyhow::Result<Outcome> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--runtime", &selection.runtime, "--run", name])
        .args(selection.long.then_some("--long"))
        .args(selection.handler.iter().flat_map(|handler| ["--handler", handler]))
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .context("cannot start the test")?;
    let group =
        i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("the test has no process id")?;
    let patience = if selection.long { LONG_DEADLINE } else { DEADLINE };
    let deadline = Deadline::arm(group, patience);
    let mut output = String::new();
    for line in child.stderr.take().into_iter().flat_map(|stderr| BufReader::new(stderr).lines()) {
        let line = line?;
        if selection.long {
            // What it has done so far, of much.
            println!("{line}");
        }
        output.extend([line.as_str(), "\n"]);
    }
    let status = child.wait()?;
    if deadline.disarm() {
        bail!("did not end within {} s; it had printed: {}", patience.as_secs(), output.trim());
    }
    if status.code() == Some(SKIPPED.into()) {
        return Ok(Outcome::Skipped(output.trim().to_owned()));
    }
    ensure!(status.success(), "{}", output.trim());
    Ok(Outcome::Passed)
}

/// Kills a process group when its time is over.
struct Deadline {
    cancel: std::sync::mpsc::Sender<()>,
    watcher: thread::JoinHandle<bool>,
}

impl Deadline {
    fn arm(group: Pid, patience: Duration) -> Self {
        let (cancel, cancelled) = std::sync::mpsc::channel();
        let watcher = thread::spawn(move || {
            let over = cancelled.recv_timeout(patience).is_err();
            if over && let Err(error) = kill_process_group(group, Signal::KILL) {
                eprintln!("cannot end process group {group:?}: {error}");
            }
            over
        });
        Self { cancel, watcher }
    }

    /// Whether the time was over.
    fn disarm(self) -> bool {
        let sent = self.cancel.send(()).is_ok();
        self.watcher.join().unwrap_or(false) || !sent
    }
}

/// Checks one test in this process.
///
/// # Errors
/// What the test found wrong.
pub fn run_here(name: &str, selection: &Selection) -> anyhow::Result<Outcome> {
    let test = super::all()
        .into_iter()
        .find(|test| test.name == name)
        .with_context(|| format!("no test {name:?}"))?;
    let scratch = PathBuf::from(format!("/tmp/saya-e2e-{}", std::process::id()));
    fs::create_dir_all(&scratch)?;
    let outcome = (test.check)(&Context {
        runtime: selection.runtime.clone(),
        handler: selection.handler.clone(),
        scratch: scratch.clone(),
        long: selection.long,
    });
    let removed = fs::remove_dir_all(&scratch);
    match outcome {
        Ok(()) => {
            removed.with_context(|| format!("cannot remove {}", scratch.display()))?;
            Ok(Outcome::Passed)
        }
        Err(error) => match error.downcast::<NotApplicable>() {
            Ok(reason) => Ok(Outcome::Skipped(reason.to_string())),
            Err(error) => Err(error),
        },
    }
}

/// Removes what a test that failed has left, so that the next begins with nothing: containers of `ctr`'s namespace and
/// of CRI's.
fn remove_containers() -> anyhow::Result<()> {
    remove_all("default").and(remove_all("k8s.io"))
}

/// What is left beyond `before`, once it no longer changes for the better or [`SETTLE`] is over.
fn wait_until_gone(before: &Holdings) -> Vec<String> {
    let begin = Instant::now();
    loop {
        let left = before.leaked_by(&Holdings::now());
        if left.is_empty() || begin.elapsed() > SETTLE {
            return left;
        }
        thread::sleep(Duration::from_millis(50));
    }
}
