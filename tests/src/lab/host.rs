//! The host as the lab: it can run microVMs by itself. What the command needs is set up beside whatever the host has:
//! a containerd with directories of its own, the programs under test on the path, and all of it gone afterwards.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use rustix::mount::{UnmountFlags, unmount};

use super::containerd::{Containerd, places_below};
use super::guest::configuration::CNI_CONFIGURATION;
use super::{Request, images, results_directory};

/// On a real file system, which containerd's snapshots need.
const PARENT: &str = "/var/lib/saya-lab";
const SHIM: &str = "containerd-shim-kata-v2";

/// Whether KVM on this machine uses the processor's own virtualisation: one of its two modules for x86 is loaded, and
/// /dev/kvm opens. A /dev/kvm without such a module is some other implementation, on which Linux may not boot.
#[must_use]
pub fn runs_microvms() -> bool {
    let module = ["kvm_intel", "kvm_amd"]
        .iter()
        .any(|name| fs::exists(format!("/sys/module/{name}")).unwrap_or(false));
    module && fs::File::options().read(true).write(true).open("/dev/kvm").is_ok()
}

/// Runs a command on this host, and gives its exit status: 128 + n after signal n.
///
/// # Errors
///
/// The set-up, the command's start or the cleaning up failed.
pub(super) fn run(request: &Request) -> Result<i32> {
    let directory = Directory::make()?;
    directory.install(request)?;
    let path = directory.search_path();
    let containerd = if request.without_containerd { None } else { Some(directory.start_containerd(&path)?) };
    let status = run_command(request, &directory, &path);
    let cleaned = containerd.map_or(Ok(()), stop);
    let removed = directory.remove();
    let status = status?;
    cleaned.and(removed)?;
    Ok(status)
}

/// All that the lab adds to the host.
struct Directory(PathBuf);

impl Directory {
    fn make() -> Result<Self> {
        let directory = Path::new(PARENT).join(std::process::id().to_string());
        fs::create_dir_all(&directory)
            .with_context(|| format!("making {}: is this run as root?", directory.display()))?;
        Ok(Self(directory))
    }

    /// The programs' directory, before everything else that programs are looked for in.
    fn search_path(&self) -> String {
        let host = std::env::var("PATH").unwrap_or_default();
        format!("{}:/usr/local/sbin:/usr/sbin:/sbin:{host}", self.0.join("bin").display())
    }

    /// The programs under test, by their names alone, and a configuration that names the kernel and the initramfs.
    fn install(&self, request: &Request) -> Result<()> {
        let programs = self.0.join("bin");
        fs::create_dir(&programs)?;
        for install in &request.installs {
            let name =
                install.to.file_name().with_context(|| format!("{} has no name", install.to.display()))?;
            fs::copy(&install.from, programs.join(name))
                .with_context(|| format!("copying {}", install.from.display()))?;
        }
        symlink(SHIM, programs.join("saya"))?;
        let files = [("kernel", programs.join("vmlinux")), ("initramfs", programs.join("initramfs.cpio"))];
        let lines: String =
            files.iter().map(|(key, path)| format!("{key} = \"{}\"\n", path.display())).collect();
        fs::write(self.configuration(), lines)?;
        let networks = self.0.join("net.d");
        fs::create_dir(&networks)?;
        fs::write(networks.join("10-saya.conflist"), CNI_CONFIGURATION)?;
        Ok(())
    }

    fn configuration(&self) -> PathBuf {
        self.0.join("saya.toml")
    }

    fn start_containerd(&self, path: &str) -> Result<Containerd> {
        let environment =
            [("PATH", path.to_owned()), ("SAYA_CONFIG", self.configuration().display().to_string())];
        let containerd = Containerd::start(&places_below(&self.0), &environment)?;
        if let Err(error) = images::all().and_then(|images| containerd.import(&images)) {
            containerd.stop()?;
            return Err(error);
        }
        Ok(containerd)
    }

    /// Unmounts and removes everything.
    fn remove(self) -> Result<()> {
        for place in mounts_below(&fs::read_to_string("/proc/self/mountinfo")?, &self.0) {
            unmount(&place, UnmountFlags::DETACH)
                .with_context(|| format!("unmounting {}", place.display()))?;
        }
        fs::remove_dir_all(&self.0).with_context(|| format!("removing {}", self.0.display()))?;
        // Another lab may be there still.
        let _ = fs::remove_dir(PARENT);
        Ok(())
    }
}

/// The mount points below `directory`, the innermost first.
fn mounts_below(mountinfo: &str, directory: &Path) -> Vec<PathBuf> {
    // Field 5 of a line is the mount point (proc(5)).
    let places: BTreeSet<PathBuf> = mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .filter(|place| place.starts_with(directory))
        .collect();
    places.into_iter().rev().collect()
}

fn run_command(request: &Request, directory: &Directory, path: &str) -> Result<i32> {
    let results = results_directory(&request.checkout);
    fs::create_dir_all(&results).with_context(|| format!("making {}", results.display()))?;
    let shell = ["bash".to_owned()];
    let words = if request.command.is_empty() { &shell[..] } else { &request.command };
    let (program, arguments) = words.split_first().context("no command to run")?;
    let mut command = Command::new(program);
    command.args(arguments).current_dir(&request.checkout).env("PATH", path);
    command
        .env("CONTAINERD_ADDRESS", places_below(&directory.0).socket)
        .env("SAYA_CONFIG", directory.configuration());
    command.env("SAYA_LAB_OUT", results).envs(request.environment.iter().cloned());
    if !request.input {
        command.stdin(std::process::Stdio::null());
    }
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    signals.thread_block().context("blocking signals")?;
    let child = command.spawn().with_context(|| format!("starting {program}"))?;
    wait(child, signals)
}

/// Waits for the command. A signal meant for this process goes to the command, and the cleaning up follows its end.
fn wait(mut child: Child, signals: SigSet) -> Result<i32> {
    let command = Pid::from_raw(child.id().cast_signed());
    thread::spawn(move || {
        while let Ok(signal) = signals.wait() {
            // The command is about to be waited for if it is gone.
            let _ = kill(command, signal);
        }
    });
    let status = child.wait()?;
    Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
}

/// Removes the containers that the command left, so that no shim outlives its containerd, and ends containerd.
fn stop(containerd: Containerd) -> Result<()> {
    let removed = containerd.remove_containers();
    containerd.stop()?;
    removed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inner_mounts_are_undone_before_outer_ones() {
        let mountinfo = "1 0 8:1 / / rw - ext4 a rw\n2 1 0:1 / /lab/7/x rw - tmpfs t rw\n3 2 0:2 / /lab/7/x/y rw - tmpfs t rw\n4 1 0:3 / /lab/77 rw - tmpfs t rw\n";
        assert_eq!(
            mounts_below(mountinfo, Path::new("/lab/7")),
            [Path::new("/lab/7/x/y"), Path::new("/lab/7/x")]
        );
    }
}
