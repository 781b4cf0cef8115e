//! Pods and containers that go with the test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::cri::Cri;
use crate::cri::messages::{
    ContainerConfig, ContainerMetadata, ExecSyncResponse, ImageSpec, LinuxContainerConfig,
    LinuxContainerSecurityContext, LinuxPodSandboxConfig, NamespaceOption, PodSandboxConfig,
    PodSandboxMetadata,
};
use crate::ctr::finish;
use crate::e2e::context::{BUSYBOX, Context, NotApplicable, eventually};
use crate::leaks::Holdings;

/// The bridge of the lab's CNI network, which the plugin leaves when the last pod has gone.
const BRIDGE: &str = "saya0";
/// Where the lab's containerd looks for networks; the first by name is taken.
pub(super) const NETWORKS: &str = "/etc/cni/net.d";
/// How long a command may take unless it is to be ended.
const PATIENCE: Duration = Duration::from_secs(120);
/// What a kubelet gives a container between SIGTERM and SIGKILL, shortened.
pub(super) const GRACE: Duration = Duration::from_secs(1);

/// Ends a test, as skipped, that changes what the lab's own machine has.
///
/// # Errors
/// [`NotApplicable`], elsewhere.
pub(super) fn in_the_lab_alone() -> Result<(), NotApplicable> {
    if Path::new(NETWORKS).join("10-saya.conflist").exists() {
        return Ok(());
    }
    Err(NotApplicable("containerd has its networks elsewhere than the lab's"))
}

/// Expects nothing to be there of a pod that could not be made that was not there before it, but for its network's bridge, which
/// stays.
pub(super) fn expect_nothing_left(before: &Holdings) -> anyhow::Result<()> {
    let left = || before.leaked_by(&Holdings::now());
    eventually("nothing is left of the pod", || Ok(left().iter().all(|thing| thing.contains(BRIDGE))))
        .with_context(|| format!("{:?}", left()))
}

/// Where the host's cgroups are.
pub(super) const CGROUPS: &str = "/sys/fs/cgroup";

/// The cgroup above a pod's, as a kubelet makes it for each. It goes with this.
pub(super) struct ParentCgroup {
    name: &'static str,
}

impl ParentCgroup {
    /// Makes one of this name (`/NAME`), whose memory is counted.
    pub(super) fn make(name: &'static str) -> anyhow::Result<Self> {
        fs::write(format!("{CGROUPS}/cgroup.subtree_control"), "+cpu +memory")?;
        fs::create_dir(format!("{CGROUPS}{name}"))?;
        Ok(Self { name })
    }

    /// What a pod says that is to be below it.
    pub(super) fn of_pod(&self) -> LinuxPodSandboxConfig {
        LinuxPodSandboxConfig { cgroup_parent: self.name.into(), ..LinuxPodSandboxConfig::default() }
    }

    /// One of the kernel's files.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("{CGROUPS}{}/{name}", self.name))
    }
}

impl Drop for ParentCgroup {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(format!("{CGROUPS}{}", self.name)) {
            eprintln!("{}: {error}", self.name);
        }
    }
}

/// A node: containerd's CRI plugin with the runtime under test.
pub(super) struct Node<'a> {
    pub(super) cri: Cri,
    pub(super) handler: &'a str,
    context: &'a Context,
}

impl<'a> Node<'a> {
    pub(super) fn new(context: &'a Context) -> anyhow::Result<Self> {
        let usual = if context.is_control() { "runc" } else { "kata" };
        Self::with_handler(context, context.handler.as_deref().unwrap_or(usual))
    }

    /// One whose pods have this runtime handler.
    pub(super) fn with_handler(context: &'a Context, handler: &'a str) -> anyhow::Result<Self> {
        Ok(Self::of(Cri::connect()?, context, handler))
    }

    /// One with a containerd of its own.
    pub(super) fn of(cri: Cri, context: &'a Context, handler: &'a str) -> Self {
        Self { cri, handler, context }
    }

    /// A pod's configuration.
    pub(super) fn pod_config(&self, name: &str) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("uid-{name}"),
                namespace: "test".to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            log_directory: self.logs(name).display().to_string(),
            linux: Some(LinuxPodSandboxConfig::default()),
            ..PodSandboxConfig::default()
        }
    }

    fn logs(&self, name: &str) -> PathBuf {
        self.context.scratch.join("logs").join(name)
    }

    /// Has a pod whose connection to containerd is broken go on with this one.
    pub(super) fn adopt(&self, pod: Pod<'_>) -> Pod<'_> {
        let (id, config) = (pod.id.clone(), pod.config.clone());
        // It would be removed.
        std::mem::forget(pod);
        Pod { cri: &self.cri, id, config }
    }

    /// Runs a pod of the usual kind.
    pub(super) fn run(&self, name: &str) -> anyhow::Result<Pod<'_>> {
        self.run_with(self.pod_config(name))
    }

    /// Runs a pod.
    pub(super) fn run_with(&self, config: PodSandboxConfig) -> anyhow::Result<Pod<'_>> {
        fs::create_dir_all(&config.log_directory)?;
        let id = self.cri.run_pod(&config, self.handler)?;
        Ok(Pod { cri: &self.cri, id, config })
    }
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        // Without a pod there was no bridge.
        let _ = finish(Command::new("ip").args(["link", "delete", BRIDGE]));
    }
}

/// A pod. What is left of it goes with this.
pub(super) struct Pod<'a> {
    pub(super) cri: &'a Cri,
    pub(super) id: String,
    pub(super) config: PodSandboxConfig,
}

impl Pod<'_> {
    /// A container's configuration.
    pub(super) fn container(&self, name: &str, command: &[&str]) -> ContainerConfig {
        let of_pod = self.config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        let namespaces = of_pod.and_then(|context| context.namespace_options.clone());
        // A kubelet asks for a pid namespace of the container's own unless the pod shares one.
        let own = NamespaceOption { pid: crate::cri::messages::CONTAINER, ..NamespaceOption::default() };
        let namespaces = namespaces.unwrap_or(own);
        ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: Some(ImageSpec { image: BUSYBOX.to_owned() }),
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            log_path: format!("{name}.log"),
            linux: Some(LinuxContainerConfig {
                resources: None,
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: Some(namespaces),
                    ..LinuxContainerSecurityContext::default()
                }),
            }),
            ..ContainerConfig::default()
        }
    }

    /// Creates and starts a container and answers its id.
    pub(super) fn start_with(&self, config: &ContainerConfig) -> anyhow::Result<String> {
        let id = self.cri.create(&self.id, &self.config, config)?;
        self.cri.start(&id)?;
        Ok(id)
    }

    /// Creates and starts a container from busybox.
    pub(super) fn start(&self, name: &str, command: &[&str]) -> anyhow::Result<String> {
        self.start_with(&self.container(name, command))
    }

    /// A container that waits to be told to end.
    pub(super) fn start_idle(&self, name: &str) -> anyhow::Result<String> {
        self.start(name, &["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done"])
    }

    /// Runs a shell's script in a container and gives what it printed.
    pub(super) fn sh(&self, container: &str, script: &str) -> anyhow::Result<String> {
        let ended = self.exec(container, &["sh", "-c", script])?;
        ensure!(
            ended.exit_code == 0,
            "{script}: {}: {}",
            ended.exit_code,
            String::from_utf8_lossy(&ended.stderr)
        );
        Ok(String::from_utf8_lossy(&ended.stdout).into_owned())
    }

    /// Runs a command in a container.
    pub(super) fn exec(&self, container: &str, command: &[&str]) -> anyhow::Result<ExecSyncResponse> {
        self.cri.exec(container, command, PATIENCE)
    }

    /// Its address.
    pub(super) fn address(&self) -> anyhow::Result<String> {
        Ok(self.cri.pod_status(&self.id)?.network.context("a pod without network")?.ip)
    }

    /// A container's log.
    pub(super) fn log(&self, container: &str) -> anyhow::Result<String> {
        let path = PathBuf::from(&self.config.log_directory).join(format!("{container}.log"));
        fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    }

    /// Stops and removes it.
    pub(super) fn remove(self) -> anyhow::Result<()> {
        self.cri.stop_pod(&self.id)?;
        self.cri.remove_pod(&self.id)
    }
}

impl Drop for Pod<'_> {
    fn drop(&mut self) {
        // Removing what is removed already is fine with CRI, and a failed test has its own error.
        let _ = self.cri.stop_pod(&self.id);
        let _ = self.cri.remove_pod(&self.id);
    }
}
