//! The emulator. Debian 12's own QEMU 7.2 loses the flags register of a nested guest now and then: about one microVM in
//! twenty dies of a general protection fault that it did nothing for. That of the release's backports does not, so the
//! lab runs it from a copy beside its other parts. What is installed on the machine stays as it is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::cache::{self, Key};
use super::debian::{self, Suite};

/// QEMU, its firmware, and the BIOS that is a package of its own.
const PACKAGES: [&str; 3] = ["qemu-system-x86", "qemu-system-data", "seabios"];

/// The oldest release of QEMU that is good enough as installed.
const GOOD_ENOUGH: u32 = 10;

/// An emulator that can be started.
pub(super) struct Qemu {
    program: PathBuf,
    firmware: Vec<PathBuf>,
}

impl Qemu {
    /// The installed QEMU where it is new enough; otherwise that of the backports, downloaded if it is not in the cache.
    /// Where there are none, the installed one all the same, which is said.
    ///
    /// # Errors
    ///
    /// No QEMU is installed and none can be had.
    pub(super) fn find() -> Result<Self> {
        let installed = Self { program: "qemu-system-x86_64".into(), firmware: Vec::new() };
        let version = debian::output_of(Command::new(&installed.program).arg("--version"))?;
        if major(&version).is_some_and(|major| major >= GOOD_ENOUGH) {
            return Ok(installed);
        }
        Self::fetch().or_else(|error| {
            let line = version.lines().next().unwrap_or_default();
            eprintln!("lab: {error:#}; using {line}, under which a microVM may now and then fail to boot");
            Ok(installed)
        })
    }

    fn fetch() -> Result<Self> {
        let key = Key::default().with("1").with(debian::release()).with(PACKAGES.join(" ")).finish();
        let directory = cache::entry("qemu", &key, download)?;
        let firmware = ["usr/share/qemu", "usr/share/seabios"].map(|path| directory.join(path)).to_vec();
        Ok(Self { program: directory.join("usr/bin/qemu-system-x86_64"), firmware })
    }

    /// A command that starts it, with its firmware named.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        for directory in &self.firmware {
            command.arg("-L").arg(directory);
        }
        command
    }
}

/// The first number in `QEMU emulator version 7.2.22 (Debian …)`.
fn major(version: &str) -> Option<u32> {
    version.split("version ").nth(1)?.split('.').next()?.parse().ok()
}

fn download(directory: &Path) -> Result<()> {
    let archives = directory.join("archives");
    fs::create_dir(&archives)?;
    for archive in debian::download_from(Suite::Backports, &PACKAGES, &archives)? {
        debian::unpack(&archive, directory)?;
    }
    fs::remove_dir_all(&archives)?;
    let program = directory.join("usr/bin/qemu-system-x86_64");
    debian::output_of(Command::new(&program).arg("--version"))
        .context("QEMU of the backports does not run")
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_what_qemu_says() {
        assert_eq!(major("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright"), Some(7));
        assert_eq!(major("something else"), None);
    }
}
