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
/// containerd says by itself when it is ready; on an emulated machine that shares a busy host it takes its time.
const START_LIMIT: Duration = Duration::from_secs(120);
/// Namespaces into which the images are imported: that of `ctr`, and that of the CRI plugin.
const NAMESPACES: [&str; 2] = ["default", "k8s.io"];

/// What differs between the versions of containerd's configuration file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    version: &'static str,
    /// The plugin that makes pods.
    pub cri: &'static str,
    /// Lines behind those of this plugin that name the pause image.
    sandbox_image: &'static str,
    /// What the installer adds, so that every test under CRI is one of that.
    installed: &'static str,
}

/// The form that containerd 1.x reads.
const VERSION_2: Form = Form {
    version: "2",
    cri: "io.containerd.grpc.v1.cri",
    sandbox_image: "  sandbox_image = \"registry.k8s.io/pause:3.9\"",
    installed: include_str!("../../../deploy/containerd/version-2.toml"),
};
/// The form of containerd 2.x, which reads the other one as well.
const VERSION_3: Form = Form {
    version: "3",
    cri: "io.containerd.cri.v1.runtime",
    sandbox_image: "[plugins.\"io.containerd.cri.v1.images\".pinned_images]\n  sandbox = \"registry.k8s.io/pause:3.9\"",
    installed: include_str!("../../../deploy/containerd/version-3.toml"),
};

impl Form {
    /// The newest form that the containerd of this environment reads.
    ///
    /// # Errors
    ///
    /// containerd does not run.
    pub fn of_containerd(environment: &[(&str, String)]) -> Result<Self> {
        let mut command = Command::new("containerd");
        command.arg("--version").envs(environment.iter().map(|(name, value)| (name, value)));
        let version = output_of(&mut command).context("is the package containerd installed?")?;
        Ok(Self::of_version(&version))
    }

    /// `version`: what `containerd --version` prints; distributions leave the v away.
    fn of_version(version: &str) -> Self {
        let number = version.split_whitespace().nth(2).unwrap_or_default().trim_start_matches('v');
        if number.starts_with("1.") { VERSION_2 } else { VERSION_3 }
    }
}

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
    pub fn configure_without_saya(&self, form: Form) -> Result<String> {
        let text = configuration(self, form);
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
        let form = Form::of_containerd(environment)?;
        places.configure(&(configuration(places, form) + form.installed))?;
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

fn configuration(places: &Places, form: Form) -> String {
    let values = [
        ("@ROOT@", &places.root),
        ("@STATE@", &places.state),
        ("@SOCKET@", &places.socket),
        ("@CNI_BIN@", &places.cni_plugins),
        ("@CNI_CONF@", &places.cni_configuration),
    ];
    let forms = [("@VERSION@", form.version), ("@CRI@", form.cri), ("@SANDBOX_IMAGE@", form.sandbox_image)];
    let text = forms.iter().fold(TEMPLATE.to_owned(), |text, (key, value)| text.replace(key, value));
    values.iter().fold(text, |text, (key, path)| text.replace(key, &path.display().to_string()))
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
    fn the_configuration_has_no_gap_left_in_either_form() {
        for form in [VERSION_2, VERSION_3] {
            let text = configuration(&usual_places(), form);
            assert!(!text.lines().any(|line| !line.starts_with('#') && line.contains('@')), "{text}");
            assert!(text.contains("root = \"/var/lib/containerd\""));
            assert!(!text.contains("containerd.runtimes.kata]"));
            let installed: toml::Table = (text + form.installed).parse().unwrap();
            let runtimes = &installed["plugins"][form.cri]["containerd"]["runtimes"];
            assert_eq!(runtimes["kata"]["runtime_type"].as_str(), Some("io.containerd.kata.v2"));
            assert!(runtimes.get("runc").is_some(), "the lab's own runtimes are the same plugin's");
        }
    }

    #[test]
    fn a_containerd_gets_the_newest_form_that_it_reads() {
        let debian = "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+b1\n";
        let upstream = "containerd github.com/containerd/containerd/v2 v2.1.9 abcdef\n";
        assert_eq!(Form::of_version(debian), VERSION_2);
        assert_eq!(Form::of_version(upstream), VERSION_3);
    }
}
