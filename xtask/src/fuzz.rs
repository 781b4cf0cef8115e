//! `cargo xtask fuzz`: feeds targets with inputs that a fuzzer makes up, and keeps those that reach new code.

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::{artifacts, checkout};

/// The targets (`tests/fuzz/src/lib.rs`).
const TARGETS: [&str; 7] = ["agent", "configuration", "control", "fuse", "mmio", "spec", "vsock"];

/// The compiler's options by which libFuzzer learns what an input reaches. They work with any compiler, unlike
/// sanitizers.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
                        -Cllvm-args=-sanitizer-coverage-pc-table -Ccodegen-units=1";
/// Named, so that the options are not those of build scripts.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";

/// What to fuzz.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// One target; all if none is named.
    #[arg(value_parser = TARGETS)]
    target: Option<String>,
    /// For how long, each.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

/// Fuzzes. An input that a target does not survive is kept below `target/fuzz` and named.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let crate_directory = checkout().join("tests/fuzz/libfuzzer");
    // The same versions as everywhere; what libFuzzer needs is added.
    fs::copy(checkout().join("Cargo.lock"), crate_directory.join("Cargo.lock")).context("the lock file")?;
    let target_directory = artifacts::target_directory()?.join("fuzz");
    let status = artifacts::cargo()
        .args(["build", "--target", PLATFORM, "--manifest-path"])
        .arg(crate_directory.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&target_directory)
        .env("RUSTFLAGS", COVERAGE)
        .status()
        .context("running cargo")?;
    ensure!(status.success(), "libFuzzer's program does not build");
    let program = target_directory.join(PLATFORM).join("debug/saya-libfuzzer");
    let mut code = ExitCode::SUCCESS;
    for target in TARGETS.iter().filter(|name| options.target.as_ref().is_none_or(|wanted| wanted == *name)) {
        println!("── {target}");
        let found = target_directory.join("corpus").join(target);
        fs::create_dir_all(&found)?;
        let status = std::process::Command::new(&program)
            .env("SAYA_FUZZ_TARGET", target)
            .arg(format!("-max_total_time={}", options.seconds))
            .arg(format!("-artifact_prefix={}/{target}-", target_directory.display()))
            .arg("-print_final_stats=1")
            // An input that takes so many seconds is a find.
            .arg("-timeout=10")
            .arg(&found)
            .arg(checkout().join("tests/fuzz/corpus").join(target))
            .status()
            .context("running libFuzzer's program")?;
        if !status.success() {
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}
