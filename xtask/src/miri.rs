//! `cargo xtask miri`: runs tests under Miri, an interpreter that finds undefined behaviour: memory that is not initialised,
//! aligned or there, references that exclude each other, data races, integers that overflow.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use clap::Args;
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::test;
use crate::verdict::Verdict;

/// Miri comes with this toolchain alone.
const TOOLCHAIN: &str = "nightly";

/// Where unsafe code is more than a system call.
const PACKAGE: &str = "saya-vmm";

/// Its modules that are unsafe, or calculate with what a guest says, and do without the system calls that Miri lacks. A test in
/// them that needs one, or takes minutes, says so.
const MODULES: [&str; 25] = [
    "boot::",
    "bus::",
    "cpu::",
    "devices::clock",
    "devices::console",
    "devices::io_apic",
    "devices::power",
    "devices::virtio::chain",
    "devices::virtio::mmio",
    "devices::virtio::net::features",
    "devices::virtio::queue",
    "devices::virtio::ring",
    "devices::virtio::rng",
    "devices::virtio::vsock::connection::",
    "devices::virtio::vsock::credit",
    "devices::virtio::vsock::deadlines",
    "devices::virtio::vsock::packet",
    "devices::virtio::vsock::table",
    "fs::buffers",
    "fs::cache_policy",
    "fs::implicit_files",
    "fs::limits",
    "fs::table",
    "fs::wire",
    "memory::sizing",
];

/// How often a test that is fed at random repeats, where it does not say itself: each time takes Miri seconds.
const CASES: &str = "2";

/// Which tests, and for how long.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only modules whose path contains this.
    #[arg(default_value = "")]
    filter: String,
    /// How many minutes of processor time the tests may take.
    #[arg(long, default_value_t = 20)]
    minutes: u64,
}

/// Runs the tests and prints the verdict. The first finding ends them.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let modules: Vec<_> = MODULES.iter().filter(|module| module.contains(&options.filter)).collect();
    ensure!(!modules.is_empty(), "none of {} contains {:?}", MODULES.join(" "), options.filter);
    install()?;
    println!("── {} modules, for {} min of processor time at most", modules.len(), options.minutes);
    // Inherited, and counted for each process: an interpreter that exceeds it is ended by the kernel.
    let limit = options.minutes.saturating_mul(60);
    setrlimit(Resource::Cpu, Rlimit { current: Some(limit), maximum: Some(limit) })?;
    let verdict = test::count_tests(
        miri()
            .args(["test", "--package", PACKAGE, "--lib", "--", "--test-threads", "1"])
            .args(modules)
            // Tests use clocks, temporary files and random numbers of the host.
            .env("MIRIFLAGS", "-Zmiri-disable-isolation")
            .env("PROPTEST_CASES", CASES)
            .env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "1"),
    )?;
    println!("{verdict}");
    Ok(if verdict.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Miri, in the checkout.
fn miri() -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", TOOLCHAIN, "cargo", "miri"]).current_dir(crate::checkout());
    command
}

/// Installs Miri if it is not there, and says so.
fn install() -> Result<()> {
    if miri().arg("--version").output().is_ok_and(|output| output.status.success()) {
        return Ok(());
    }
    eprintln!("miri: installing the toolchain {TOOLCHAIN} with Miri");
    let install = ["toolchain", "install", TOOLCHAIN, "--profile", "minimal", "--component", "miri,rust-src"];
    let status = Command::new("rustup").args(install).status();
    let status = status.context("Miri is a component of rustup's toolchains, and there is no rustup")?;
    ensure!(status.success(), "rustup {} failed ({status})", install.join(" "));
    Ok(())
}
