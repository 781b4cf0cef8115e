//! `cargo xtask test`: everything that tells whether Saya works. Its last line is the verdict.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Args;
use saya_tests::e2e::{self, runner};
use saya_tests::lab::{self, newer_containerd};

use crate::artifacts;
use crate::fuzz;
use crate::setup;
use crate::verdict::Verdict;

/// How long a lab of tests may take, in seconds: far more than it needs, and less than whoever waits for it.
const TIME_LIMIT: &str = "3000";

/// containerd's name of our runtime.
const OURS: &str = "io.containerd.kata.v2";
/// What is in the names of the tests that a host with cgroup v1 is asked as well.
const CGROUP_TESTS: &str = "cgroup";

/// Which tests.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only the end-to-end tests.
    #[arg(long)]
    e2e: bool,
    /// Only end-to-end tests whose name contains this.
    #[arg(long, default_value = "", requires = "e2e")]
    only: String,
    /// containerd's name of the runtime under test.
    #[arg(long, default_value = OURS)]
    runtime: String,
    /// Only the tests of pods, under the newest containerd that Debian has.
    #[arg(long, requires = "e2e")]
    newer_containerd: bool,
    /// Test what is built already: install and build nothing first.
    #[arg(long)]
    no_build: bool,
}

/// Runs the tests and prints the verdict.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let mut verdict = Verdict::default();
    if !options.no_build {
        setup::run()?;
    }
    if !options.e2e {
        verdict += check("cargo fmt", &["fmt", "--all", "--check"])?;
        verdict +=
            check("cargo clippy", &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])?;
        verdict += unit_tests()?;
        verdict += fuzzing()?;
    }
    if !options.no_build {
        heading("building what runs in the lab");
        artifacts::build(&artifacts::Options::default())?;
        artifacts::build_tests()?;
    }
    if !options.e2e && !lab::host::runs_microvms() {
        verdict += vmm_tests_in_lab()?;
    }
    verdict += if options.newer_containerd {
        on_newer_containerd(options)?
    } else {
        end_to_end(options, Containerd::Installed)?
    };
    println!("{verdict}");
    Ok(if verdict.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn heading(text: &str) {
    println!("── {text}");
}

/// A command of cargo's that passes or fails as a whole.
fn check(name: &str, arguments: &[&str]) -> Result<Verdict> {
    heading(name);
    let status = artifacts::cargo().args(arguments).status().context("running cargo")?;
    Ok(Verdict::of_one(status.success()))
}

fn unit_tests() -> Result<Verdict> {
    heading("unit tests");
    count_tests(artifacts::cargo().args(["test", "--workspace", "--no-fail-fast"]))
}

/// libFuzzer, which counts each target as a test; what it does not survive fails.
fn fuzzing() -> Result<Verdict> {
    heading("libFuzzer");
    let begin = Instant::now();
    let verdict = fuzz::briefly()?;
    println!("libFuzzer: {verdict}, in {:.0} s", begin.elapsed().as_secs_f64());
    Ok(verdict)
}

/// The VMM's tests with tiny guests have run on this machine's KVM by now, if it has one; the lab's is another one. What
/// needs no KVM (devices and files on plain memory) is left out, and so are the hostile guests that only drive devices: an
/// emulated machine adds nothing to them but an hour.
fn vmm_tests_in_lab() -> Result<Verdict> {
    heading("the VMM's tests in the lab");
    let skipped =
        ["devices::", "fs::", "files::", "rings::", "sockets::"].map(|module| format!("--skip {module}"));
    let script = format!(
        "for test in \"$@\"; do \"$test\" --test-threads 1 {} || status=1; done; exit ${{status:-0}}",
        skipped.join(" ")
    );
    let mut command = Command::new(std::env::current_exe()?);
    command.args([
        "lab",
        "--end-with-parent",
        "--no-build",
        "--no-containerd",
        "--time-limit",
        TIME_LIMIT,
        "--",
        "sh",
        "-c",
        &script,
        "sh",
    ]);
    command.args(artifacts::build_unit_tests("saya-vmm")?).stdin(Stdio::null());
    count_tests(&mut command)
}

/// Runs a command that prints results as `cargo test` does, and sums them.
pub(crate) fn count_tests(command: &mut Command) -> Result<Verdict> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("starting the tests")?;
    let output = show(child.stdout.take().context("the tests have no output")?, "")?;
    let status = child.wait()?;
    let mut verdict = Verdict::of_cargo_test(&output);
    // A test program that does not build, or that dies, prints no result.
    if !status.success() && verdict.failed == 0 {
        verdict.failed = 1;
    }
    Ok(verdict)
}

/// Copies `stream` to standard output line by line, each with `prefix`, and gives all of it.
fn show(stream: impl Read, prefix: &str) -> Result<String> {
    let mut all = String::new();
    for line in BufReader::new(stream).lines() {
        let line = line?;
        writeln!(std::io::stdout(), "{prefix}{line}")?;
        all.push_str(&line);
        all.push('\n');
    }
    Ok(all)
}

/// Which containerd the tests run under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Containerd {
    Installed,
    /// The newest that Debian has, for the tests of pods alone.
    Newer,
}

/// Runs the tests of pods under a newer containerd; where it cannot be had, they count as one that was skipped.
fn on_newer_containerd(options: &Options) -> Result<Verdict> {
    match newer_containerd::installs() {
        Ok(_) => end_to_end(options, Containerd::Newer),
        Err(error) => {
            println!("SKIP the tests of pods under a newer containerd: {error:#}");
            Ok(Verdict { skipped: 1, ..Verdict::default() })
        }
    }
}

/// Runs the end-to-end tests, in two labs side by side where labs are virtual machines: each has one processor.
fn end_to_end(options: &Options, containerd: Containerd) -> Result<Verdict> {
    let tests = if containerd == Containerd::Newer { e2e::of_pods() } else { e2e::all() };
    let matching = tests.iter().filter(|test| test.name.contains(&options.only)).count();
    ensure!(matching > 0, "no test's name contains {:?}", options.only);
    let shards = if lab::host::runs_microvms() { 1 } else { matching.min(2) };
    heading(&format!(
        "end-to-end tests of {} in {shards} lab(s), containerd: {containerd:?}",
        options.runtime
    ));
    let begin = Instant::now();
    lab::prepare(&crate::checkout())?;
    let started: Vec<Shard> = (0..shards)
        .map(|number| {
            Shard::start(options, &options.only, number.to_string(), (number, shards), containerd, &[])
        })
        .collect::<Result<_>>()?;
    let verdicts: Vec<Result<Verdict>> = std::thread::scope(|scope| {
        let waiting: Vec<_> = started.into_iter().map(|shard| scope.spawn(|| shard.finish())).collect();
        waiting
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| anyhow::bail!("a shard's thread died")))
            .collect()
    });
    let mut sum = Verdict::default();
    for verdict in verdicts {
        sum += verdict?;
    }
    if options.runtime == OURS && containerd == Containerd::Installed && !lab::host::runs_microvms() {
        sum += on_cgroup_v1(options)?;
    }
    println!("end-to-end tests: {sum}, in {:.0} s", begin.elapsed().as_secs_f64());
    Ok(sum)
}

/// Runs the tests about cgroups once more where the host has those of version 1.
fn on_cgroup_v1(options: &Options) -> Result<Verdict> {
    let only = match options.only.as_str() {
        "" => CGROUP_TESTS,
        only if only.contains(CGROUP_TESTS) => only,
        _ => return Ok(Verdict::default()),
    };
    Shard::start(options, only, "cgroup v1".to_owned(), (0, 1), Containerd::Installed, &["--cgroup-v1"])?
        .finish()
}

/// A part of the end-to-end tests, in a lab of its own.
struct Shard {
    name: String,
    process: Child,
    results: PathBuf,
}

impl Shard {
    fn start(
        options: &Options,
        only: &str,
        name: String,
        (number, of): (usize, usize),
        containerd: Containerd,
        lab_flags: &[&str],
    ) -> Result<Self> {
        let directory = lab::results_directory(&crate::checkout());
        fs::create_dir_all(&directory)?;
        let results = directory.join(format!("e2e-{}-{}.json", std::process::id(), name.replace(' ', "-")));
        let tests = artifacts::target_directory()?.join("debug/saya-e2e");
        let mut command = Command::new(std::env::current_exe()?);
        let newer = containerd == Containerd::Newer;
        command.args(["lab", "--end-with-parent", "--no-build"]).args(lab_flags);
        if !lab::host::runs_microvms() {
            command.args(["--time-limit", TIME_LIMIT]);
        }
        command
            .args(newer.then_some("--newer-containerd"))
            .arg("--")
            .arg(tests)
            .args(newer.then_some("--pods"));
        command.args(["--runtime", &options.runtime, "--only", only, "--shard", &format!("{number}/{of}")]);
        command.arg("--json").arg(&results).stdin(Stdio::null()).stdout(Stdio::piped());
        let process = command.spawn().context("starting a lab")?;
        Ok(Self { name, process, results })
    }

    /// Shows what the tests print, and gives their verdict. A lab that fails is one failed test.
    fn finish(mut self) -> Result<Verdict> {
        let output = self.process.stdout.take().context("the lab has no output")?;
        show(output, &format!("[{}] ", self.name))?;
        let status = self.process.wait()?;
        let verdict = read_results(&self.results);
        match verdict {
            Ok(verdict) => Ok(verdict),
            Err(error) => {
                println!("[{}] FAIL the lab: {status}, {error:#}", self.name);
                Ok(Verdict::of_one(false))
            }
        }
    }
}

/// Reads and removes the results of one shard.
fn read_results(path: &Path) -> Result<Verdict> {
    let text = fs::read_to_string(path).context("it left no results")?;
    fs::remove_file(path)?;
    let verdict: runner::Verdict = serde_json::from_str(&text)?;
    Ok(Verdict::from(&verdict))
}
