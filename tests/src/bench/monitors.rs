//! `boot`, its second part: the same kernel and initramfs under other VMMs, and under ours driven the same way.
//!
//! All get one vCPU, the same memory, the same kernel parameters and none of a pod's devices. The agent in the initramfs
//! finds no host to talk to and ends, which the kernel reports as a panic. The first byte of that report on the serial
//! port, `[`, is the same moment under every VMM: the kernel is up and has run init.

use std::fs;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::exits::{Events, Phase, PortWrite, Trace};
use super::runtimes::on_path;
use crate::report::table::Table;

/// Where Saya's configuration is looked for, after what this variable names.
const CONFIG_VARIABLE: &str = "SAYA_CONFIG";
const CONFIG: &str = "/etc/saya/config.toml";

/// What our VMM tells every kernel by itself: a silent console, and a panic that ends the machine.
const QUIET: &str =
    "loglevel=1 earlyprintk=serial,0x3f8,115200,keep reboot=t panic=-1 tsc=reliable rcupdate.rcu_expedited=1";
const MEMORY_MIB: u32 = 256;

/// The serial port's data register, and the byte with which the kernel begins a line of its log.
const SERIAL_DATA: u64 = 0x3f8;
const LINE_BEGINS: u64 = b'[' as u64;

/// A VMM that neither boots nor ends is ended after so many seconds.
const LONGEST_SECONDS: i64 = 10;

/// What one VMM took.
#[derive(Debug, Serialize)]
pub struct Monitor {
    /// The program's name.
    pub name: &'static str,
    /// From its exec to init's end; `None` where the program is not on `PATH`.
    pub phase: Option<Phase>,
}

/// What is booted.
#[derive(Debug, Deserialize)]
#[serde(default)]
struct Guest {
    kernel: PathBuf,
    initramfs: PathBuf,
    kernel_parameters: Vec<String>,
}

impl Default for Guest {
    fn default() -> Self {
        Self {
            kernel: "/usr/local/share/saya/vmlinux".into(),
            initramfs: "/usr/local/share/saya/initramfs.cpio".into(),
            kernel_parameters: Vec::new(),
        }
    }
}

impl Guest {
    /// What Saya is configured to boot on this host.
    fn configured() -> anyhow::Result<Self> {
        let path = std::env::var_os(CONFIG_VARIABLE).map_or_else(|| CONFIG.into(), PathBuf::from);
        match fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text).with_context(|| path.display().to_string()),
            Err(_) => Ok(Self::default()),
        }
    }

    fn parameters(&self) -> String {
        self.kernel_parameters.join(" ")
    }

    fn command_line(&self) -> String {
        format!("{QUIET} {}", self.parameters())
    }
}

/// Boots the guest under each VMM that is on `PATH`. `deterministic` says that the clock counts instructions.
///
/// # Errors
/// When tracing is not to be had, or a VMM that is there does not bring the guest to its init.
pub fn measure(deterministic: bool, scratch: &Path) -> anyhow::Result<Vec<Monitor>> {
    let guest = Guest::configured()?;
    let commands = [saya(&guest), firecracker(&guest, scratch)?, cloud_hypervisor(&guest)];
    let boot = |(name, mut command): (&'static str, Command)| {
        if on_path(name).is_none() {
            return Ok(Monitor { name, phase: None });
        }
        eprintln!("boot: {name}");
        // The first boot finds nothing in the page cache; the second is the one that counts.
        run(&mut command)?;
        let trace = Trace::begin()?;
        let exec = now();
        let output = run(&mut command)?;
        let phase = until_init_ended(name, exec, &trace.end()?, deterministic);
        Ok(Monitor { name, phase: Some(phase.with_context(|| format!("{name} said: {output}"))?) })
    };
    commands.into_iter().map(boot).collect()
}

fn saya(guest: &Guest) -> (&'static str, Command) {
    let mut command = Command::new("saya");
    command.arg("vmm").arg("--kernel").arg(&guest.kernel).arg("--initramfs").arg(&guest.initramfs);
    command.args(["--memory-mib", &MEMORY_MIB.to_string(), "--vcpus", "1"]);
    command.args(["--cmdline-extra", &guest.parameters()]);
    ("saya", command)
}

/// Firecracker, whose machine is described by a file (its docs/getting-started.md, `--config-file`).
fn firecracker(guest: &Guest, scratch: &Path) -> anyhow::Result<(&'static str, Command)> {
    let machine = serde_json::json!({
        "boot-source": {
            "kernel_image_path": guest.kernel,
            "initrd_path": guest.initramfs,
            "boot_args": guest.command_line(),
        },
        "machine-config": { "vcpu_count": 1, "mem_size_mib": MEMORY_MIB },
        "drives": [],
    });
    let path = scratch.join("firecracker.json");
    fs::write(&path, machine.to_string()).with_context(|| format!("cannot write {}", path.display()))?;
    let mut command = Command::new("firecracker");
    command.arg("--no-api").arg("--config-file").arg(path);
    Ok(("firecracker", command))
}

fn cloud_hypervisor(guest: &Guest) -> (&'static str, Command) {
    let mut command = Command::new("cloud-hypervisor");
    command.arg("--kernel").arg(&guest.kernel).arg("--initramfs").arg(&guest.initramfs);
    command.args(["--cmdline", &guest.command_line(), "--cpus", "boot=1"]);
    command.args(["--memory", &format!("size={MEMORY_MIB}M"), "--serial", "tty", "--console", "off"]);
    ("cloud-hypervisor", command)
}

/// Runs a VMM until its guest has reset the machine, and gives what it printed: the guest's console among it. Some VMMs
/// begin anew then, and are ended.
fn run(command: &mut Command) -> anyhow::Result<String> {
    let mut output = tempfile::tempfile().context("cannot make a temporary file")?;
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output.try_clone()?);
    let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
    wait(&mut child)?;
    let mut text = Vec::new();
    output.rewind()?;
    output.read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Waits for the end, which comes after [`LONGEST_SECONDS`] at the latest.
fn wait(child: &mut Child) -> anyhow::Result<()> {
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).context("pidfd_open")?;
    let limit = Timespec { tv_sec: LONGEST_SECONDS, tv_nsec: 0 };
    if poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit)).context("poll")? == 0 {
        child.kill()?;
        child.wait()?;
        bail!("the VMM neither booted nor ended within {LONGEST_SECONDS} s");
    }
    child.wait()?;
    Ok(())
}

/// Nanoseconds of the clock by which the kernel traces.
#[allow(clippy::cast_precision_loss)]
fn now() -> f64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as f64 * 1e9 + now.tv_nsec as f64
}

/// From a VMM's exec to the first line that the kernel writes.
fn until_init_ended(name: &str, exec: f64, events: &Events, deterministic: bool) -> anyhow::Result<Phase> {
    let is_line = |write: &&PortWrite| write.port == SERIAL_DATA && write.value == LINE_BEGINS;
    let line = events.port_writes.iter().find(is_line).context("the guest did not get to its init")?;
    ensure!(line.nanoseconds > exec, "the trace's clock is another one");
    Ok(Phase::new(name, exec..line.nanoseconds, &events.exits, deterministic))
}

/// The figures as a table.
pub fn table(monitors: &[Monitor]) -> Table {
    let mut table = Table::new([
        "from VMM exec to the end of a lone init",
        "ms",
        "million instructions",
        "exits",
        "reasons",
    ]);
    for Monitor { name, phase } in monitors {
        match phase {
            Some(phase) => phase.add_to(&mut table),
            None => table.row([(*name).to_owned(), "not on PATH".to_owned()]),
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::exits::Exit;

    fn guest() -> Guest {
        toml::from_str("kernel = \"/k/vmlinux\"\ninitramfs = \"/k/i.cpio\"\nkernel_parameters = [\"noxsave\", \"a=b\"]\nvcpus = 2")
            .unwrap()
    }

    fn arguments(command: &Command) -> Vec<String> {
        command.get_args().map(|argument| argument.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn every_vmm_boots_the_configured_guest_with_the_same_parameters() {
        let scratch = tempfile::tempdir().unwrap();
        let guest = guest();
        let (_, firecracker) = firecracker(&guest, scratch.path()).unwrap();
        let machine = scratch.path().join("firecracker.json");
        assert_eq!(arguments(&firecracker), ["--no-api", "--config-file", machine.to_str().unwrap()]);
        let machine: serde_json::Value = serde_json::from_str(&fs::read_to_string(machine).unwrap()).unwrap();
        assert_eq!(machine["boot-source"]["kernel_image_path"], "/k/vmlinux");
        assert_eq!(machine["boot-source"]["initrd_path"], "/k/i.cpio");
        assert_eq!(machine["machine-config"]["mem_size_mib"], MEMORY_MIB);
        let line = machine["boot-source"]["boot_args"].as_str().unwrap();
        assert!(line.starts_with(QUIET) && line.ends_with(" noxsave a=b"), "{line}");

        let ours = arguments(&saya(&guest).1);
        assert_eq!(ours.last().unwrap(), "noxsave a=b", "the rest is the VMM's own");
        let theirs = arguments(&cloud_hypervisor(&guest).1);
        for pair in [["--kernel", "/k/vmlinux"], ["--initramfs", "/k/i.cpio"], ["--cmdline", line]] {
            assert!(theirs.windows(2).any(|window| window == pair), "{pair:?} in {theirs:?}");
        }
        for pair in [["--kernel", "/k/vmlinux"], ["--initramfs", "/k/i.cpio"], ["--memory-mib", "256"]] {
            assert!(ours.windows(2).any(|window| window == pair), "{pair:?} in {ours:?}");
        }
    }

    #[test]
    fn the_first_byte_of_a_line_ends_the_measurement() {
        let exit = |nanoseconds| Exit { nanoseconds, reason: "io".into() };
        let write = |nanoseconds, port, value| PortWrite { nanoseconds, port, value };
        let events = Events {
            exits: [5.0, 20.0, 30.0, 41.0, 60.0].map(exit).to_vec(),
            // The port's divisor, then something else's data, then the line.
            port_writes: vec![write(20.0, 0x3f8, 1), write(30.0, 0x80, 0x5b), write(41.0, 0x3f8, 0x5b)],
        };
        let phase = until_init_ended("vmm", 10.0, &events, true).unwrap();
        assert_eq!((phase.exit_count(), phase.instructions), (2, Some(15.5)));
        let silent = Events { port_writes: Vec::new(), ..events };
        assert!(until_init_ended("vmm", 10.0, &silent, true).is_err());
    }

    #[test]
    fn what_is_not_there_is_said_to_be_missing() {
        let shown = table(&[Monitor { name: "firecracker", phase: None }]).to_string();
        let is_said = |line: &str| line.contains("firecracker") && line.ends_with("not on PATH");
        assert!(shown.lines().any(is_said), "{shown}");
    }

    #[test]
    fn what_a_program_printed_is_kept() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo out; echo err >&2; exit 3"]);
        assert_eq!(run(&mut command).unwrap(), "out\nerr\n");
    }
}
