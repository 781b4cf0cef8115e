//! `cargo xtask demo` and `cargo xtask bench`: programs that are built here and run in the lab.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use saya_tests::lab::{self, Request};

use crate::{artifacts, setup};

/// Which measurement.
#[derive(Debug, Args)]
pub(crate) struct BenchOptions {
    /// What to measure: the start of a container, the boot of a microVM (counted in instructions), or memory per pod.
    #[arg(value_parser = ["start", "boot", "memory"])]
    name: String,
    /// How often.
    #[arg(default_value_t = 10)]
    runs: u32,
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
    in_lab("saya-demo", Vec::new(), options.no_build, false)
}

/// Measures, and leaves the figures as JSON in the directory that the lab shares with the host.
pub(crate) fn bench(options: &BenchOptions) -> Result<ExitCode> {
    let counted = options.name == "boot" && !lab::host::runs_microvms();
    let name = if counted { "boot-icount" } else { options.name.as_str() };
    let results = lab::results_directory(&crate::checkout()).display().to_string();
    in_lab("saya-bench", vec![name.to_owned(), results, options.runs.to_string()], options.no_build, counted)
}

fn in_lab(
    program: &str,
    arguments: Vec<String>,
    no_build: bool,
    instruction_clock: bool,
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
        input: false,
        ..Request::new(&checkout, command)
    };
    crate::lab::exit_code(lab::run(&request)?)
}
