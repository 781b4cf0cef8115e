//! `cargo xtask miri`: runs tests under Miri, an interpreter that finds undefined behaviour: memory that is not initialised,
//! aligned or there, references that exclude each other, data races, integers that overflow.

use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use clap::Args;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::test;

/// Miri comes with this toolchain alone.
const TOOLCHAIN: &str = "nightly";

/// Where unsafe code is more than a system call.
const PACKAGE: &str = "saya-vmm";

/// Its modules that are unsafe, or calculate with what a guest says, and do without the system calls that Miri lacks. A test in
/// them that needs one, or takes minutes, says so.
const MODULES: [&str; 22] = [
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
    "fs::table",
    "fs::wire",
];

/// How often a test that is fed at random repeats, where it does not say itself: each time takes Miri seconds.
const CASES: &str = "2";

/// Which tests, and for how long.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only tests whose path contains this.
    #[arg(default_value = "")]
    filter: String,
    /// How many minutes of processor time the tests may take.
    #[arg(long, default_value_t = 20)]
    minutes: u64,
}

/// Runs the tests and prints the verdict. The first finding ends them.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    install()?;
    let tests = tests(&options.filter)?;
    ensure!(!tests.is_empty(), "no test in {} has {:?} in its path", MODULES.join(" "), options.filter);
    println!("── {} tests, for {} min of processor time at most", tests.len(), options.minutes);
    // Inherited, and counted for each process: an interpreter that exceeds it is ended by the kernel.
    let limit = options.minutes.saturating_mul(60);
    setrlimit(Resource::Cpu, Rlimit { current: Some(limit), ..getrlimit(Resource::Cpu) })?;
    let verdict = test::count_tests(miri_test().args(["--test-threads", "1", "--exact"]).args(tests))?;
    println!("{verdict}");
    Ok(if verdict.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The paths of the modules' tests that contain `filter`. Miri would need a minute to find them by the names of the modules.
fn tests(filter: &str) -> Result<Vec<String>> {
    let mut command = miri_test();
    let output = command.args(["--list", "--format", "terse"]).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "the tests do not build for Miri ({})", output.status);
    let listed = String::from_utf8_lossy(&output.stdout);
    let tests = listed.lines().filter_map(|line| line.strip_suffix(": test"));
    let wanted = |test: &&str| MODULES.iter().any(|module| test.starts_with(module)) && test.contains(filter);
    Ok(tests.filter(wanted).map(str::to_owned).collect())
}

/// The package's test program under Miri, with what follows as its arguments.
fn miri_test() -> Command {
    let mut command = miri();
    command
        .args(["test", "--package", PACKAGE, "--lib", "--"])
        // Tests use clocks, temporary files and random numbers of the host.
        .env("MIRIFLAGS", "-Zmiri-disable-isolation")
        .env("PROPTEST_CASES", CASES)
        .env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "1");
    command
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
