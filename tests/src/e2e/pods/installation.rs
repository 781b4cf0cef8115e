//! A node from its first day to its last: containerd without Saya, `deploy/install.sh`, pods by the handler that it
//! names, and everything taken away again.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};

use super::fixture::{NETWORKS, Node, expect_nothing_left, in_the_lab_alone};
use crate::cri::Cri;
use crate::cri::messages::{LinuxPodSandboxConfig, LinuxSandboxSecurityContext};
use crate::ctr::{ctr, finish};
use crate::e2e::context::{BUSYBOX, Context, eventually};
use crate::lab::containerd::{Containerd, Form, Places, places_below};
use crate::leaks::{self, Holdings};
use crate::processes;

/// What is installed: where the lab has it, and where it is below the node's root.
const FILES: [&str; 3] = [
    "/usr/local/bin/containerd-shim-kata-v2",
    "/usr/local/share/saya/vmlinux",
    "/usr/local/share/saya/initramfs.cpio",
];
/// The program for operators, which is installed as well.
const CLI: &str = "/usr/local/bin/saya";
/// The configuration of the lab's own Saya, with what its emulated processor needs.
const LABS_CONFIGURATION: &str = "/etc/saya/config.toml";
const PAUSE: &str = "registry.k8s.io/pause:3.9";
/// What annotations begin with by which a pod sets keys of the configuration.
const SETTING: &str = "io.saya.config.";
/// A handler that the operator adds, whose configuration is a file of its own.
const OWN: &str = "kata-own";

pub(super) fn node(context: &Context) -> anyhow::Result<()> {
    context.for_ours_alone("it is our installer")?;
    in_the_lab_alone()?;
    let machine = Machine::prepare(context)?;
    let original = machine.places.configure_without_saya(machine.form)?;
    machine.install()?;
    let own = context.scratch.join("own.toml");
    machine.add_handler(&own)?;

    let containerd = machine.start_containerd()?;
    machine.check()?;
    containerd.import(&context.scratch.join("images.tar"))?;
    pod_by_the_handler(&containerd, context, &machine)?;
    unknown_key(&containerd, context, &own, &machine.configuration()?)?;
    containerd.stop()?;

    fs::write(&machine.places.configuration, machine.installed_configuration()?)?;
    finish(machine.installer().arg("--remove"))?;
    let left = leaks::walk(&machine.root, &|path| !path.is_dir());
    ensure!(left == [machine.places.configuration.clone()], "left on the node: {left:?}");
    ensure!(fs::read_to_string(&machine.places.configuration)? == original, "another configuration is left");
    Ok(())
}

/// A node's root directory, and the places of its containerd.
struct Machine {
    root: PathBuf,
    /// What is to be installed, as `cargo xtask build` leaves it.
    files: PathBuf,
    saya_configuration: PathBuf,
    places: Places,
    /// That of its containerd's configuration.
    form: Form,
}

impl Machine {
    fn prepare(context: &Context) -> anyhow::Result<Self> {
        let (root, files) = (context.scratch.join("node"), context.scratch.join("files"));
        for directory in [&root, &files] {
            fs::create_dir(directory)?;
        }
        for file in FILES.map(Path::new) {
            symlink(file, files.join(file.file_name().context("a file without name")?))?;
        }
        let places = Places {
            configuration: root.join("etc/containerd/config.toml"),
            cni_configuration: NETWORKS.into(),
            ..places_below(&context.scratch.join("containerd"))
        };
        let saya_configuration = context.scratch.join("saya.toml");
        let machine = Self { root, files, saya_configuration, places, form: Form::of_containerd(&[])? };
        fs::write(&machine.saya_configuration, machine.configuration()?)?;
        Ok(machine)
    }

    /// Where a file of the node's is.
    fn place(&self, file: &str) -> PathBuf {
        self.root.join(file.trim_start_matches('/'))
    }

    /// Saya's configuration: the lab's, and the node's kernel.
    fn configuration(&self) -> anyhow::Result<String> {
        let [_, kernel, initramfs] = FILES.map(|file| self.place(file).display().to_string());
        let labs = fs::read_to_string(LABS_CONFIGURATION)?;
        Ok(format!("{labs}kernel = {kernel:?}\ninitramfs = {initramfs:?}\n"))
    }

    fn installer(&self) -> Command {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/install.sh");
        let mut command = Command::new(script);
        command.arg("--root").arg(&self.root);
        command
    }

    fn install(&self) -> anyhow::Result<()> {
        finish(self.installer().arg("--containerd").arg("--files").arg(&self.files))?;
        for file in FILES {
            ensure!(self.place(file).metadata()?.is_file(), "{file} is not installed");
        }
        Ok(())
    }

    /// Adds a handler like the installed one to containerd's configuration, with a configuration file for Saya.
    fn add_handler(&self, file: &Path) -> anyhow::Result<()> {
        let handler = format!("[plugins.{:?}.containerd.runtimes.{OWN}]", self.form.cri);
        let text = fs::read_to_string(&self.places.configuration)?
            + &format!(
                "{handler}\n  runtime_type = \"io.containerd.kata.v2\"\n  pod_annotations = [\"io.saya.*\"]\n{}\n  ConfigPath = {:?}\n",
                handler.replace(']', ".options]"),
                file.display().to_string()
            );
        Ok(fs::write(&self.places.configuration, text)?)
    }

    /// containerd's configuration without the handler that was added to it.
    fn installed_configuration(&self) -> anyhow::Result<String> {
        let text = fs::read_to_string(&self.places.configuration)?;
        let (installed, added) = text.split_once("# saya: end\n").context("no end of what was installed")?;
        ensure!(added.contains(OWN), "{added}");
        Ok(format!("{installed}# saya: end\n"))
    }

    /// What containerd and the operator have, so that the installed files are found.
    fn environment(&self) -> anyhow::Result<[(&'static str, String); 2]> {
        let programs = self.place("/usr/local/bin").display().to_string();
        let path = std::env::var("PATH")?;
        Ok([
            ("PATH", format!("{programs}:{path}")),
            ("SAYA_CONFIG", self.saya_configuration.display().to_string()),
        ])
    }

    /// Has the installed program look at the node, on which a pod can run then.
    fn check(&self) -> anyhow::Result<()> {
        let ended = Command::new(self.place(CLI)).arg("check").envs(self.environment()?).output()?;
        let report = String::from_utf8_lossy(&ended.stdout);
        ensure!(ended.status.success(), "the node is found wanting:\n{report}");
        let kernel = format!("{}", self.place(FILES[1]).display());
        for words in ["\nok    KVM", "\nok    cgroups", &kernel, "\nThis host can run Saya"] {
            ensure!(report.contains(words), "{words:?} is not in the report:\n{report}");
        }
        Ok(())
    }

    fn start_containerd(&self) -> anyhow::Result<FreshContainerd> {
        let containerd = Containerd::start_configured(&self.places, &self.environment()?)?;
        Ok(FreshContainerd { running: Some(containerd), socket: self.places.socket.clone() })
    }
}

/// A containerd that is gone with the test, however that ends.
struct FreshContainerd {
    running: Option<Containerd>,
    socket: PathBuf,
}

impl FreshContainerd {
    /// Gives it the images of the lab's containerd that a pod is made of.
    fn import(&self, archive: &Path) -> anyhow::Result<()> {
        let archive = archive.display().to_string();
        let socket = self.socket.display().to_string();
        let of_cri = ["--namespace", "k8s.io"];
        ctr([&of_cri[..], &["images", "export", &archive, BUSYBOX, PAUSE]].concat())?;
        ctr([&["--address", &socket][..], &of_cri, &["images", "import", &archive]].concat())?;
        let cri = self.cri()?;
        eventually("the CRI plugin knows the images", || Ok(cri.has_image(BUSYBOX)? && cri.has_image(PAUSE)?))
    }

    fn cri(&self) -> anyhow::Result<Cri> {
        Cri::connect_to(&self.socket)
    }

    /// Ends it, and looks whether it has.
    fn stop(mut self) -> anyhow::Result<()> {
        self.running.take().context("it was stopped before")?.stop()?;
        ensure!(UnixStream::connect(&self.socket).is_err(), "somebody answers at {}", self.socket.display());
        Ok(())
    }
}

impl Drop for FreshContainerd {
    fn drop(&mut self) {
        if let Some(containerd) = self.running.take() {
            let ended = containerd.remove_containers().and(containerd.stop());
            if let Err(error) = ended {
                eprintln!("the node's containerd: {error:#}");
            }
        }
    }
}

/// A pod runs by the installed files, and is gone without a trace.
fn pod_by_the_handler(
    containerd: &FreshContainerd,
    context: &Context,
    machine: &Machine,
) -> anyhow::Result<()> {
    let node = Node::of(containerd.cri()?, context, "kata");
    let pod = node.run("installed")?;
    let container = pod.start_idle("main")?;
    let guests = pod.sh(&container, "uname -r")?;
    let hosts = rustix::system::uname().release().to_string_lossy().into_owned();
    ensure!(
        !guests.trim().is_empty() && guests.trim() != hosts,
        "the pod runs on the node's kernel, {hosts}"
    );
    let shim = machine.place(FILES[0]);
    let pods = || processes::that_execute(|program| program == shim);
    ensure!(!pods()?.is_empty(), "no process runs {}", shim.display());
    pod.remove()?;
    eventually("the pod's processes have ended", || Ok(pods()?.is_empty()))
}

/// A handler whose configuration file has a key that nobody knows makes no pod, says why, and leaves nothing. Once the
/// file is mended it makes one.
fn unknown_key(
    containerd: &FreshContainerd,
    context: &Context,
    file: &Path,
    usual: &str,
) -> anyhow::Result<()> {
    let node = Node::of(containerd.cri()?, context, OWN);
    fs::write(file, format!("{usual}memroy = 512\n"))?;
    let before = Holdings::now();
    let error = match node.run("typo") {
        Ok(pod) => {
            pod.remove()?;
            bail!("a configuration file with an unknown key was accepted")
        }
        Err(error) => format!("{error:#}"),
    };
    for words in [file.display().to_string().as_str(), "unknown field `memroy`"] {
        ensure!(error.matches(words).count() == 1, "{words:?} is not once in {error}");
    }
    expect_nothing_left(&before)?;

    fs::write(file, format!("{usual}memory = 192\nallowed_annotations = [\"vcpus\"]\n"))?;
    as_the_handler_says(&node)
}

/// A pod sets for itself what the handler's configuration lets it, by annotations that the handler passes on, and nothing else. Without
/// `privileged_without_host_devices` its privileged containers ask for the host's devices, and are refused.
fn as_the_handler_says(node: &Node<'_>) -> anyhow::Result<()> {
    let mut config = node.pod_config("typo");
    config.annotations.insert(format!("{SETTING}memory"), "256".into());
    let refusal = format!("{:#}", node.run_with(config.clone()).err().context("a pod set its memory")?);
    ensure!(
        refusal.contains(&format!("{SETTING}memory")) && refusal.contains("allowed_annotations"),
        "{refusal}"
    );

    config.annotations = HashMap::from([(format!("{SETTING}vcpus"), "2".into())]);
    let security = LinuxSandboxSecurityContext { privileged: true, ..LinuxSandboxSecurityContext::default() };
    config.linux =
        Some(LinuxPodSandboxConfig { security_context: Some(security), ..LinuxPodSandboxConfig::default() });
    let pod = node.run_with(config)?;
    let container = pod.start_idle("main")?;
    ensure!(pod.sh(&container, "nproc")? == "2\n", "the pod has {} CPUs", pod.sh(&container, "nproc")?);
    let mut privileged = pod.container("privileged", &["true"]);
    if let Some(security) = privileged.linux.as_mut().and_then(|linux| linux.security_context.as_mut()) {
        security.privileged = true;
    }
    let refusal = format!("{:#}", pod.start_with(&privileged).err().context("it has the host's devices")?);
    for words in ["device of the host", "privileged_without_host_devices"] {
        ensure!(refusal.contains(words), "{words:?} is not in {refusal}");
    }
    pod.remove()
}
