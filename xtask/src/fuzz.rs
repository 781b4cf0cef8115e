//! `cargo xtask fuzz`: feeds targets with inputs that libFuzzer makes up, and keeps those that reach new code. `cargo xtask
//! test` does so for a moment.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::verdict::Verdict;
use crate::{artifacts, checkout};

const PROGRAM: &str = "saya-libfuzzer";

/// How many seconds an input may take. None of the targets works for one of them; the longest waits for a minute before it calls a
/// stream stuck. What is beyond this hangs, however slow the machine.
const INPUT_SECONDS: u32 = 300;
/// How many MiB a target may use; they use less than a tenth.
const MEMORY_MIB: u32 = 1024;
/// Where targets make their files: in memory, as a guest may have its share synced.
const FILES: &str = "/dev/shm";

/// How many seconds `cargo xtask test` gives each target.
const BRIEF_SECONDS: u32 = 10;
/// Where libFuzzer's random numbers begin in `cargo xtask test`: it judges a change, and not the luck of the day.
const BRIEF_SEED: u32 = 1;

/// What to fuzz.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// One target, a directory of tests/fuzz/corpus; all if none is named.
    target: Option<String>,
    /// For how long, each.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Where the random numbers begin; 0 is elsewhere each time.
    #[arg(long, default_value_t = 0)]
    seed: u32,
    /// Run the target once, on the input in this file.
    #[arg(long, requires = "target", conflicts_with_all = ["seconds", "seed"])]
    input: Option<PathBuf>,
}

/// Fuzzes. An input that a target does not survive is kept below `target/fuzz` and named.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let targets = targets(options.target.as_deref())?;
    let fuzzer = Fuzzer::build(options.seconds, options.seed)?;
    if let (Some(target), Some(input)) = (&options.target, &options.input) {
        let status = fuzzer.command(target).arg(input).status().context("running libFuzzer's program")?;
        return Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let verdict = fuzzer.run(targets, &fuzzer.directory.join("corpus"))?;
    println!("{verdict}");
    Ok(if verdict.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Fuzzes each target for some seconds, from the corpus in the tree on.
pub(crate) fn briefly() -> Result<Verdict> {
    let fuzzer = Fuzzer::build(BRIEF_SECONDS, BRIEF_SEED)?;
    let found = fuzzer.directory.join("brief");
    if found.exists() {
        fs::remove_dir_all(&found).with_context(|| found.display().to_string())?;
    }
    fuzzer.run(targets(None)?, &found)
}

/// The named target, or all: those that have a corpus.
fn targets(named: Option<&str>) -> Result<VecDeque<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(corpus())? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    let wanted: VecDeque<String> =
        names.iter().filter(|name| named.is_none_or(|wanted| wanted == *name)).cloned().collect();
    ensure!(
        !wanted.is_empty(),
        "there is no target {}: name one of {}",
        named.unwrap_or_default(),
        names.join(", ")
    );
    Ok(wanted)
}

fn corpus() -> PathBuf {
    checkout().join("tests/fuzz/corpus")
}

/// libFuzzer's program, and how long it runs.
struct Fuzzer {
    program: PathBuf,
    /// What it leaves: logs, inputs that reach new code, inputs that are not survived.
    directory: PathBuf,
    seconds: u32,
    seed: u32,
}

impl Fuzzer {
    fn build(seconds: u32, seed: u32) -> Result<Self> {
        let status = artifacts::cargo()
            // All packages, so that other crates have the features that they have for the tests, and are built once.
            .args(["build", "--workspace", "--features", "saya-fuzz/libfuzzer", "--bin", PROGRAM])
            .env("RUSTC_WORKSPACE_WRAPPER", checkout().join("tests/fuzz/rustc-for-libfuzzer"))
            .status()
            .context("running cargo")?;
        ensure!(status.success(), "libFuzzer's program does not build");
        let target_directory = artifacts::target_directory()?;
        let program = target_directory.join("debug").join(PROGRAM);
        let directory = target_directory.join("fuzz");
        fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
        Ok(Self { program, directory, seconds, seed })
    }

    /// Fuzzes the targets, as many at a time as there are processors.
    fn run(&self, targets: VecDeque<String>, found: &Path) -> Result<Verdict> {
        let at_once = std::thread::available_parallelism()?.get().min(targets.len());
        println!("{} targets, {at_once} at a time, {} s each", targets.len(), self.seconds);
        let targets = Mutex::new(targets);
        let next = || targets.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let work = || {
            let mut verdict = Verdict::default();
            while let Some(target) = next() {
                let outcome = self.fuzz(&target, &found.join(&target))?;
                println!("{outcome}");
                verdict += Verdict::of_one(outcome.survived);
            }
            anyhow::Ok(verdict)
        };
        let mut sum = Verdict::default();
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..at_once).map(|_| scope.spawn(work)).collect();
            for worker in workers {
                sum += worker.join().unwrap_or_else(|_| anyhow::bail!("a fuzzer's thread died"))?;
            }
            Ok(sum)
        })
    }

    /// Fuzzes one target, and puts inputs that reach new code into `found`.
    fn fuzz(&self, target: &str, found: &Path) -> Result<Outcome> {
        fs::create_dir_all(found).with_context(|| found.display().to_string())?;
        // Not into a file: a target may limit how long those get while it runs.
        let output = self
            .command(target)
            .arg(format!("-max_total_time={}", self.seconds))
            .arg(format!("-seed={}", self.seed))
            .arg(format!("-artifact_prefix={}/{target}-", self.directory.display()))
            .arg("-print_final_stats=1")
            .arg(found)
            .arg(corpus().join(target))
            .output()
            .context("running libFuzzer's program")?;
        let log = self.directory.join(format!("{target}.log"));
        fs::write(&log, &output.stderr).with_context(|| log.display().to_string())?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok(Outcome { target: target.to_owned(), survived: output.status.success(), log, text })
    }

    /// libFuzzer's program for this target, with its limits.
    fn command(&self, target: &str) -> Command {
        let mut command = Command::new(&self.program);
        command
            .env("SAYA_FUZZ_TARGET", target)
            .env("TMPDIR", FILES)
            .arg(format!("-timeout={INPUT_SECONDS}"))
            .arg(format!("-rss_limit_mb={MEMORY_MIB}"));
        command
    }
}

/// How the fuzzing of a target ended.
struct Outcome {
    target: String,
    survived: bool,
    log: PathBuf,
    /// What libFuzzer said.
    text: String,
}

impl Outcome {
    /// The last word that libFuzzer said after `label`.
    fn last(&self, label: &str) -> Option<&str> {
        let (_, rest) = self.text.rsplit_once(label)?;
        rest.split_whitespace().next()
    }

    /// The input that was not survived.
    fn input(&self) -> Option<&str> {
        self.last("Test unit written to ")
    }
}

/// How many lines of a log tell why a target did not survive: the panic comes before libFuzzer's stack and its statistics.
const TAIL_LINES: usize = 60;

impl std::fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { target, log, text, .. } = self;
        let figure = |label| self.last(label).unwrap_or("?");
        if self.survived {
            return write!(
                formatter,
                "PASS fuzz {target}: {} inputs, {} branches reached, {} MiB",
                figure("stat::number_of_executed_units:"),
                figure("cov: "),
                figure("stat::peak_rss_mb:"),
            );
        }
        let lines: Vec<&str> = text.lines().collect();
        for line in lines.get(lines.len().saturating_sub(TAIL_LINES)..).unwrap_or_default() {
            writeln!(formatter, "[fuzz {target}] {line}")?;
        }
        match self.input() {
            Some(input) => write!(
                formatter,
                "FAIL fuzz {target}: it does not survive {input}; once more: cargo xtask fuzz {target} --input {input}"
            ),
            None => write!(
                formatter,
                "FAIL fuzz {target}: libFuzzer ended early; all that it said: {}",
                log.display()
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(survived: bool, text: &str) -> String {
        let (target, text) = ("fuse".to_owned(), text.to_owned());
        Outcome { target, survived, log: "/t/fuse.log".into(), text }.to_string()
    }

    #[test]
    fn a_target_that_survives_is_told_with_libfuzzers_figures() {
        let text = "#2 INITED cov: 20 ft: 21\n#900 DONE   cov: 345 ft: 400\nstat::number_of_executed_units: 900\n\
                    stat::peak_rss_mb:              48\n";
        assert_eq!(outcome(true, text), "PASS fuzz fuse: 900 inputs, 345 branches reached, 48 MiB");
    }

    #[test]
    fn a_target_that_does_not_is_told_with_the_input_and_the_command_to_repeat_it() {
        let text = "thread panicked at x.rs\nartifact_prefix='/t/fuse-'; Test unit written to /t/fuse-crash-1\nBase64: AA==\n";
        let told = outcome(false, text);
        assert!(told.starts_with("[fuzz fuse] thread panicked at x.rs\n"), "{told}");
        let last = "FAIL fuzz fuse: it does not survive /t/fuse-crash-1; once more: cargo xtask fuzz fuse --input /t/fuse-crash-1";
        assert_eq!(told.lines().last(), Some(last));
        assert!(outcome(false, "").ends_with("/t/fuse.log"));
    }

    #[test]
    fn targets_are_those_that_have_a_corpus() {
        assert!(targets(None).unwrap().contains(&"mmio".to_owned()));
        assert_eq!(targets(Some("fuse")).unwrap(), ["fuse"]);
        let error = targets(Some("gone")).unwrap_err().to_string();
        assert!(error.contains("no target gone: name one of agent, configuration"), "{error}");
    }
}
