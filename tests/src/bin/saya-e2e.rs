//! The end-to-end tests, run where microVMs can boot. `cargo xtask test` starts this in the lab.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use saya_tests::e2e::runner::Outcome;
use saya_tests::e2e::set_id::Way;
use saya_tests::e2e::{self, runner};

/// Runs the end-to-end tests under the containerd of this machine.
#[derive(Debug, Parser)]
struct Options {
    /// Only name the tests.
    #[arg(long)]
    list: bool,
    /// containerd's name of the runtime under test.
    #[arg(long, default_value = "io.containerd.kata.v2")]
    runtime: String,
    /// Which part of the tests, as NUMBER/PARTS, the first being 0/PARTS.
    #[arg(long, default_value = "0/1", value_parser = parse_shard)]
    shard: (usize, usize),
    /// Only tests whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Only the tests of pods, which go by CRI.
    #[arg(long)]
    pods: bool,
    /// CRI's runtime handler for pods, instead of the usual one of the runtime.
    #[arg(long)]
    handler: Option<String>,
    /// Where the verdict is written as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// The long forms of the tests that have one: more repetitions, and whatever CI has no time for.
    #[arg(long)]
    long: bool,
    /// Only tell what is made in this directory: the tests run that inside a container.
    #[arg(long, hide = true)]
    watch: Option<PathBuf>,
    /// Only wait until another process maps this file as well: the tests run that inside containers.
    #[arg(long, hide = true)]
    meet_in: Option<PathBuf>,
    /// Only write to this program and become it: the tests run that inside a container.
    #[arg(long, hide = true)]
    write_and_run: Option<PathBuf>,
    /// How that writes.
    #[arg(long, hide = true, value_enum, default_value = "write")]
    by: Way,
    /// Only send back the datagrams that come to this port: the tests run that inside a container.
    #[arg(long, hide = true)]
    echo_datagrams: Option<u16>,
    /// Check this one test in this process.
    #[arg(long)]
    run: Option<String>,
}

fn main() -> anyhow::Result<ExitCode> {
    let options = Options::parse();
    if options.list {
        e2e::all().iter().for_each(|test| println!("{}", test.name));
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(directory) = &options.watch {
        return e2e::watch::print_names(directory).map(|()| ExitCode::SUCCESS);
    }
    if let Some(file) = &options.meet_in {
        return e2e::mapping::meet_in(file).map(|()| ExitCode::SUCCESS);
    }
    if let Some(program) = &options.write_and_run {
        return e2e::set_id::write_and_run(program, options.by).map(|()| ExitCode::SUCCESS);
    }
    if let Some(port) = options.echo_datagrams {
        return e2e::datagrams::echo(port).map(|()| ExitCode::SUCCESS);
    }
    let selection = runner::Selection {
        runtime: options.runtime,
        shard: options.shard,
        only: options.only,
        pods: options.pods,
        handler: options.handler,
        long: options.long,
    };
    if let Some(name) = &options.run {
        return Ok(match runner::run_here(name, &selection)? {
            Outcome::Passed => ExitCode::SUCCESS,
            Outcome::Skipped(reason) => {
                eprintln!("{reason}");
                ExitCode::from(runner::SKIPPED)
            }
        });
    }
    let verdict = runner::run(&selection)?;
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&verdict)?;
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    println!(
        "{} passed, {} failed, {} skipped",
        verdict.passed.len(),
        verdict.failed.len(),
        verdict.skipped.len()
    );
    Ok(if verdict.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn parse_shard(text: &str) -> Result<(usize, usize), String> {
    let (shard, of) = text.split_once('/').ok_or("a shard is NUMBER/PARTS")?;
    let number = |part: &str| part.parse::<usize>().map_err(|error| format!("{part:?}: {error}"));
    let (shard, of) = (number(shard)?, number(of)?);
    if shard < of { Ok((shard, of)) } else { Err(format!("there is no part {shard} of {of}")) }
}
