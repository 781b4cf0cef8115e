//! Benchmarks, run inside the lab (or on a host with hardware virtualization) by the `saya-bench` binary: each compares
//! runtimes side by side in one run, prints a table, and writes the same figures as JSON.

pub mod boot;
pub mod comparison;
pub mod exits;
pub mod fs;
pub mod memory;
pub mod monitors;
pub mod net;
pub mod pod;
pub mod runtimes;
pub mod soak;
pub mod start;
pub mod stdio;

use std::path::Path;

use anyhow::Context;
use serde::Serialize;

/// Writes `figures` as `<directory>/<name>.json`.
///
/// # Errors
/// When the directory or the file cannot be written.
pub fn write_json(directory: &Path, name: &str, figures: &impl Serialize) -> anyhow::Result<()> {
    std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let path = directory.join(format!("{name}.json"));
    let text = serde_json::to_string_pretty(figures)?;
    std::fs::write(&path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
}
