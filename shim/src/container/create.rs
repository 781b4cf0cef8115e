//! Creating a container.

use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use containerd_shim_protos::api::Mount;
use rustix::fs::StatVfsMountFlags;
use rustix::mount::MountPropagationFlags;
use saya_agent_api::agent::CreateContainerRequest;
use saya_agent_api::{LIVE_SHARE, PRIVATE_SHARE, SHARE_PATH};
use serde_json::Value;
use tokio::sync::oneshot;

use super::error::TaskError;
use super::process::Process;
use super::tasks::{Container, Reservation, Tasks};
use super::traits::Traits;
use super::{exit, hooks};
use crate::events::Event;
use crate::identifier;
use crate::io::{HostEnds, ProcessIo, Stdio, StdioError};
use crate::mount::{self, Binding};
use crate::pod::agent::{Agent, no_timeout};
use crate::pod::directory::ContainerPlaces;
use crate::pod::files;
use crate::pod::volumes::Place;
use crate::spec::host_cpus::HostCpus;
use crate::spec::mounts::{self, Volume};
use crate::spec::namespaces::PodNamespaces;
use crate::spec::own_volumes::OwnVolumes;
use crate::spec::translation::{self, Context, Translation, TranslationError};
use crate::spec::{Document, DocumentError};

/// What containerd says of a container to be.
#[derive(Debug, Default)]
pub(crate) struct CreateRequest {
    /// Its id.
    pub(crate) id: String,
    /// Its bundle's directory.
    pub(crate) bundle: PathBuf,
    /// What makes its root file system; empty when the spec's `root.path` is it.
    pub(crate) rootfs: Vec<Mount>,
    /// Where its first process's streams are.
    pub(crate) stdio: Stdio,
    /// A checkpoint to restore.
    pub(crate) checkpoint: String,
}

/// A container's first process, as the guest has it.
struct Made {
    guest_pid: u32,
    io: ProcessIo,
    /// Whether it does not wait for its start.
    runs: bool,
}

impl From<TranslationError> for TaskError {
    fn from(error: TranslationError) -> Self {
        Self::invalid_argument(error)
    }
}

impl From<DocumentError> for TaskError {
    fn from(error: DocumentError) -> Self {
        Self::invalid_argument(error)
    }
}

impl From<StdioError> for TaskError {
    fn from(error: StdioError) -> Self {
        match error {
            StdioError::Uri(error) => Self::invalid_argument(error),
            error => Self::failed(error),
        }
    }
}

impl Tasks {
    /// Creates a container, its first process stopped just before its exec. Answers the pid.
    ///
    /// # Errors
    /// Whatever kept it from being; nothing of it is left.
    pub(crate) async fn create(&self, request: CreateRequest) -> Result<u32, TaskError> {
        self.pod().timeline().mark(|timeline| &mut timeline.create_received_ns);
        identifier::validate("container id", &request.id).map_err(TaskError::invalid_argument)?;
        if !request.checkpoint.is_empty() {
            return Err(TaskError::unimplemented("restoring a checkpoint is not supported"));
        }
        // It ends with this call: who takes the id next finds nothing of a container that could not be made.
        let mut reservation = self.reserve(&request.id)?;
        self.pod().vm().map_err(TaskError::invalid_argument)?;
        self.pod().renew_limits();
        let mut spec = Document::read(&request.bundle)?;
        let sandbox = if spec.makes_pod() { None } else { self.pod_namespaces() };
        let files = self.pod().files();
        if let Some(files) = files {
            files.bind(&mut spec)?;
        }
        let (spec, mut translation) = self.translate(spec, &request, sandbox).await?;
        if files.is_some() {
            files::share_memory(&mut translation.guest);
        }
        let places = self.pod().directory().container(&request.id);
        let created = self.create_with(&request, &spec, translation, places.clone(), &mut reservation).await;
        if created.is_err() {
            self.release_devices(&request.id).await;
            self.take_host_cpus_back(&request.id).await;
            self.remove_files(&request.id, &places).await;
        }
        created
    }

    /// Translates the spec for the guest. Its volumes are looked at, whose file systems are the host's and may never answer.
    async fn translate(
        &self,
        spec: Document,
        request: &CreateRequest,
        sandbox: Option<PodNamespaces>,
    ) -> Result<(Document, Translation), TaskError> {
        let (container, bundle) = (request.id.clone(), request.bundle.clone());
        let settings = self.pod().settings().clone();
        let translated = aside(move || {
            let context = Context {
                container: &container,
                bundle: &bundle,
                sandbox,
                settings: &settings,
                inspect: &mounts::inspect,
            };
            translation::translate(&spec, &context).map(|translation| (spec, translation))
        });
        Ok(translated.await??)
    }

    async fn create_with(
        &self,
        request: &CreateRequest,
        spec: &Document,
        translation: Translation,
        places: ContainerPlaces,
        reservation: &mut Reservation,
    ) -> Result<u32, TaskError> {
        let Translation { mut guest, volumes, own_volumes, block_devices, hooks, root, network_namespace } =
            translation;
        self.check_network(network_namespace.as_deref())?;
        if let Some(root) = root
            && lay_out(&places, root_mounts(&request.rootfs), root).await? == Access::ReadOnly
        {
            // The guest would collect writes and learn too late that there is no place for them.
            if let Some(root) = guest.get_mut("root").and_then(Value::as_object_mut) {
                root.insert("readonly".into(), Value::Bool(true));
            }
        }
        let mut wanted =
            CreateContainerRequest { container_id: request.id.clone(), ..CreateContainerRequest::default() };
        self.mount_volumes(volumes, own_volumes, &mut guest, &mut wanted).await?;
        self.pod().timeline().mark(|timeline| &mut timeline.rootfs_mounted_ns);

        if spec.is_of_cri() && !spec.makes_pod() {
            let resources = spec.value().pointer("/linux/resources").and_then(Value::as_object);
            let given = HostCpus::default().after(resources).map_err(TaskError::invalid_argument)?;
            self.give_host_cpus(&request.id, given).await?;
        }
        let ends = HostEnds::open(&request.stdio, &request.id, self.namespace()).await?;
        let pid = self.pod().host_pid();
        let agent = self.agent().await?;
        self.attach_devices(&request.id, &block_devices, &mut guest, &agent).await?;
        hooks::run(&hooks.create, &hooks::state(&request.id, &request.bundle, "creating", pid))
            .await
            .map_err(TaskError::failed)?;
        let made = match self.holder(&request.id) {
            Some(guest_pid) => {
                Made { guest_pid: self.checked(guest_pid).await?, io: ends.unused(), runs: true }
            }
            None => self.make_with(request, &guest, wanted, ends, &agent).await?,
        };
        self.register(request, spec, &guest, made, places, hooks, reservation);
        self.pod().timeline().mark(|timeline| &mut timeline.container_created_ns);
        Ok(pid)
    }

    /// The process with which the guest has begun, where the container `id` is to be that.
    fn holder(&self, id: &str) -> Option<u32> {
        if id == self.pod().id() { self.pod().take_holder() } else { None }
    }

    async fn make_with(
        &self,
        request: &CreateRequest,
        guest: &Value,
        mut wanted: CreateContainerRequest,
        ends: HostEnds,
        agent: &Agent,
    ) -> Result<Made, TaskError> {
        let connected = ends.connect(agent, request.stdio.terminal).await;
        let (io, mut streams) = self.connected(connected).await?;
        (streams.terminal_columns, streams.terminal_rows) = console_size(guest);
        wanted.oci_spec = guest.to_string().into_bytes();
        wanted.streams = Some(streams).into();
        match self.make(&wanted, agent).await {
            Ok(guest_pid) => Ok(Made { guest_pid, io, runs: false }),
            Err(error) => {
                io.close();
                Err(error)
            }
        }
    }

    /// A pod has one network namespace, which the guest has been given when it booted.
    fn check_network(&self, path: Option<&Path>) -> Result<(), TaskError> {
        match path {
            Some(path) if self.pod().network_namespace() != Some(path) => {
                Err(TaskError::invalid_argument(format!(
                    "linux.namespaces: the network namespace {} is not the pod's: a virtual machine has one network",
                    path.display()
                )))
            }
            _ => Ok(()),
        }
    }

    async fn make(&self, wanted: &CreateContainerRequest, agent: &Agent) -> Result<u32, TaskError> {
        let answer = agent.ask(agent.calls().create_container(no_timeout(), wanted)).await;
        let made = self.answer(answer).await.map_err(|error| error.context("creating the container"))?;
        tell_unknown_fields(&wanted.container_id, &made.unknown_fields);
        self.checked(made.pid).await
    }

    #[allow(clippy::too_many_arguments)]
    fn register(
        &self,
        request: &CreateRequest,
        spec: &Document,
        guest: &Value,
        made: Made,
        places: ContainerPlaces,
        hooks: crate::spec::hooks::HostHooks,
        reservation: &mut Reservation,
    ) {
        if spec.makes_pod() {
            self.pod().set_sandbox(made.guest_pid);
        }
        let process = Process::new(&request.id, "", request.stdio.clone());
        process.made(made.guest_pid, made.io);
        let traits = Traits { runs_already: made.runs, ..Traits::new(spec, guest) };
        let container = Container::new(request.bundle.clone(), process, places, hooks, traits);
        self.publisher().send(Event::create(
            &request.id,
            &request.bundle.to_string_lossy(),
            request.rootfs.clone(),
            &request.stdio,
            &request.checkpoint,
            self.pod().host_pid(),
        ));
        exit::watch_init(self, &container);
        exit::watch_out_of_memory(self, &container);
        reservation.fill(container);
        self.adjust_oom_score();
    }
}

/// Names in containerd's log what of a spec the agent does not know: nobody is to wonder why it has no effect.
pub(super) fn tell_unknown_fields(process: &str, fields: &[String]) {
    if !fields.is_empty() {
        tracing::warn!(process, ?fields, "the spec has fields that are not known and have no effect");
    }
}

/// Columns and rows that the spec's `process.consoleSize` gives; zeros where it does not.
fn console_size(guest: &Value) -> (u32, u32) {
    let number = |pointer| {
        let number = guest.pointer(pointer).and_then(Value::as_u64);
        number.and_then(|number| u32::try_from(number).ok()).unwrap_or(0)
    };
    (number("/process/consoleSize/width"), number("/process/consoleSize/height"))
}

fn root_mounts(rootfs: &[Mount]) -> Vec<mount::Request> {
    rootfs
        .iter()
        .map(|mount| mount::Request {
            kind: mount.type_.clone(),
            source: mount.source.clone(),
            target: mount.target.clone(),
            options: mount.options.clone(),
        })
        .collect()
}

/// What a mounted root file system allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    ReadOnly,
    ReadWrite,
}

/// Mounts a container's root file system, and tells what it allows. The guest boots meanwhile.
async fn lay_out(
    places: &ContainerPlaces,
    root_mounts: Vec<mount::Request>,
    root: PathBuf,
) -> Result<Access, TaskError> {
    let places = places.clone();
    blocking(move || {
        let target = places.create().map_err(|error| format!("the container's directory: {error}"))?;
        if root_mounts.is_empty() {
            mount_root_directory(&root, &target)?;
        } else {
            mount::mount_all(&root_mounts, &target)
                .map_err(|error| format!("the root file system: {error}"))?;
        }
        let flags = MountPropagationFlags::DOWNSTREAM;
        mount::change_propagation(&target, flags, true).map_err(|error| error.to_string())?;
        let flags =
            rustix::fs::statvfs(&target).map_err(|error| format!("the root file system: {error}"))?.f_flag;
        Ok(if flags.contains(StatVfsMountFlags::RDONLY) { Access::ReadOnly } else { Access::ReadWrite })
    })
    .await
}

fn mount_root_directory(root: &Path, target: &Path) -> Result<(), String> {
    let whole = Binding { recursive: true, ..Binding::default() };
    mount::bind(root, target, &whole).map_err(|error| format!("root.path {}: {error}", root.display()))
}

impl Tasks {
    /// Mounts what a container needs of the host, and tells its spec where that is in the guest, and the agent what to prepare.
    async fn mount_volumes(
        &self,
        volumes: Vec<Volume>,
        own: Option<OwnVolumes>,
        guest: &mut Value,
        wanted: &mut CreateContainerRequest,
    ) -> Result<(), TaskError> {
        let (mounted, container) = (self.pod().volumes().clone(), wanted.container_id.clone());
        let placed = blocking(move || {
            let acquire = |volume: Volume| match mounted.acquire(&container, &volume, own.as_ref()) {
                Ok(place) => Ok((volume, place)),
                Err(error) => Err(format!("mounting {}: {error}", volume.source.display())),
            };
            volumes.into_iter().map(acquire).collect::<Result<Vec<_>, _>>()
        });
        for (volume, place) in placed.await? {
            match place {
                Place::Share { name, submounts } => {
                    let place = Path::new(LIVE_SHARE).join(name);
                    let full = Path::new(SHARE_PATH).join(&place);
                    mounts::place(guest, &volume, &full.to_string_lossy(), &[]);
                    let submounts = submounts.into_iter().map(|below| place.join(below));
                    wanted.submounts.extend(submounts.map(|path| path.into_os_string().into_vec()));
                }
                Place::Memory(memory) => {
                    mounts::place(guest, &volume, &memory.path, &memory.options);
                    wanted.memory_volumes.push(memory.volume);
                }
            }
        }
        Ok(())
    }

    /// Takes a container's mounts and directories away. Gives the paths of the share that are no more.
    pub(super) async fn remove_files(&self, container: &str, places: &ContainerPlaces) -> Vec<String> {
        let (volumes, places, id) = (self.pod().volumes().clone(), places.clone(), container.to_owned());
        let removed = blocking(move || {
            // A volume may hold the root file system's place once more.
            let released = volumes.release(&id);
            if let Err(error) = places.remove() {
                tracing::error!(container = id, %error, "files of a container stay behind");
            }
            Ok(released)
        });
        let names = removed.await.unwrap_or_default();
        let volumes = names.into_iter().map(|name| format!("{LIVE_SHARE}/{name}"));
        volumes.chain([format!("{PRIVATE_SHARE}/{container}")]).collect()
    }
}

/// Runs what may wait for a file system on a thread of its own.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, TaskError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(TaskError::failed),
        Err(error) => Err(TaskError::failed(error)),
    }
}

/// Runs what may wait for ever on a thread of its own, which costs nobody else a turn and holds up no end of the process.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, TaskError> {
    let (sender, done) = oneshot::channel();
    // Who has given up waiting is told nothing.
    let run = move || drop(sender.send(work()));
    std::thread::Builder::new().spawn(run).map_err(TaskError::failed)?;
    done.await.map_err(TaskError::failed)
}
