//! The lab: a machine in which microVMs run.
//!
//! Where the processor offers virtualisation and KVM uses it, that is the host itself ([`host`]). Elsewhere it is a
//! virtual machine in QEMU's software emulation, whose emulated processor offers it. Nothing is installed in that
//! machine: its root is the host's, read-only below and in memory above, so it has the host's programs and the checkout
//! at its usual path, and forgets what is written when it ends. docs/lab.md describes it for its users.

pub mod cache;
mod console;
pub mod containerd;
mod cpio;
pub mod debian;
mod disk;
pub mod guest;
pub mod host;
mod images;
mod initramfs;
mod kernel;
mod machine;
pub mod newer_containerd;
pub mod protocol;
mod qemu;
mod session;
pub mod suites;
pub mod terminal;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use disk::prepared;
use kernel::Kernel;
use machine::{Description, Disk};
use protocol::{Install, Job};
use qemu::Qemu;
use session::Wishes;

/// What the user of a lab asks for.
pub struct Request {
    /// The command to run as root; a shell if it is empty.
    pub command: Vec<String>,
    /// The checkout: where the command runs.
    pub checkout: PathBuf,
    /// Files to put in place first, such as the programs under test.
    pub installs: Vec<Install>,
    /// Run the command without containerd, which saves a few seconds.
    pub without_containerd: bool,
    /// Memory of the virtual machine in MiB.
    pub memory_mib: u32,
    /// Run the command on this machine instead of in a virtual machine: right where [`host::runs_microvms`].
    pub on_this_host: bool,
    /// Let the virtual machine's clock count instructions.
    pub instruction_clock: bool,
    /// Give the virtual machine the cgroups of version 1.
    pub cgroup_v1: bool,
    /// Take a virtual machine that answers nothing for this long for frozen.
    pub stall_limit: Duration,
    /// End a virtual machine that runs for longer, by the host's clock.
    pub time_limit: Option<Duration>,
    /// Show the virtual machine's console.
    pub show_console: bool,
    /// Pass on standard input.
    pub input: bool,
    /// Variables to set for the command besides those of this process.
    pub environment: Vec<(String, String)>,
}

impl Request {
    /// A command with the usual settings.
    #[must_use]
    pub fn new(checkout: &Path, command: Vec<String>) -> Self {
        Self {
            command,
            checkout: checkout.to_owned(),
            installs: Vec::new(),
            without_containerd: false,
            memory_mib: 4096,
            on_this_host: host::runs_microvms(),
            instruction_clock: false,
            cgroup_v1: false,
            stall_limit: Duration::from_secs(60),
            time_limit: None,
            show_console: false,
            input: true,
            environment: Vec::new(),
        }
    }
}

/// The directory below the checkout that the lab shares with the host for reading and writing.
#[must_use]
pub fn results_directory(checkout: &Path) -> PathBuf {
    checkout.join("target/lab-out")
}

/// Runs a command where microVMs run, and gives its exit status.
///
/// Has to be called before this process starts a thread: it takes over SIGINT, SIGTERM, SIGHUP and SIGWINCH.
///
/// # Errors
///
/// The lab could not be made or failed. That the command fails is no error, but its exit status.
pub fn run(request: &Request) -> Result<i32> {
    if request.on_this_host {
        return host::run(request);
    }
    let kernel = Kernel::fetch()?;
    let initramfs = initramfs::build(&kernel)?;
    let disk =
        if request.without_containerd { None } else { Some(prepare_disk(request, &kernel, &initramfs)?) };
    let disk = disk.as_deref().map(|image| Disk { image, keep_writes: false });
    boot(request, &kernel, &initramfs, disk, job(request, &kernel)?)
}

/// Makes what every lab needs, so that the next one is ready soon.
///
/// # Errors
///
/// As [`run`].
pub fn prepare(checkout: &Path) -> Result<()> {
    let request = Request::new(checkout, Vec::new());
    if request.on_this_host {
        return images::all().map(drop);
    }
    let kernel = Kernel::fetch()?;
    let initramfs = initramfs::build(&kernel)?;
    prepare_disk(&request, &kernel, &initramfs).map(drop)
}

fn prepare_disk(request: &Request, kernel: &Kernel, initramfs: &Path) -> Result<PathBuf> {
    let images = images::all()?;
    prepared(&images, &kernel.version, |image| {
        eprintln!("lab: importing the images (once)");
        let mut job = job(request, kernel)?;
        job.command.clear();
        job.terminal = None;
        job.installs.clear();
        job.images.clone_from(&images);
        let request =
            Request { instruction_clock: false, input: false, ..Request::new(&request.checkout, Vec::new()) };
        match boot(&request, kernel, initramfs, Some(Disk { image, keep_writes: true }), job)? {
            0 => Ok(()),
            status => bail!("ended by signal {}", status - 128),
        }
    })
}

fn job(request: &Request, kernel: &Kernel) -> Result<Job> {
    let results = results_directory(&request.checkout);
    fs::create_dir_all(&results).with_context(|| format!("making {}", results.display()))?;
    let command = if request.command.is_empty() { vec!["bash".to_owned()] } else { request.command.clone() };
    let terminal = terminal::is_present() && request.input;
    Ok(Job {
        command,
        directory: request.checkout.clone(),
        environment: environment(request, &results),
        terminal: terminal.then(terminal::size).flatten(),
        modules: kernel.modules.clone(),
        images: Vec::new(),
        containerd: !request.without_containerd,
        installs: request.installs.clone(),
        results,
    })
}

/// This process's environment, in which programs of the administrator and those under test are found as well.
fn environment(request: &Request, results: &Path) -> Vec<(String, String)> {
    let path = std::env::var("PATH").unwrap_or_default();
    let path = format!("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:{path}");
    let set = [("PATH".to_owned(), path), ("SAYA_LAB_OUT".to_owned(), results.display().to_string())];
    std::env::vars()
        .filter(|(name, _)| !matches!(name.as_str(), "PATH" | "TMPDIR"))
        .chain(set)
        .chain(request.environment.iter().cloned())
        .collect()
}

fn boot(
    request: &Request,
    kernel: &Kernel,
    initramfs: &Path,
    disk: Option<Disk<'_>>,
    job: Job,
) -> Result<i32> {
    let server = machine::this_program()?;
    let qemu = Qemu::find()?;
    let description = Description {
        qemu: &qemu,
        kernel: &kernel.image,
        initramfs,
        server: &server,
        used: job.files(),
        results: &job.results.clone(),
        disk,
        memory_mib: request.memory_mib,
        instruction_clock: request.instruction_clock,
        cgroup_v1: request.cgroup_v1,
    };
    let wishes = Wishes {
        stall_limit: request.stall_limit,
        time_limit: request.time_limit,
        show_console: request.show_console,
        input: request.input,
        announce: true,
    };
    session::run(description.start()?, job, &wishes)
}
