//! `cargo xtask reproduce`: builds what is committed twice, in two places, and compares the results byte by byte.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use clap::Args;
use saya_tests::report::table::Table;
use sha2::{Digest, Sha256};

use crate::{artifacts, checkout, setup};

/// What is compared.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The guest kernel too, which is then built twice from its sources: some minutes each.
    #[arg(long)]
    kernel: bool,
}

/// Builds twice, and fails unless both builds are the same.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    setup::run()?;
    let scratch = artifacts::target_directory()?.join("reproduce");
    if scratch.exists() {
        fs::remove_dir_all(&scratch).with_context(|| format!("clearing {}", scratch.display()))?;
    }
    // Paths of different length, which is what most often tells two builds apart.
    let places = [scratch.join("one"), scratch.join("another/and/deeper")];
    for place in &places {
        build(place, options)?;
    }
    let same = compare(&places, options)?;
    fs::remove_dir_all(&scratch).with_context(|| format!("removing {}", scratch.display()))?;
    Ok(if same { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Builds the last commit in `place` as its user would, with nothing that was built before.
fn build(place: &Path, options: &Options) -> Result<()> {
    println!("── building in {}", place.display());
    fs::create_dir_all(place)?;
    let clone = place.join("saya");
    run_to_end(Command::new("git").args(["clone", "--quiet"]).arg(checkout()).arg(&clone))?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["xtask", "build", "shim", "agent"]).args(options.kernel.then_some("kernel"));
    command.current_dir(&clone).env("CARGO_TARGET_DIR", clone.join("target"));
    command.env("SAYA_CACHE", place.join("cache"));
    run_to_end(&mut command)
}

fn run_to_end(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("starting {command:?}"))?;
    ensure!(status.success(), "{command:?} failed ({status})");
    Ok(())
}

/// Shows what both builds are, and says whether they are the same.
fn compare(places: &[PathBuf; 2], options: &Options) -> Result<bool> {
    let mut table = Table::new(["file", "SHA-256", "built again"]);
    let mut all = true;
    for name in artifacts::names(options.kernel) {
        let [first, second] =
            places.each_ref().map(|place| digest(&place.join("saya/target/saya").join(name)));
        let (first, second) = (first?, second?);
        let same = first == second;
        all &= same;
        table.row([name.to_owned(), first, if same { "the same".to_owned() } else { second }]);
    }
    println!("{table}");
    Ok(all)
}

fn digest(path: &Path) -> Result<String> {
    let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    Ok(Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect())
}
