//! The emulated machine that is the lab: QEMU without KVM, with the emulated processor's own virtualisation (SVM).
//!
//! One processor only: with two, the lab can freeze when KVM flips a jump label while the other processor still runs
//! the old translation of that code. Two labs side by side use two processors of the host.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::qemu::Qemu;

/// AMD's processor with SVM and nested paging, without what the emulation of QEMU 7.2 does not have and would warn of.
const PROCESSOR: &str =
    "EPYC,+svm,+npt,-rdseed,-sha-ni,-fxsr-opt,-misalignsse,-3dnowprefetch,-osvw,-topoext,-nrip-save,-xsavec";

/// How the machine is made.
pub(super) struct Description<'a> {
    /// The emulator.
    pub(super) qemu: &'a Qemu,
    /// The lab's kernel.
    pub(super) kernel: &'a Path,
    /// Its initramfs.
    pub(super) initramfs: &'a Path,
    /// The program that the initramfs starts as the lab's server: a file of the host.
    pub(super) server: &'a Path,
    /// What else of the host's the lab is going to use. /tmp is the lab's own, but for the directories of these.
    pub(super) used: Vec<PathBuf>,
    /// The directory of the host that the lab may write to.
    pub(super) results: &'a Path,
    /// The disk that holds containerd's state.
    pub(super) disk: Option<Disk<'a>>,
    /// Memory in MiB.
    pub(super) memory_mib: u32,
    /// Count instructions instead of reading the host's clock.
    pub(super) instruction_clock: bool,
    /// Mount the hierarchies of cgroup v1 instead of v2's.
    pub(super) cgroup_v1: bool,
}

/// A raw disk image.
pub(super) struct Disk<'a> {
    /// The image.
    pub(super) image: &'a Path,
    /// Whether what the lab writes is kept in the image, or forgotten when the lab ends.
    pub(super) keep_writes: bool,
}

/// The running machine and the host's ends of its ports.
pub(super) struct Machine {
    /// The QEMU process; its standard output is the lab's console.
    pub(super) process: Child,
    /// Frames of [`super::protocol`].
    pub(super) control: UnixStream,
    /// Frames of standard input.
    pub(super) input: UnixStream,
}

impl Description<'_> {
    /// Starts the machine.
    ///
    /// # Errors
    ///
    /// `qemu-system-x86_64` is not installed or cannot be started.
    pub(super) fn start(&self) -> Result<Machine> {
        let (control, control_in_qemu) = UnixStream::pair()?;
        let (input, input_in_qemu) = UnixStream::pair()?;
        let mut command = self.qemu.command();
        command
            .args(["-machine", "q35", "-cpu", PROCESSOR, "-smp", "1", "-no-reboot"])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"])
            .args(["-m", &self.memory_mib.to_string()])
            .arg("-kernel")
            .arg(self.kernel)
            .arg("-initrd")
            .arg(self.initramfs)
            .arg("-append")
            .arg(self.command_line());
        // Counting instructions wants one thread for all processors; there is one of each anyway.
        let threads = if self.instruction_clock { "single" } else { "multi" };
        command.args(["-accel", &format!("tcg,thread={threads}")]);
        if self.instruction_clock {
            command.args(["-icount", "shift=1,sleep=off", "-rtc", "clock=vm"]);
        }
        // The first virtio device of the machine, by which its ports are /dev/vport0p1 and /dev/vport0p2.
        command.args(["-device", "virtio-serial-pci"]);
        port(&mut command, 1, "control", &control_in_qemu);
        port(&mut command, 2, "input", &input_in_qemu);
        share(&mut command, "host", Path::new("/"), true);
        share(&mut command, "results", self.results, false);
        if let Some(disk) = &self.disk {
            let image = disk.image.display().to_string().replace(',', ",,");
            let snapshot = if disk.keep_writes { "off" } else { "on" };
            command
                .arg("-drive")
                .arg(format!(
                    "file={image},format=raw,if=none,id=state,cache=unsafe,discard=unmap,snapshot={snapshot}"
                ))
                .args(["-device", "virtio-blk-pci,drive=state"]);
        }
        let inherited = [OwnedFd::from(control_in_qemu), OwnedFd::from(input_in_qemu)];
        let process = spawn(&mut command, &inherited)?;
        Ok(Machine { process, control, input })
    }

    fn command_line(&self) -> String {
        let mut line = "console=ttyS0 quiet panic=-1 mitigations=off nokaslr audit=0 tsc=reliable".to_owned();
        if !self.instruction_clock {
            // The emulated processor's TSC is the host's; calibrating it on a busy host would go wrong.
            line.push_str(&format!(" tsc_early_khz={}", tsc_khz()));
        }
        if self.cgroup_v1 {
            line.push_str(" saya_lab_cgroup_v1");
        }
        line.push_str(&format!(" saya_lab_server={}", self.server.display()));
        line.push_str(&format!(" saya_lab_tmp={}", self.directories_below_tmp().join(",")));
        line
    }

    fn directories_below_tmp(&self) -> Vec<String> {
        let used = self.used.iter().map(PathBuf::as_path).chain([self.server]);
        let names = used.filter_map(|path| path.strip_prefix("/tmp").ok()?.components().next());
        let names: BTreeSet<_> = names.map(|name| name.as_os_str().to_string_lossy().into_owned()).collect();
        names.into_iter().collect()
    }
}

/// A directory of the host, by 9p.
fn share(command: &mut Command, tag: &str, directory: &Path, read_only: bool) {
    let directory = directory.display().to_string().replace(',', ",,");
    let read_only = if read_only { "on" } else { "off" };
    command
        .arg("-fsdev")
        .arg(format!(
            "local,id={tag},path={directory},security_model=none,readonly={read_only},multidevs=remap"
        ))
        .args(["-device", &format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}")]);
}

/// A port whose other end QEMU inherits as an open socket: no name in the file system, nothing to clean up.
fn port(command: &mut Command, number: u32, name: &str, socket: &UnixStream) {
    command
        .args(["-chardev", &format!("socket,id={name},fd={}", socket.as_raw_fd())])
        .args(["-device", &format!("virtserialport,nr={number},chardev={name},name=saya.{name}")]);
}

/// Starts QEMU in a process group of its own (a Ctrl-C at the terminal is for the session to handle), with the sockets
/// left open, and such that it dies with the thread that started it.
fn spawn(command: &mut Command, inherited: &[OwnedFd]) -> Result<Child> {
    let numbers: Vec<i32> = inherited.iter().map(|socket| socket.as_fd().as_raw_fd()).collect();
    let prepare = move || {
        for &number in &numbers {
            // SAFETY: the sockets behind `numbers` are owned by the caller's `inherited` until after the spawn, and the
            // child has copies of them under the same numbers.
            let socket = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
            rustix::io::fcntl_setfd(socket, rustix::io::FdFlags::empty())?;
        }
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        Ok(())
    };
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // SAFETY: `prepare` makes system calls only: it neither allocates nor takes a lock between fork and exec.
    unsafe { command.pre_exec(prepare) };
    command.spawn().context("starting qemu-system-x86_64: is the package qemu-system-x86 installed?")
}

/// The frequency of this processor's time stamp counter in kHz, by comparing it with the clock for a moment.
fn tsc_khz() -> u64 {
    let ticks = || {
        // SAFETY: every 64-bit x86 processor has RDTSC, and Linux lets user space execute it.
        unsafe { std::arch::x86_64::_rdtsc() }
    };
    let (start, first) = (Instant::now(), ticks());
    while start.elapsed() < Duration::from_millis(20) {
        std::hint::spin_loop();
    }
    let (elapsed, last) = (start.elapsed(), ticks());
    let nanoseconds = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX).max(1);
    last.wrapping_sub(first).saturating_mul(1_000_000) / nanoseconds
}

/// The program that runs now, to be started again inside the lab.
///
/// # Errors
///
/// /proc is not mounted.
pub(super) fn this_program() -> Result<PathBuf> {
    std::env::current_exe().context("finding the path of the running program")
}
