//! A pod: one virtual machine, its directory on the host, and what its containers share.

pub(crate) mod agent;
pub(crate) mod block_devices;
pub(crate) mod directory;
pub(crate) mod files;
pub(crate) mod hot_plug;
mod loopback;
mod memory_volumes;
pub(crate) mod process;
pub(crate) mod record;
pub(crate) mod timeline;
pub(crate) mod vm;
pub(crate) mod volumes;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use saya_agent_api::agent::{ConfigureSandboxRequest, Holder};
use saya_vmm::control::PANIC_PATIENCE;

use crate::cgroup::{CgroupError, CgroupPath, Limits, PathError, PodCgroup};
use crate::config::{Config, ConfigError};
use crate::identifier;
use crate::io::{DRAIN_PATIENCE, LOST_DRAIN_PATIENCE};
use crate::network::{self, NetworkError, PacketFilters, PodNetwork};
use crate::sizing::{self, SizeError};
use crate::spec::namespaces::{self, NamespaceError, PodSandbox};
use crate::spec::pause;
use crate::spec::settings::{SettingError, Settings};
use crate::spec::{Document, DocumentError};
use agent::Agent;
use block_devices::BlockDevices;
use directory::PodDirectory;
use files::PodFiles;
use record::{Process, Record};
use timeline::Recorder;
use vm::{Plan, StopReport, Vm, VmError};
use volumes::Volumes;

/// How long a VM whose agent no longer answers may take to end by itself, before it is stopped.
const LOST_PATIENCE: Duration = Duration::from_millis(500);

/// How soon containerd is to know that a container has ended, or that its VM is of no more use: whether its kernel has panicked
/// or its agent's connections have ended, in whichever order, and whoever does not read. A quarter of it is for what the
/// host has to do, to end the VMM first of all.
const REPORT_LIMIT: Duration = Duration::from_secs(2);
const _: () = {
    let most = REPORT_LIMIT.as_millis() * 3 / 4;
    let lost = LOST_PATIENCE.as_millis() + vm::LAST_WORDS.as_millis();
    let drain = LOST_DRAIN_PATIENCE.as_millis();
    assert!(lost + drain <= most && PANIC_PATIENCE.as_millis() + drain <= most);
    assert!(DRAIN_PATIENCE.as_millis() <= most);
};

/// Why a pod could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PodError {
    /// The spec.
    #[error(transparent)]
    Spec(#[from] DocumentError),
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// What the pod sets for itself.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// The limits.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// A namespace or an id that cannot name a directory.
    #[error(transparent)]
    Name(#[from] identifier::InvalidIdentifier),
    /// The cgroup that the spec names.
    #[error(transparent)]
    CgroupPath(#[from] PathError),
    /// The same.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The pod's directory on the host.
    #[error("the pod's directory: {0}")]
    Directory(#[source] io::Error),
    /// The network namespace.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A namespace that the guest cannot give.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// The VMM.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// A sandbox that containerd has not created.
    #[error("the pod's sandbox has not been created")]
    NotCreated,
    /// The VM has stopped.
    #[error("the pod's virtual machine is not running: {0}")]
    Stopped(Arc<StopReport>),
}

/// A pod: to be created, started or failed.
pub(crate) struct Pod {
    namespace: String,
    id: String,
    directory: PodDirectory,
    volumes: Arc<Volumes>,
    block_devices: BlockDevices,
    timeline: Arc<Recorder>,
    sandbox: Mutex<Option<PodSandbox>>,
    host: Mutex<HostParts>,
    later_interfaces: tokio::sync::Mutex<()>,
    machine: OnceLock<Machine>,
}

/// What a pod has once it is known what it is to be.
struct Machine {
    network_namespace: Option<PathBuf>,
    /// The files of a pod that the Sandbox API has made.
    files: Option<PodFiles>,
    settings: Settings,
    vm: Result<Vm, PodError>,
}

/// What of a pod is on the host beside its directory and its processes.
#[derive(Default)]
struct HostParts {
    cgroup: PodCgroup,
    network: Option<PodNetwork>,
    /// How interfaces that come later are to be taken.
    network_settings: network::Settings,
}

impl Pod {
    /// The pod of the container `container`, whose bundle is at `bundle`: its VM boots while the caller goes on. What went
    /// wrong is the answer of [`agent`](Self::agent). A bundle without a spec is that of a sandbox, of which
    /// [`boot`](Self::boot) is told later.
    pub(crate) fn start(namespace: &str, container: &str, bundle: &Path, timeline: Arc<Recorder>) -> Self {
        let spec = Document::read(bundle);
        let id = spec.as_ref().ok().and_then(|spec| spec.sandbox_id(container).ok()).unwrap_or(container);
        let directory = PodDirectory::new(namespace, id);
        let pod = Self::new(namespace, id, directory, timeline);
        if matches!(&spec, Err(error) if error.is_missing()) {
            if let Err(error) = pod.record_shim() {
                tracing::warn!(%error, "delete will not find this shim as long as there is no sandbox");
            }
        } else {
            pod.boot(spec, None);
        }
        pod
    }

    /// Has `delete` find the shim of a pod that is not booted yet.
    fn record_shim(&self) -> io::Result<()> {
        self.directory.reserve()?;
        let shim = Process::of(std::process::id()).ok();
        Record { shim, ..Record::default() }.write(&self.directory.record())
    }

    /// A pod of which nothing is known but its name.
    pub(crate) fn new(namespace: &str, id: &str, directory: PodDirectory, timeline: Arc<Recorder>) -> Self {
        Self {
            namespace: namespace.to_owned(),
            id: id.to_owned(),
            volumes: Arc::new(Volumes::new(directory.clone())),
            block_devices: BlockDevices::default(),
            directory,
            timeline,
            sandbox: Mutex::new(None),
            host: Mutex::default(),
            later_interfaces: tokio::sync::Mutex::default(),
            machine: OnceLock::new(),
        }
    }

    /// Has the VM boot that `spec` asks for; `files` are those of a pod that the Sandbox API makes. Nothing happens to a
    /// pod that [is booted](Self::is_booted) already.
    pub(crate) fn boot(&self, spec: Result<Document, DocumentError>, files: Option<PodFiles>) {
        self.machine.get_or_init(|| {
            let network_namespace = spec.as_ref().ok().and_then(namespaces::network_path);
            let mut host = HostParts::default();
            let mut settings = Settings::default();
            let vm = spec.map_err(PodError::from).and_then(|spec| {
                identifier::validate("namespace", &self.namespace)?;
                identifier::validate("container id", &self.id)?;
                settings = Settings::of(spec.value()).map_err(SettingError::from)?;
                let config = settings.apply(Config::load()?)?;
                boot(&config, &spec, &self.id, &self.directory, &mut host, self.timeline.clone())
            });
            if let Ok(mut parts) = self.host.lock() {
                *parts = host;
            }
            Machine { network_namespace, files, settings, vm }
        });
    }

    /// Whether the pod's VM was told to boot, whatever became of it.
    pub(crate) fn is_booted(&self) -> bool {
        self.machine.get().is_some()
    }

    /// A pod around a VM that exists.
    #[cfg(test)]
    pub(crate) fn with_vm(
        id: &str,
        directory: PodDirectory,
        vm: Vm,
        timeline: Arc<Recorder>,
        files: Option<PodFiles>,
    ) -> Self {
        let pod = Self::new("default", id, directory, timeline);
        let settings = Settings::default();
        pod.machine.get_or_init(|| Machine { network_namespace: None, files, settings, vm: Ok(vm) });
        pod
    }

    /// The pod's id: its sandbox's.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// The pod's directory.
    pub(crate) fn directory(&self) -> &PodDirectory {
        &self.directory
    }

    /// The pod's volumes.
    pub(crate) fn volumes(&self) -> &Arc<Volumes> {
        &self.volumes
    }

    /// The host's block devices that the guest has.
    pub(crate) fn block_devices(&self) -> &BlockDevices {
        &self.block_devices
    }

    /// The pod's timeline.
    pub(crate) fn timeline(&self) -> &Recorder {
        &self.timeline
    }

    /// The pod's VM.
    ///
    /// # Errors
    /// It could not be started.
    pub(crate) fn vm(&self) -> Result<&Vm, &PodError> {
        self.machine.get().map_or(Err(&PodError::NotCreated), |machine| machine.vm.as_ref())
    }

    /// The files of a pod that the Sandbox API has made.
    pub(crate) fn files(&self) -> Option<&PodFiles> {
        self.machine.get()?.files.as_ref()
    }

    /// What the pod has set of the configuration for itself.
    pub(crate) fn settings(&self) -> &Settings {
        const NONE: &Settings = &Settings::NONE;
        self.machine.get().map_or(NONE, |machine| &machine.settings)
    }

    /// The pid by which containerd knows the pod's containers: the VMM's. 0 without a VM.
    pub(crate) fn host_pid(&self) -> u32 {
        self.vm().map_or(0, Vm::pid)
    }

    /// Waits until the agent is ready.
    ///
    /// # Errors
    /// The pod could not be started, or its VM has stopped.
    pub(crate) async fn agent(&self) -> Result<Agent, String> {
        let vm = self.vm().map_err(PodError::to_string)?;
        vm.ready().await.map_err(|report| PodError::Stopped(report).to_string())
    }

    /// Waits until the VM is no more; at once where there is none.
    pub(crate) async fn stopped(&self) {
        if let Ok(vm) = self.vm() {
            vm.stopped().await;
        }
    }

    /// Sets limits of the pod's cgroup on the host again that it has lost.
    pub(crate) fn renew_limits(&self) {
        self.host.lock().unwrap_or_else(PoisonError::into_inner).cgroup.renew_limits();
    }

    /// Ends the VM, for this reason.
    pub(crate) fn stop(&self, reason: &str) {
        if let Ok(vm) = self.vm() {
            vm.stop(reason);
        }
    }

    /// What is to be said of a VM whose agent no longer answers. A VM that does not end by itself is stopped.
    pub(crate) async fn lost(&self, error: &ttrpc::Error) -> Option<Arc<StopReport>> {
        let vm = self.vm().ok()?;
        if let ttrpc::Error::Others(words) = error {
            // Given up, or what it says cannot be understood.
            vm.stop(words);
        } else if tokio::time::timeout(LOST_PATIENCE, vm.stopped()).await.is_err() {
            vm.stop(&format!("the agent in the guest no longer answers: {error}"));
        }
        Some(vm.stopped().await)
    }

    /// The pod's sandbox, once it is created.
    pub(crate) fn sandbox(&self) -> Option<PodSandbox> {
        self.sandbox.lock().ok().and_then(|sandbox| *sandbox)
    }

    /// Notes the first process of the container that makes the pod.
    pub(crate) fn set_sandbox(&self, guest_pid: u32) {
        if let Ok(mut sandbox) = self.sandbox.lock() {
            *sandbox = Some(PodSandbox { host_pid: self.host_pid(), guest_pid });
        }
    }

    /// The guest's pid of the process that holds the pod's namespaces, for the container that is to be that, once the agent is
    /// ready. None where there is none, and none the next time.
    pub(crate) fn take_holder(&self) -> Option<u32> {
        self.vm().ok().and_then(Vm::take_holder)
    }

    /// The path of the network namespace whose interfaces the guest has.
    pub(crate) fn network_namespace(&self) -> Option<&Path> {
        self.machine.get()?.network_namespace.as_deref()
    }

    /// The directories of its cgroup on the host, one with v2, one for each hierarchy with v1; none where the spec names none.
    pub(crate) fn cgroup_directories(&self) -> Vec<PathBuf> {
        self.host.lock().unwrap_or_else(PoisonError::into_inner).cgroup.directories()
    }

    /// Ties the interfaces to taps that have come to the pod's network since the guest booted. The network of a pod whose
    /// spec names none by path is its VMM's own, into which whoever is given the pid puts interfaces. `None` where there
    /// are none.
    ///
    /// # Errors
    /// There is something that cannot be carried over, or the kernel refuses.
    pub(crate) async fn connect_later(&self) -> Result<Option<PodNetwork>, NetworkError> {
        let pid = self.host_pid();
        let path = match self.network_namespace() {
            Some(path) => path.to_owned(),
            None if network::interfaces_of(pid)?.is_empty() => return Ok(None),
            None => PathBuf::from(format!("/proc/{pid}/ns/net")),
        };
        let (known, settings) = {
            let host = self.host.lock().unwrap_or_else(PoisonError::into_inner);
            (host.network.as_ref().map(PodNetwork::known).unwrap_or_default(), host.network_settings)
        };
        let record = self.directory.record();
        let connected = tokio::task::spawn_blocking(move || {
            let before = Record::read(&record).map(|record| record.interfaces).unwrap_or_default();
            let note = |later: &[u32]| {
                Record::change(&record, |record| record.interfaces = [before.as_slice(), later].concat())
            };
            network::connect_later(&path, &known, settings, &note)
        });
        connected
            .await
            .unwrap_or_else(|error| Err(NetworkError::host("reading the network")(io::Error::other(error))))
    }

    /// Keeps what [`connect_later`](Self::connect_later) has tied, to be given back when the pod is over.
    pub(crate) fn keep_network(&self, mut later: PodNetwork) {
        later.close_queues();
        let mut host = self.host.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut host.network {
            Some(network) => network.take_in(later),
            None => host.network = Some(later),
        }
    }

    /// Held by who looks for interfaces that have come later.
    pub(crate) async fn later_interfaces(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.later_interfaces.lock().await
    }

    /// Notes that the shim is about to take the pod away, so that `delete` leaves it to it.
    pub(crate) fn announce_end(&self) {
        match Record::change(&self.directory.record(), |record| record.ending = true) {
            // Without a record there is nothing that `delete` would not find by itself.
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, "delete will not know that the shim is taking the pod away");
            }
            _ => {}
        }
    }

    /// Ends the VM and takes everything of the pod away from the host, once that [is announced](Self::announce_end). The
    /// directory goes last: as long as anything else is there, its record tells `delete` of it, whatever becomes of the shim.
    pub(crate) async fn tear_down(&self) {
        self.halt().await;
        if let Err(error) = self.directory.remove() {
            tracing::error!(%error, "the pod's directory stays behind");
        }
    }

    /// Ends the VM and gives back what of the host it used: its network and its cgroup.
    pub(crate) async fn halt(&self) {
        if let Ok(vm) = self.vm() {
            vm.stop("the pod is over");
            vm.stopped().await;
        }
        let host = self.host.lock().map(|mut host| std::mem::take(&mut *host)).unwrap_or_default();
        if let Some(network) = host.network {
            disconnect(network).await;
        }
        // Nor does the runtime wait for what the kernel takes to empty a cgroup.
        let _ = tokio::task::spawn_blocking(move || host.cgroup.leave()).await;
    }
}

/// What the agent is told of the process that is to hold the namespaces of the pod `id`.
pub(crate) fn holder_of(id: &str, spec: &serde_json::Value) -> Holder {
    Holder { container_id: id.to_owned(), oci_spec: spec.to_string().into_bytes(), ..Default::default() }
}

/// Gives a network back. The kernel may take its time, so that it is done on a thread of its own.
pub(crate) async fn disconnect(network: PodNetwork) {
    let done = tokio::task::spawn_blocking(move || network.disconnect()).await;
    if let Ok(Err(error)) = done {
        tracing::error!(%error, "redirections of the pod's interfaces stay behind");
    }
}

fn boot(
    config: &Config,
    spec: &Document,
    id: &str,
    directory: &PodDirectory,
    host: &mut HostParts,
    timeline: Arc<Recorder>,
) -> Result<Vm, PodError> {
    let size = sizing::size(config, spec)?;
    let packet_filters =
        if config.ignore_packet_filters { PacketFilters::Ignored } else { PacketFilters::Refused };
    host.network_settings = network::Settings { queues: size.queue_pairs(), packet_filters };
    let holder = pause::holder(spec, id)?;
    directory.create().map_err(PodError::Directory)?;
    if let Some(path) = spec.text("/linux/cgroupsPath").filter(|path| !path.is_empty()) {
        host.cgroup = PodCgroup::plan(&CgroupPath::parse(path)?)?;
    }
    // Written before there is anything to clean up beside the directory.
    let network_namespace = namespaces::network_path(spec);
    let record = directory.record();
    Record {
        shim: Process::of(std::process::id()).ok(),
        cgroups: host.cgroup.directories(),
        network_namespace: network_namespace.clone(),
        ..Record::default()
    }
    .write(&record)
    .map_err(PodError::Directory)?;
    host.cgroup.join(Limits::of_vm(size.memory_mib, size.vcpus))?;
    if let Some(path) = network_namespace {
        let note =
            |interfaces: &[u32]| Record::change(&record, |record| record.interfaces = interfaces.to_vec());
        host.network = Some(network::connect(&path, host.network_settings, &note)?);
    }
    let sandbox = ConfigureSandboxRequest {
        hostname: spec.text("/hostname").unwrap_or_default().to_owned(),
        holder: holder.map(|spec| holder_of(id, &spec)).into(),
        ..Default::default()
    };
    let namespace = host.network.as_ref().map(PodNetwork::namespace).transpose()?;
    let network = host.network.as_mut();
    // What a VM leaves that does not start is taken away by tear_down.
    let vm = Vm::start(Plan { config, size, directory, network, sandbox, timeline })?;
    if let Some(namespace) = namespace {
        tokio::spawn(loopback::pass_on(vm.clone(), namespace));
    }
    tracing::debug!(id, vcpus = size.vcpus, memory_mib = size.memory_mib, vmm = vm.pid(), "the VM boots");
    let vmm = Process::of(vm.pid()).ok();
    if let Err(error) = Record::change(&record, |record| record.vmm = vmm) {
        vm.stop("its record cannot be written");
        return Err(PodError::Directory(error));
    }
    Ok(vm)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shim_that_waits_for_its_sandbox_is_known_to_who_cleans_up_and_its_end_is_announced() {
        let root = tempfile::tempdir().unwrap();
        let directory = PodDirectory::below(root.path(), "default", "p");
        let pod = Pod::new("default", "p", directory.clone(), Arc::new(Recorder::default()));
        pod.announce_end();
        assert_eq!(Record::read(&directory.record()), None, "nothing is there to be ended");

        pod.record_shim().unwrap();
        let shim = Process::of(std::process::id()).ok();
        assert_eq!(Record::read(&directory.record()), Some(Record { shim, ..Record::default() }));
        pod.announce_end();
        assert_eq!(
            Record::read(&directory.record()),
            Some(Record { shim, ending: true, ..Record::default() })
        );
    }
}
