//! Processes, told by the program that they execute, and their memory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::process::Pid;

/// The directories in /proc of the processes whose program is `wanted`. The kernel's own have none.
///
/// # Errors
/// /proc cannot be read.
pub fn that_execute(wanted: impl Fn(&Path) -> bool) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let is_process = path.file_name().is_some_and(|name| name.to_string_lossy().parse::<u32>().is_ok());
        if is_process && fs::read_link(path.join("exe")).is_ok_and(|program| wanted(&program)) {
            found.push(path);
        }
    }
    Ok(found)
}

/// A field of a file with a number of KiB, in MiB.
pub(crate) fn mebibytes(path: &str, field: &str) -> anyhow::Result<f64> {
    let text = fs::read_to_string(path)?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kib: f64 = line
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .with_context(|| format!("{path}: {field}"))?;
    Ok(kib / 1024.0)
}

/// A process's resident memory in MiB.
pub(crate) fn resident(process: Pid) -> anyhow::Result<f64> {
    mebibytes(&format!("/proc/{}/status", process.as_raw_nonzero()), "VmRSS")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_found_by_its_program_and_by_no_other() {
        let own = std::env::current_exe().unwrap();
        let this = Path::new("/proc").join(std::process::id().to_string());
        assert!(that_execute(|program| program == own).unwrap().contains(&this));
        assert!(!that_execute(|program| program != own).unwrap().contains(&this));
    }
}
