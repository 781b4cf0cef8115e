//! File system test suites of others, from crates.io, built once and kept.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::cache::{self, Key};
use super::debian;

/// Each crate and its version.
const SUITES: [(&str, &str); 2] = [("pjdfstest", "0.2.2"), ("fsx", "0.3.2")];

/// The directory with the suites' programs, each named like its crate. What is not there is built, which a lab cannot do:
/// it has no network.
///
/// # Errors
///
/// Cargo cannot build one of them.
pub fn programs() -> Result<PathBuf> {
    let key = Key::default().with(debian::release());
    let key = SUITES.iter().fold(key, |key, (name, version)| key.with(name).with(version));
    let entry = cache::entry("suites", &key.finish(), |directory| {
        SUITES.iter().try_for_each(|(name, version)| install(name, version, directory))
    });
    Ok(entry.context("`cargo xtask lab --prepare` builds the suites outside the lab")?.join("bin"))
}

fn install(name: &str, version: &str, directory: &Path) -> Result<()> {
    eprintln!("lab: building {name} {version} (once)");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["install", "--quiet", "--locked", "--debug", "--root"]).arg(directory);
    // What is built on the way does not belong into the checkout's target directory.
    cargo.args(["--version", version, name]).env_remove("CARGO_TARGET_DIR");
    let status = cargo.status().context("running cargo")?;
    if !status.success() {
        bail!("cargo install {name} failed ({status})");
    }
    Ok(())
}
