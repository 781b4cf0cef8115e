//! `cargo xtask demo` and `cargo xtask bench`: programs that are built here and run in the lab.

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use saya_tests::lab::{self, Request};

use crate::{artifacts, setup};

/// What can be measured.
const BENCHES: [&str; 8] = ["start", "boot", "memory", STDIO, "fs", "net", "pod", SOAK];
/// The one that moves as much as one likes.
const STDIO: &str = "stdio";
/// The one that is no measurement of speed and takes its time: only by its name.
const SOAK: &str = "soak";

/// How long a demonstration or a measurement may take in a virtual machine: many times what it needs, so that one that
/// hangs is ended and says so.
const TIME_LIMIT: Duration = Duration::from_secs(1800);
/// What each pod of a soak may take on top.
const TIME_LIMIT_OF_POD: Duration = Duration::from_secs(30);
/// What each MiB that passes three ways through the streams of two runtimes may take on top.
const TIME_LIMIT_OF_MEBIBYTE: Duration = Duration::from_secs(3);

/// Which measurement.
#[derive(Debug, Args)]
pub(crate) struct BenchOptions {
    /// What to measure: the start of a container, the boot of a microVM (counted in instructions), memory per pod,
    /// the rate of standard streams, the root file system, the network, the start of pods under CRI; or what many pods leave
    /// on the host (soak). All but the last if nothing is named.
    #[arg(value_parser = BENCHES)]
    name: Option<String>,
    /// How often; with soak, how many pods one after the other (300 is what it was made for), with waves of 10 at once between.
    #[arg(default_value_t = 10)]
    runs: u32,
    /// How many MiB pass through standard streams.
    #[arg(default_value_t = 64)]
    mebibytes: u32,
    /// Measure what is built already: install and build nothing first.
    #[arg(long)]
    no_build: bool,
}

/// Whether to build first.
#[derive(Debug, Args)]
pub(crate) struct DemoOptions {
    /// Show what is built already: install and build nothing first.
    #[arg(long)]
    no_build: bool,
}

/// Shows Saya at work.
pub(crate) fn demo(options: &DemoOptions) -> Result<ExitCode> {
    in_lab("saya-demo", Vec::new(), options.no_build, false, TIME_LIMIT)
}

/// Measures, and leaves the figures as JSON under `target/bench/`.
pub(crate) fn bench(options: &BenchOptions) -> Result<ExitCode> {
    let usual = || BENCHES.into_iter().filter(|name| *name != SOAK).collect();
    let names: Vec<_> = options.name.as_deref().map_or_else(usual, |name| vec![name]);
    let results = lab::results_directory(&crate::checkout());
    let mut no_build = options.no_build;
    for name in names {
        let counted = name == "boot" && !lab::host::runs_microvms();
        let name = if counted { "boot-icount" } else { name };
        let numbers = [options.runs, options.mebibytes].map(|number| number.to_string());
        let arguments = [vec![name.to_owned(), results.display().to_string()], numbers.to_vec()].concat();
        let more = match name {
            SOAK => TIME_LIMIT_OF_POD.saturating_mul(options.runs),
            STDIO => TIME_LIMIT_OF_MEBIBYTE.saturating_mul(options.runs).saturating_mul(options.mebibytes),
            _ => Duration::ZERO,
        };
        let status = in_lab("saya-bench", arguments, no_build, counted, TIME_LIMIT.saturating_add(more))?;
        for kind in ["json", "svg"] {
            keep(&results.join(format!("{name}.{kind}")))?;
        }
        if status != ExitCode::SUCCESS {
            return Ok(status);
        }
        no_build = true;
    }
    Ok(ExitCode::SUCCESS)
}

/// Moves a file of figures, if it is there, from the directory that the lab shares to `target/bench/`.
fn keep(figures: &Path) -> Result<()> {
    if !figures.exists() {
        return Ok(());
    }
    let directory = artifacts::target_directory()?.join("bench");
    let place = directory.join(figures.file_name().unwrap_or_default());
    fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    fs::copy(figures, &place).with_context(|| format!("copying {}", figures.display()))?;
    fs::remove_file(figures)?;
    println!("Written to {}", place.display());
    Ok(())
}

fn in_lab(
    program: &str,
    arguments: Vec<String>,
    no_build: bool,
    instruction_clock: bool,
    time_limit: Duration,
) -> Result<ExitCode> {
    if !no_build {
        setup::run()?;
        artifacts::build(&artifacts::Options::default())?;
        artifacts::build_tests()?;
    }
    let program = artifacts::target_directory()?.join("debug").join(program).display().to_string();
    let command = std::iter::once(program).chain(arguments).collect();
    let checkout = crate::checkout();
    let request = Request {
        installs: artifacts::installs()?,
        instruction_clock,
        time_limit: Some(time_limit),
        input: false,
        ..Request::new(&checkout, command)
    };
    crate::lab::exit_code(lab::run(&request)?)
}
