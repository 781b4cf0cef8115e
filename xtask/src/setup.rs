//! `cargo xtask setup`: what has to be installed on a fresh machine (Debian) to build and to test.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use saya_guest_kernel::kernel::REQUIRED_PACKAGES;
use saya_tests::lab::debian::output_of;

/// What the lab runs, what its images are made of, and the programs that tests and benchmarks run in containers.
const LAB_PACKAGES: [&str; 14] = [
    "attr",
    "busybox-static",
    "containerd",
    "containernetworking-plugins",
    "e2fsprogs",
    "fio",
    "git",
    "iproute2",
    "iptables",
    "kmod",
    "qemu-system-x86",
    "runc",
    "runsc",
    "sqlite3",
];
/// What the agent, the tests and the fuzzer are built with, and what deploy/ runs.
const BUILD_PACKAGES: [&str; 5] = ["curl", "g++", "gcc", "libc6-dev", "musl-tools"];
const GUEST_TARGET: &str = "x86_64-unknown-linux-musl";

/// Installs what is missing, and says what that is.
pub(crate) fn run() -> Result<()> {
    let wanted: BTreeSet<&str> =
        LAB_PACKAGES.into_iter().chain(BUILD_PACKAGES).chain(REQUIRED_PACKAGES.iter().copied()).collect();
    let missing = missing_packages(&wanted)?;
    if !missing.is_empty() {
        eprintln!("setup: installing {}", missing.join(" "));
        apt(&["update"])?;
        let install = ["install", "--yes", "--no-install-recommends"];
        apt(&[&install[..], missing.as_slice()].concat())?;
    }
    add_guest_target()
}

fn missing_packages<'a>(wanted: &BTreeSet<&'a str>) -> Result<Vec<&'a str>> {
    // dpkg-query fails when it does not know a package at all, and lists the others all the same: list every package.
    let listed = output_of(Command::new("dpkg-query").args(["-W", "-f=${Package} ${db:Status-Status}\n"]))
        .context("Saya's set-up knows Debian and its relatives only: install the packages by hand")?;
    Ok(not_installed(wanted, &listed))
}

fn not_installed<'a>(wanted: &BTreeSet<&'a str>, listed: &str) -> Vec<&'a str> {
    let installed: BTreeSet<&str> =
        listed.lines().filter_map(|line| line.strip_suffix(" installed")).collect();
    wanted.iter().copied().filter(|name| !installed.contains(name)).collect()
}

fn apt(arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command.arg("--quiet").args(arguments).env("DEBIAN_FRONTEND", "noninteractive").stdout(io::stderr());
    let status = command.status().context("running apt-get")?;
    if !status.success() {
        bail!("apt-get {} failed ({status}): is this run as root?", arguments.join(" "));
    }
    Ok(())
}

/// The agent is linked statically, for which rustc needs the target's standard library.
fn add_guest_target() -> Result<()> {
    let root = output_of(Command::new("rustc").args(["--print", "sysroot"]).current_dir(crate::checkout()))?;
    if Path::new(root.trim()).join("lib/rustlib").join(GUEST_TARGET).exists() {
        return Ok(());
    }
    eprintln!("setup: adding the target {GUEST_TARGET}");
    let status =
        Command::new("rustup").args(["target", "add", GUEST_TARGET]).current_dir(crate::checkout()).status();
    let status = status
        .with_context(|| format!("rustc has no target {GUEST_TARGET}, and there is no rustup to add it"))?;
    if !status.success() {
        bail!("rustup target add {GUEST_TARGET} failed ({status})");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_not_installed_is_missing() {
        let wanted = BTreeSet::from(["bc", "gone", "runc"]);
        assert_eq!(not_installed(&wanted, "bc installed\ngone config-files\n"), ["gone", "runc"]);
    }
}
