//! A containerd of the lab's own: its configuration, its start, and the images it is given.

use std::fs::{self, File};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use super::debian::output_of;

/// A node's configuration before anything is installed.
const TEMPLATE: &str = include_str!("containerd.toml");
/// What the installer adds to it, so that every test under CRI is one of that.
const ADDED: &str = include_str!("../../../deploy/containerd/version-2.toml");
/// containerd says by itself when it is ready; on an emulated machine that shares a busy host it takes its time.
const START_LIMIT: Duration = Duration::from_secs(120);
/// Namespaces into which the images are imported: that of `ctr`, and that of the CRI plugin.
const NAMESPACES: [&str; 2] = ["default", "k8s.io"];

/// Where a containerd keeps what.
pub struct Places {
    /// Images and snapshots; a real file system, not an overlay.
    pub root: PathBuf,
    /// State of running containers.
    pub state: PathBuf,
    /// The gRPC socket.
    pub socket: PathBuf,
    /// The configuration file, which is written.
    pub configuration: PathBuf,
    /// Log of containerd and of the shims.
    pub log: PathBuf,
    /// CNI plugins.
    pub cni_plugins: PathBuf,
    /// CNI configuration.
    pub cni_configuration: PathBuf,
}

impl Places {
    /// Writes the configuration file.
    fn configure(&self, text: &str) -> Result<()> {
        if let Some(directory) = self.configuration.parent() {
            fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
        }
        fs::write(&self.configuration, text)
            .with_context(|| format!("writing {}", self.configuration.display()))
    }

    /// Writes the configuration of a node on which Saya is not installed, and gives it.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn configure_without_saya(&self) -> Result<String> {
        let text = configuration(self);
        self.configure(&text)?;
        Ok(text)
    }
}

/// A containerd that answers, and is started anew when it ends by itself, as systemd would do it.
pub struct Containerd {
    supervised: Supervised,
    socket: PathBuf,
}

impl Containerd {
    /// Starts containerd as on a node on which Saya is installed.
    ///
    /// # Errors
    ///
    /// Those of [`start_configured`](Self::start_configured).
    pub fn start(places: &Places, environment: &[(&str, String)]) -> Result<Self> {
        places.configure(&(configuration(places) + ADDED))?;
        Self::start_configured(places, environment)
    }

    /// Starts containerd with variables added to its environment, and waits until it says that it is ready.
    ///
    /// # Errors
    ///
    /// containerd is not installed, ended, or was not ready in time; the message has the end of its log.
    pub fn start_configured(places: &Places, environment: &[(&str, String)]) -> Result<Self> {
        for directory in [&places.root, &places.state] {
            fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
        }
        let log = File::create(&places.log).with_context(|| format!("making {}", places.log.display()))?;
        let (notices, address) = notice_socket()?;
        let mut command = Command::new("containerd");
        command.arg("--config").arg(&places.configuration).env("NOTIFY_SOCKET", address);
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        let process = command.stdout(log.try_clone()?).stderr(log).spawn();
        let process = process.context("starting containerd: is the package containerd installed?")?;
        let ready = wait_for_ready(&notices);
        let containerd =
            Self { supervised: Supervised::new(process, command), socket: places.socket.clone() };
        match ready {
            Ok(()) => Ok(containerd),
            Err(error) => {
                let log = fs::read_to_string(&places.log).unwrap_or_default();
                let end =
                    log.lines().rev().take(10).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>();
                containerd.stop()?;
                bail!("containerd is not ready: {error}; the end of its log:\n{}", end.join("\n"))
            }
        }
    }

    /// Imports image archives, unpacked, for `ctr` and for the CRI plugin.
    ///
    /// # Errors
    ///
    /// `ctr` refuses an archive.
    pub fn import(&self, images: &[PathBuf]) -> Result<()> {
        for namespace in NAMESPACES {
            for image in images {
                let mut command = Command::new("ctr");
                command.arg("--address").arg(&self.socket).args([
                    "--namespace",
                    namespace,
                    "images",
                    "import",
                ]);
                output_of(command.arg(image)).with_context(|| format!("importing {}", image.display()))?;
            }
        }
        Ok(())
    }

    /// Kills all tasks and removes all containers.
    ///
    /// # Errors
    ///
    /// A container cannot be removed.
    pub fn remove_containers(&self) -> Result<()> {
        for namespace in NAMESPACES {
            for id in
                output_of(self.ctr(namespace).args(["containers", "list", "--quiet"]))?.split_whitespace()
            {
                // This fails for a container without a task, which is how most should be left.
                let _ = output_of(self.ctr(namespace).args(["tasks", "delete", "--force", id]));
                output_of(self.ctr(namespace).args(["containers", "delete", id]))?;
            }
        }
        Ok(())
    }

    fn ctr(&self, namespace: &str) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(&self.socket).args(["--namespace", namespace]);
        command
    }

    /// Ends containerd.
    ///
    /// # Errors
    ///
    /// It cannot be waited for.
    pub fn stop(self) -> Result<()> {
        self.supervised.stop()
    }
}

/// How long after its end a process is replaced: long enough that one which cannot start does not keep a processor busy,
/// and that a test may do something while there is none.
const RESPAWN_PAUSE: Duration = Duration::from_secs(1);

/// A process that is replaced when it ends without having been asked to.
struct Supervised {
    /// The process, until it is asked to end.
    current: Arc<Mutex<Option<Pid>>>,
    supervisor: JoinHandle<Result<()>>,
}

impl Supervised {
    /// Watches over `process`, which `command` has started.
    fn new(process: Child, command: Command) -> Self {
        let current = Arc::new(Mutex::new(Some(pid_of(&process))));
        let watched = current.clone();
        Self { current, supervisor: thread::spawn(move || supervise(process, command, &watched)) }
    }

    fn stop(self) -> Result<()> {
        if let Some(pid) = lock(&self.current).take() {
            // It may have ended by itself just now; it has not been waited for.
            let _ = kill(pid, Signal::SIGTERM);
        }
        self.supervisor.join().unwrap_or_else(|_| bail!("the thread that watches over containerd died"))
    }
}

fn supervise(mut process: Child, mut command: Command, current: &Mutex<Option<Pid>>) -> Result<()> {
    loop {
        // The pid stays its own until it is waited for, which is done under the lock.
        waitid(Id::Pid(pid_of(&process)), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)?;
        let mut current = lock(current);
        process.wait()?;
        if current.is_none() {
            return Ok(());
        }
        thread::sleep(RESPAWN_PAUSE);
        process = command.spawn().context("starting containerd again")?;
        *current = Some(pid_of(&process));
    }
}

fn pid_of(process: &Child) -> Pid {
    Pid::from_raw(process.id().cast_signed())
}

fn lock(current: &Mutex<Option<Pid>>) -> MutexGuard<'_, Option<Pid>> {
    // What it guards is changed by one assignment.
    current.lock().unwrap_or_else(PoisonError::into_inner)
}

fn configuration(places: &Places) -> String {
    let values = [
        ("@ROOT@", &places.root),
        ("@STATE@", &places.state),
        ("@SOCKET@", &places.socket),
        ("@CNI_BIN@", &places.cni_plugins),
        ("@CNI_CONF@", &places.cni_configuration),
    ];
    values
        .iter()
        .fold(TEMPLATE.to_owned(), |text, (key, path)| text.replace(key, &path.display().to_string()))
}

/// A datagram socket for sd_notify(3), with an abstract name that nothing has to remove.
fn notice_socket() -> Result<(UnixDatagram, String)> {
    let name = format!("saya-lab-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name)?;
    let socket = UnixDatagram::bind_addr(&address).context("binding the socket for containerd's notice")?;
    socket.set_read_timeout(Some(START_LIMIT))?;
    Ok((socket, format!("@{name}")))
}

fn wait_for_ready(notices: &UnixDatagram) -> Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let count =
            notices.recv(&mut buffer).with_context(|| format!("no word from it for {START_LIMIT:?}"))?;
        let text = String::from_utf8_lossy(buffer.get(..count).unwrap_or_default()).into_owned();
        if text.lines().any(|line| line == "READY=1") {
            return Ok(());
        }
    }
}

/// The places of a containerd that has the machine for itself, as in the lab's virtual machine.
#[must_use]
pub fn usual_places() -> Places {
    Places {
        root: "/var/lib/containerd".into(),
        state: "/run/containerd".into(),
        socket: "/run/containerd/containerd.sock".into(),
        configuration: "/etc/containerd/config.toml".into(),
        log: "/run/saya-lab/containerd.log".into(),
        cni_plugins: "/opt/cni/bin".into(),
        cni_configuration: "/etc/cni/net.d".into(),
    }
}

/// The places of a containerd below a directory of its own, as on a host that runs microVMs by itself.
#[must_use]
pub fn places_below(directory: &Path) -> Places {
    Places {
        root: directory.join("root"),
        state: directory.join("state"),
        socket: directory.join("containerd.sock"),
        configuration: directory.join("containerd.toml"),
        log: directory.join("containerd.log"),
        cni_plugins: "/usr/lib/cni".into(),
        cni_configuration: directory.join("net.d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_has_no_gap_left() {
        let text = configuration(&usual_places());
        assert!(!text.contains("= \"@"), "{text}");
        assert!(text.contains("root = \"/var/lib/containerd\""));
        assert!(!text.contains("containerd.runtimes.kata]") && ADDED.contains("containerd.runtimes.kata]"));
    }
}
