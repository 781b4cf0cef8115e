//! The newest containerd that Debian has, to be used in a lab instead of the installed one. Its programs need no library
//! but libc, so that they run on an older release as well.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::cache::{self, Key};
use super::debian::{self, Suite};
use super::protocol::Install;

const PACKAGE: &str = "containerd";
const PROGRAMS: [&str; 3] = ["containerd", "containerd-shim-runc-v2", "ctr"];
/// Where programs are looked for before those that are installed.
const PLACE: &str = "/usr/local/bin";

/// Its programs, downloaded if they are not in the cache, and their places in a lab.
///
/// # Errors
///
/// It cannot be had, or does not run on this machine.
pub fn installs() -> Result<Vec<Install>> {
    let key = Key::default().with("1").with(debian::release());
    let programs = cache::entry("newer-containerd", &key.finish(), |directory| {
        let archives = directory.join("archives");
        fs::create_dir(&archives)?;
        for archive in debian::download_from(Suite::Unstable, &[PACKAGE], &archives)? {
            debian::unpack(&archive, directory)?;
        }
        fs::remove_dir_all(&archives)?;
        version(&directory.join("usr/bin")).map(drop)
    })?;
    let programs = programs.join("usr/bin");
    eprintln!("lab: {}", version(&programs)?);
    let install =
        |program: &&str| Install { from: programs.join(program), to: Path::new(PLACE).join(program) };
    Ok(PROGRAMS.iter().map(install).collect())
}

/// Whether this machine, a lab, has it.
#[must_use]
pub fn is_installed() -> bool {
    Path::new(PLACE).join(PACKAGE).exists()
}

fn version(programs: &Path) -> Result<String> {
    let output = debian::output_of(Command::new(programs.join(PACKAGE)).arg("--version"));
    Ok(output.context("the newer containerd does not run")?.trim().to_owned())
}
