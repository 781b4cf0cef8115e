//! containerd's Sandbox service (`containerd.runtime.sandbox.v1`): pods without a container that makes them, as
//! `sandboxer = "shim"` has them. The pod's containers are tasks of the same shim.

mod documents;
mod pod_config;

use std::collections::HashMap;
use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use containerd_shim_protos::sandbox_api::{
    CreateSandboxRequest, CreateSandboxResponse, PingRequest, PingResponse, PlatformRequest,
    PlatformResponse, SandboxMetricsRequest, SandboxMetricsResponse, SandboxStatusRequest,
    SandboxStatusResponse, ShutdownSandboxRequest, ShutdownSandboxResponse, StartSandboxRequest,
    StartSandboxResponse, StopSandboxRequest, StopSandboxResponse, WaitSandboxRequest, WaitSandboxResponse,
};
use containerd_shim_protos::sandbox_async::{Sandbox, create_sandbox};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;
use ttrpc::r#async::{Service, TtrpcContext};

use crate::cgroup;
use crate::clock;
use crate::container::{TaskError, Tasks, complete};
use crate::daemon::Ending;
use crate::events::Exit;
use crate::pod::agent::{self, Agent, no_timeout};
use crate::pod::files::PodFiles;
use crate::spec::{Document, annotations, pause};
use crate::task_service::stats;
use pod_config::PodSandboxConfig;

/// CRI's words for whether containers can be made in a pod (`PodSandboxState`).
const READY: &str = "SANDBOX_READY";
const NOT_READY: &str = "SANDBOX_NOTREADY";

/// The status of a sandbox that was not told to stop: as if SIGKILL had ended it.
const KILLED: u32 = 137;

/// SIGTERM, by its number on every machine.
const TERMINATE: u32 = 15;

/// Answers containerd's calls.
#[derive(Clone)]
pub(crate) struct SandboxService {
    inner: Arc<Inner>,
}

struct Inner {
    tasks: Tasks,
    ending: Arc<Ending>,
    /// Whether the pod was started. Held while it is created and while it is started.
    started: Mutex<bool>,
    /// When it was started, in nanoseconds since 1970; 0 before.
    started_at: AtomicU64,
    /// Whether its end is wanted.
    stopping: AtomicBool,
    end: watch::Sender<Option<Exit>>,
}

impl SandboxService {
    /// A service for the pod of `tasks`; `ending` begins when containerd wants the shim to end.
    pub(crate) fn new(tasks: Tasks, ending: Arc<Ending>) -> Self {
        let inner = Inner {
            tasks,
            ending,
            started: Mutex::default(),
            started_at: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            end: watch::Sender::new(None),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The service under its name, for a ttrpc server.
    pub(crate) fn services(self) -> HashMap<String, Service> {
        create_sandbox(Arc::new(self))
    }

    /// What a request asks for, without a virtual machine being made.
    ///
    /// # Errors
    /// What create_sandbox would answer.
    #[cfg(test)]
    pub(crate) fn planned(&self, request: CreateSandboxRequest) -> Result<(Document, PodFiles), TaskError> {
        self.inner.plan(request)
    }

    /// Has a sandbox created whose virtual machine is there already.
    #[cfg(test)]
    pub(crate) async fn created(&self, request: CreateSandboxRequest) {
        self.inner.plan(request).unwrap_or_else(|error| panic!("{error}"));
        tokio::spawn(self.inner.clone().follow());
    }

    /// The pod under this id, which is the only one.
    fn check_id(&self, id: &str) -> Result<(), TaskError> {
        if id == self.inner.tasks.pod().id() {
            return Ok(());
        }
        Err(TaskError::not_found(format!("sandbox {id:?} is not that of this shim")))
    }

    /// The pod under this id, which was created.
    fn check_created(&self, id: &str) -> Result<(), TaskError> {
        self.check_id(id)?;
        let pod = self.inner.tasks.pod();
        let missing = |why: &dyn Display| Err(TaskError::not_found(format!("sandbox {id:?}: {why}")));
        match (pod.files(), pod.vm()) {
            (Some(_), Ok(_)) => Ok(()),
            (_, Err(error)) => missing(error),
            (None, Ok(_)) => missing(&"a container makes this pod"),
        }
    }
}

impl Inner {
    async fn create(&self, request: CreateSandboxRequest) -> Result<(), TaskError> {
        let pod = self.tasks.pod();
        pod.timeline().mark(|timeline| &mut timeline.create_received_ns);
        if !request.rootfs.is_empty() {
            return Err(TaskError::unimplemented(
                "a sandbox with a root file system is not supported: its virtual machine has its own",
            ));
        }
        let _turn = self.started.lock().await;
        if pod.is_booted() {
            return Err(TaskError::already_exists(format!("sandbox {} exists already", pod.id())));
        }
        let (spec, files) = self.plan(request)?;
        pod.boot(Ok(spec), Some(files));
        pod.vm().map_err(TaskError::invalid_argument)?;
        Ok(())
    }

    /// What a request asks for, with the pod's files already written.
    fn plan(&self, request: CreateSandboxRequest) -> Result<(Document, PodFiles), TaskError> {
        let id = self.tasks.pod().id();
        let mut config =
            PodSandboxConfig::read(request.options.as_ref()).map_err(TaskError::invalid_argument)?;
        config.annotations.extend(request.annotations);
        let spec = documents::of_pod(&config, self.tasks.namespace(), id, &request.netns_path)?;
        annotations::check(spec.value()).map_err(TaskError::invalid_argument)?;
        if pause::holder(&spec, id).map_err(TaskError::invalid_argument)?.is_none() {
            return Err(TaskError::unimplemented(
                "a pod with a user namespace is not supported: its virtual machine confines it (hostUsers: true)",
            ));
        }
        let files = PodFiles::write(Path::new(&request.bundle_path), &config.names())
            .map_err(|error| TaskError::failed(format!("the pod's files: {error}")))?;
        Ok((spec, files))
    }

    /// Waits for the guest, which begins with the process whose namespaces are the pod's. Answers the pid.
    async fn start(self: Arc<Self>) -> Result<u32, TaskError> {
        let pod = self.tasks.pod();
        let mut started = self.started.lock().await;
        if *started {
            return Err(TaskError::failed_precondition(format!("sandbox {} is started already", pod.id())));
        }
        let agent = self.tasks.agent().await?;
        let guest_pid = pod.take_holder().unwrap_or_default();
        pod.set_sandbox(self.tasks.checked(guest_pid).await?);
        *started = true;
        self.started_at.store(clock::wall_ns(), Ordering::Relaxed);
        tokio::spawn(stop_with_process(self.clone(), agent));
        Ok(pod.host_pid())
    }

    /// Tells the containers to end, and ends the pod when they have, or have had `patience` for it.
    async fn stop(&self, patience: Duration) {
        self.stopping.store(true, Ordering::Relaxed);
        let mut ends = JoinSet::new();
        for id in self.tasks.ids().into_iter().filter(|_| !patience.is_zero()) {
            let tasks = self.tasks.clone();
            ends.spawn(async move {
                // One that has ended, or is lost, is not waited for.
                tasks.kill(&id, "", TERMINATE, false).await?;
                Ok::<_, TaskError>(tasks.container(&id)?.init.wait().await)
            });
        }
        let in_time = tokio::time::timeout(patience, ends.join_all()).await.is_ok();
        tracing::debug!(in_time, "the sandbox is stopped");
        self.tasks.pod().halt().await;
    }

    /// Notes the end of the pod, once.
    async fn follow(self: Arc<Self>) {
        self.tasks.pod().stopped().await;
        let status = if self.stopping.load(Ordering::Relaxed) { 0 } else { KILLED };
        self.end.send_replace(Some(Exit { status, at: clock::wall_ns() }));
    }

    fn is_ready(&self) -> bool {
        self.started_at.load(Ordering::Relaxed) != 0 && self.end.borrow().is_none()
    }

    /// What the pod's containers use together.
    async fn metrics(&self) -> Result<protobuf::well_known_types::any::Any, TaskError> {
        let mut files = Vec::new();
        for id in self.tasks.ids() {
            match self.tasks.statistics(&id).await {
                Ok(of_container) => files.push(of_container.files),
                // One that ends meanwhile is no longer counted.
                Err(error) => tracing::debug!(container = id, %error, "a container without figures"),
            }
        }
        stats::message(&stats::sum(&files), cgroup::is_unified()).map_err(TaskError::failed)
    }
}

/// Without the process that holds its namespaces a pod cannot go on.
async fn stop_with_process(inner: Arc<Inner>, agent: Agent) {
    let name = agent::process(inner.tasks.pod().id(), "");
    // A connection that ends does so with the virtual machine.
    if let Ok(ended) = agent.calls().wait_process(no_timeout(), &name).await {
        inner.tasks.pod().stop(&format!("the pod's own process ended with status {}", ended.exit_status));
    }
}

#[async_trait]
impl Sandbox for SandboxService {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: CreateSandboxRequest,
    ) -> ttrpc::Result<CreateSandboxResponse> {
        self.check_id(&request.sandbox_id)?;
        let inner = self.inner.clone();
        complete(async move {
            inner.create(request).await?;
            tokio::spawn(inner.clone().follow());
            Ok(CreateSandboxResponse::default())
        })
        .await
    }

    async fn start_sandbox(
        &self,
        _: &TtrpcContext,
        request: StartSandboxRequest,
    ) -> ttrpc::Result<StartSandboxResponse> {
        self.check_created(&request.sandbox_id)?;
        let inner = self.inner.clone();
        complete(async move {
            let pid = inner.clone().start().await?;
            let created_at = Some(clock::timestamp(inner.started_at.load(Ordering::Relaxed))).into();
            Ok(StartSandboxResponse { pid, created_at, ..Default::default() })
        })
        .await
    }

    async fn platform(&self, _: &TtrpcContext, request: PlatformRequest) -> ttrpc::Result<PlatformResponse> {
        self.check_id(&request.sandbox_id)?;
        let mut response = PlatformResponse::default();
        let platform = response.platform.mut_or_insert_default();
        platform.os = "linux".into();
        platform.architecture = "amd64".into();
        Ok(response)
    }

    async fn stop_sandbox(
        &self,
        _: &TtrpcContext,
        request: StopSandboxRequest,
    ) -> ttrpc::Result<StopSandboxResponse> {
        self.check_created(&request.sandbox_id)?;
        let inner = self.inner.clone();
        complete(async move {
            inner.stop(Duration::from_secs(request.timeout_secs.into())).await;
            Ok(StopSandboxResponse::default())
        })
        .await
    }

    async fn wait_sandbox(
        &self,
        _: &TtrpcContext,
        request: WaitSandboxRequest,
    ) -> ttrpc::Result<WaitSandboxResponse> {
        self.check_created(&request.sandbox_id)?;
        let mut end = self.inner.end.subscribe();
        let ended = end.wait_for(Option::is_some).await;
        let exit = ended.ok().and_then(|exit| *exit).ok_or_else(|| TaskError::failed("the shim ends"))?;
        Ok(WaitSandboxResponse {
            exit_status: exit.status,
            exited_at: Some(clock::timestamp(exit.at)).into(),
            ..Default::default()
        })
    }

    async fn sandbox_status(
        &self,
        _: &TtrpcContext,
        request: SandboxStatusRequest,
    ) -> ttrpc::Result<SandboxStatusResponse> {
        self.check_created(&request.sandbox_id)?;
        let exit = *self.inner.end.borrow();
        let state = if self.inner.is_ready() { READY } else { NOT_READY };
        let pod = self.inner.tasks.pod();
        let mut info = HashMap::new();
        if request.verbose
            && let Ok(timeline) = serde_json::to_string(&pod.timeline().snapshot())
        {
            info.insert("timeline".to_owned(), timeline);
        }
        Ok(SandboxStatusResponse {
            sandbox_id: request.sandbox_id,
            pid: pod.host_pid(),
            state: state.to_owned(),
            info,
            created_at: Some(clock::timestamp(self.inner.started_at.load(Ordering::Relaxed))).into(),
            exited_at: exit.map(|exit| clock::timestamp(exit.at)).into(),
            ..Default::default()
        })
    }

    async fn ping_sandbox(&self, _: &TtrpcContext, request: PingRequest) -> ttrpc::Result<PingResponse> {
        self.check_created(&request.sandbox_id)?;
        if self.inner.is_ready() {
            return Ok(PingResponse::default());
        }
        Err(TaskError::failed_precondition(format!("sandbox {} does not run", request.sandbox_id)).into())
    }

    async fn shutdown_sandbox(
        &self,
        _: &TtrpcContext,
        request: ShutdownSandboxRequest,
    ) -> ttrpc::Result<ShutdownSandboxResponse> {
        self.check_id(&request.sandbox_id)?;
        self.inner.stopping.store(true, Ordering::Relaxed);
        // Before containerd has its answer: with that it closes the connection, and calls `delete`.
        self.inner.ending.begin();
        Ok(ShutdownSandboxResponse::default())
    }

    async fn sandbox_metrics(
        &self,
        _: &TtrpcContext,
        request: SandboxMetricsRequest,
    ) -> ttrpc::Result<SandboxMetricsResponse> {
        self.check_created(&request.sandbox_id)?;
        let data = self.inner.metrics().await?;
        let mut response = SandboxMetricsResponse::default();
        let metrics = response.metrics.mut_or_insert_default();
        metrics.id = request.sandbox_id;
        metrics.timestamp = Some(clock::timestamp(clock::wall_ns())).into();
        metrics.data = Some(data).into();
        Ok(response)
    }
}
