//! The project's own commands, run as `cargo xtask NAME`.

mod artifacts;
mod fuzz;
mod lab;
mod miri;
mod reproduce;
mod setup;
mod shows;
mod test;
mod verdict;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use saya_tests::lab::guest;

/// Builds, tests, shows and measures Saya.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Subcommands,
}

#[derive(Debug, Subcommand)]
enum Subcommands {
    /// Run a command in the lab: a machine in which microVMs run.
    Lab(lab::Options),
    /// Run all tests; the last line is the verdict.
    Test(test::Options),
    /// Show Saya at work: builds everything, runs real containers in microVMs.
    Demo(shows::DemoOptions),
    /// Measure start time, boot or memory.
    Bench(shows::BenchOptions),
    /// Feed parts of Saya with inputs that a fuzzer makes up.
    Fuzz(fuzz::Options),
    /// Run tests under Miri, which finds undefined behaviour.
    Miri(miri::Options),
    /// Build what is committed twice, in two places, and compare the results.
    Reproduce(reproduce::Options),
    /// Install what this machine lacks for building and testing.
    Setup,
    /// Build the shim, the agent, the guest kernel and the initramfs.
    Build(artifacts::Options),
}

fn main() -> ExitCode {
    // In the lab's virtual machine this program is the first process, and the server that the first process starts.
    match std::env::args().nth(1).as_deref() {
        Some(guest::INIT) => guest::init(),
        Some(guest::SERVER) => guest::serve(),
        _ => {
            return run(&Arguments::parse().command).unwrap_or_else(|error| {
                eprintln!("error: {error:#}");
                ExitCode::FAILURE
            });
        }
    }
    ExitCode::FAILURE
}

fn run(command: &Subcommands) -> Result<ExitCode> {
    match command {
        Subcommands::Lab(options) => lab::run(options),
        Subcommands::Test(options) => test::run(options),
        Subcommands::Demo(options) => shows::demo(options),
        Subcommands::Bench(options) => shows::bench(options),
        Subcommands::Fuzz(options) => fuzz::run(options),
        Subcommands::Miri(options) => miri::run(options),
        Subcommands::Reproduce(options) => reproduce::run(options),
        Subcommands::Setup => setup::run().map(|()| ExitCode::SUCCESS),
        Subcommands::Build(options) => artifacts::build(options).map(|()| ExitCode::SUCCESS),
    }
}

/// The checkout that this program was built from.
fn checkout() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(PathBuf::new, PathBuf::from)
}
