//! The project's own commands, run as `cargo xtask NAME`.

mod artifacts;
mod lab;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use saya_tests::lab::{guest, session};

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
    session::block_signals()?;
    match command {
        Subcommands::Lab(options) => lab::run(options),
        Subcommands::Build(options) => artifacts::build(options).map(|()| ExitCode::SUCCESS),
    }
}

/// The checkout that this program was built from.
fn checkout() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(PathBuf::new, PathBuf::from)
}
