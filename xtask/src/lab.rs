//! `cargo xtask lab`: a command, or a shell, where microVMs run.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use rustix::process::{Signal, set_parent_process_death_signal};
use saya_tests::lab::{self, Request, newer_containerd};

use crate::{artifacts, setup};

/// How the lab is made and what runs in it.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Let the virtual machine's clock count executed instructions, so that times repeat exactly.
    #[arg(long)]
    icount: bool,
    /// Give the virtual machine the cgroups of version 1 instead of version 2.
    #[arg(long, conflicts_with = "on_this_host")]
    cgroup_v1: bool,
    /// Memory of the virtual machine in MiB.
    #[arg(long, default_value_t = 4096, value_name = "MIB")]
    memory: u32,
    /// Take a virtual machine that answers nothing for this many seconds for frozen.
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    stall_limit: u64,
    /// End a virtual machine that runs for more than this many seconds.
    #[arg(long, value_name = "SECONDS", conflicts_with = "on_this_host")]
    time_limit: Option<u64>,
    /// Show the virtual machine's console on standard error.
    #[arg(long)]
    console: bool,
    /// Start without containerd, which saves a few seconds.
    #[arg(long)]
    no_containerd: bool,
    /// Use the newest containerd that Debian has instead of the installed one.
    #[arg(long)]
    newer_containerd: bool,
    /// Run on this machine, with a containerd set up for it, even though its KVM seems to lack the processor's support.
    #[arg(long, conflicts_with_all = ["icount", "console"])]
    on_this_host: bool,
    /// Only make what every lab needs, its kernel and its images, and the suites that the long tests run.
    #[arg(long, conflicts_with = "command")]
    prepare: bool,
    /// Install nothing that this machine lacks, and build nothing that is missing.
    #[arg(long)]
    no_build: bool,
    /// End when the process that has started this one ends.
    #[arg(long, hide = true)]
    end_with_parent: bool,
    /// The command and its arguments; a shell if there is none.
    #[arg(last = true)]
    command: Vec<String>,
}

/// Runs the command, and ends as it ends.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let checkout = crate::checkout();
    if options.end_with_parent {
        set_parent_process_death_signal(Some(Signal::TERM))?;
    }
    if !options.no_build {
        setup::run()?;
        artifacts::build_missing()?;
    }
    if options.prepare {
        lab::suites::programs()?;
        return lab::prepare(&checkout).map(|()| ExitCode::SUCCESS);
    }
    let usual = Request::new(&checkout, options.command.clone());
    let mut installs = artifacts::installs()?;
    if options.newer_containerd {
        installs.extend(newer_containerd::installs()?);
    }
    let request = Request {
        on_this_host: options.on_this_host || (usual.on_this_host && !options.icount && !options.cgroup_v1),
        installs,
        without_containerd: options.no_containerd,
        memory_mib: options.memory,
        instruction_clock: options.icount,
        cgroup_v1: options.cgroup_v1,
        stall_limit: Duration::from_secs(options.stall_limit),
        time_limit: options.time_limit.map(Duration::from_secs),
        show_console: options.console,
        ..usual
    };
    exit_code(lab::run(&request)?)
}

/// The command's exit status as this program's.
pub(crate) fn exit_code(status: i32) -> Result<ExitCode> {
    let status = u8::try_from(status).with_context(|| format!("{status} is no exit status"))?;
    Ok(ExitCode::from(status))
}
