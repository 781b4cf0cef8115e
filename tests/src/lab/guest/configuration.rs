//! Brings the lab from an overlay of the host's root to a machine on which containerd can run.

use std::ffi::CStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, mount, mount_bind};

use super::super::debian::output_of;
use super::super::newer_containerd;
use super::super::protocol::{Install, Job};

/// What a host of containers has loaded; more comes by itself when it is asked for.
const MODULES: [&str; 10] = [
    "kvm_amd",
    "tun",
    "veth",
    "bridge",
    "br_netfilter",
    "loop",
    "xt_conntrack",
    "xt_MASQUERADE",
    "xt_comment",
    "iptable_nat",
];
/// A network as containerd's CRI plugin gives it to pods.
pub const CNI_CONFIGURATION: &str = include_str!("10-saya.conflist");
/// The shim, if it was built, and the name under which it is the command line program.
const SHIM: &str = "/usr/local/bin/containerd-shim-kata-v2";
const CLI: &str = "/usr/local/bin/saya";
/// The CNI plugins' place in Debian, and the place in which containerd looks for them by default.
const CNI_PLUGINS: &str = "/usr/lib/cni";
const CNI_DIRECTORY: &str = "/opt/cni/bin";

/// Mounts, modules, loopback, shared directory, files: everything but containerd.
///
/// # Errors
///
/// One of the steps failed; the message names it.
pub(super) fn prepare_system(job: &Job) -> Result<()> {
    mount_kernel_file_systems()?;
    load_modules(&job.modules)?;
    output_of(Command::new("ip").args(["link", "set", "lo", "up"]))?;
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("allowing packets to be forwarded")?;
    fs::write("/proc/sys/kernel/hostname", "lab").context("naming the machine")?;
    share_results(&job.results)?;
    for install in &job.installs {
        copy(install)?;
    }
    configure_saya()?;
    configure_cni()
}

fn mount_kernel_file_systems() -> Result<()> {
    let file_systems: [(&CStr, &str, &CStr); 4] = [
        (c"devpts", "/dev/pts", c"mode=0620,ptmxmode=0666"),
        (c"tmpfs", "/dev/shm", c"mode=1777"),
        (c"mqueue", "/dev/mqueue", c""),
        (c"tracefs", "/sys/kernel/tracing", c""),
    ];
    for (kind, place, options) in file_systems {
        fs::create_dir_all(place).with_context(|| format!("making {place}"))?;
        mount(kind, place, kind, MountFlags::empty(), options)
            .with_context(|| format!("mounting {place}"))?;
    }
    for (link, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "fd/0"),
        ("/dev/stdout", "fd/1"),
        ("/dev/stderr", "fd/2"),
    ] {
        // What the kernel or the host's root has there already may stay.
        if !Path::new(link).exists() {
            let _ = fs::remove_file(link);
            symlink(target, link).with_context(|| format!("linking {link}"))?;
        }
    }
    Ok(())
}

fn load_modules(modules: &Path) -> Result<()> {
    fs::create_dir_all("/lib/modules")?;
    mount_bind(modules, "/lib/modules").context("binding /lib/modules")?;
    output_of(Command::new("modprobe").arg("--all").args(MODULES)).map(drop)
}

/// The one directory of the host that the lab can write to, at the same path as on the host.
fn share_results(results: &Path) -> Result<()> {
    let options = c"trans=virtio,version=9p2000.L,msize=512000,cache=none";
    mount("results", results, "9p", MountFlags::empty(), options)
        .with_context(|| format!("mounting the shared directory {}", results.display()))
}

fn copy(install: &Install) -> Result<()> {
    let (from, to) = (&install.from, &install.to);
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    // The place may hold a link of the host's: replace it instead of writing through it.
    let _ = fs::remove_file(to);
    fs::copy(from, to).with_context(|| format!("copying {} to {}", from.display(), to.display()))?;
    Ok(())
}

/// Debian 12's QEMU emulates SVM without the intercept of XSETBV, so a microVM in it may not use XSAVE. And it is slow: no
/// test is to fail for that.
const CONFIGURATION: &str = "kernel_parameters = [\"noxsave\"]\nboot_timeout = 300\nagent_timeout = 150\n";
/// What containerd from 2.0 on may be told.
const OF_NEWER_CONTAINERD: &str = "shim_version = 3\n";

fn configure_saya() -> Result<()> {
    let of_containerd = if newer_containerd::is_installed() { OF_NEWER_CONTAINERD } else { "" };
    write("/etc/saya/config.toml", &format!("{CONFIGURATION}{of_containerd}"))?;
    if Path::new(SHIM).exists() {
        let _ = fs::remove_file(CLI);
        symlink(SHIM, CLI).context("linking the command line program to the shim")?;
    }
    Ok(())
}

fn configure_cni() -> Result<()> {
    write("/etc/cni/net.d/10-saya.conflist", CNI_CONFIGURATION)?;
    if !Path::new(CNI_DIRECTORY).exists() {
        fs::create_dir_all("/opt/cni")?;
        symlink(CNI_PLUGINS, CNI_DIRECTORY)?;
    }
    Ok(())
}

/// Writes a configuration file, making its directory.
///
/// # Errors
///
/// The file cannot be written.
pub(super) fn write(path: &str, content: &str) -> Result<()> {
    if let Some(parent) = Path::new(path).parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, content).with_context(|| format!("writing {path}"))?;
    fs::set_permissions(path, Permissions::from_mode(0o644))?;
    Ok(())
}
