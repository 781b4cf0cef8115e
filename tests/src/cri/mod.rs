//! A client of the Kubernetes Container Runtime Interface (CRI), version 1: what a kubelet does, one call at a time.

pub(crate) mod grpc;
pub mod messages;
pub mod streaming;

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use prost::Message;

use self::grpc::Connection;
pub use self::grpc::Status;
use self::messages::{
    AttachRequest, ContainerConfig, ContainerRequest, ContainerStats, ContainerStatsFilter,
    ContainerStatsResponse, ContainerStatus, ContainerStatusResponse, CreateContainerRequest, Empty,
    ExecRequest, ExecSyncRequest, ExecSyncResponse, Id, ImageSpec, ImageStatusRequest, ImageStatusResponse,
    LinuxContainerResources, ListContainerStatsRequest, ListContainerStatsResponse, PodSandboxConfig,
    PodSandboxStats, PodSandboxStatsResponse, PodSandboxStatus, PodSandboxStatusResponse, PortForwardRequest,
    RunPodSandboxRequest, StatusRequest, StatusResponse, StopContainerRequest,
    UpdateContainerResourcesRequest, Url,
};
use self::streaming::Channels;

/// containerd's socket, unless the environment names another.
const SOCKET: &str = "/run/containerd/containerd.sock";

/// What calls are answered before the CRI plugin has found what it knew when containerd ended: containerd says that it is ready before
/// that (`errors.New` in pkg/cri/server/instrumented_service.go), and nothing says when it is over.
const NOT_YET: &str = "server is not initialized yet";
/// How long that may take, and how often it is asked about.
const PATIENCE: Duration = Duration::from_secs(60);
const ROUND: Duration = Duration::from_millis(50);

fn is_not_yet(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Status>().is_some_and(|status| status.message.contains(NOT_YET))
}

/// A connection to a container runtime's CRI.
pub struct Cri {
    connection: Connection,
}

impl Cri {
    /// Connects to containerd.
    ///
    /// # Errors
    /// It does not listen.
    pub fn connect() -> anyhow::Result<Self> {
        let socket = std::env::var("CONTAINERD_ADDRESS").unwrap_or_else(|_| SOCKET.to_owned());
        Self::connect_to(Path::new(&socket))
    }

    /// Connects to the containerd at this socket, and waits until its CRI plugin answers.
    ///
    /// # Errors
    /// It does not listen, or does not answer in time.
    pub fn connect_to(socket: &Path) -> anyhow::Result<Self> {
        let connection =
            Connection::open(socket, None).with_context(|| format!("connecting to {}", socket.display()))?;
        let cri = Self { connection };
        let begin = Instant::now();
        while let Err(error) = cri.call::<StatusResponse>("Status", &StatusRequest::default()) {
            ensure!(is_not_yet(&error) && begin.elapsed() < PATIENCE, error);
            thread::sleep(ROUND);
        }
        Ok(cri)
    }

    fn call<Answer: Message + Default>(
        &self,
        method: &str,
        request: &impl Message,
    ) -> anyhow::Result<Answer> {
        self.connection.call(&format!("/runtime.v1.RuntimeService/{method}"), request)
    }

    /// The network that pods get, as JSON.
    ///
    /// # Errors
    /// A [`Status`] of the runtime's.
    pub fn network(&self) -> anyhow::Result<String> {
        let mut answer: StatusResponse = self.call("Status", &StatusRequest { verbose: true })?;
        answer.info.remove("cniconfig").context("an answer without networks")
    }

    /// Whether there is an image of this name.
    ///
    /// # Errors
    /// A [`Status`] of the runtime's.
    pub fn has_image(&self, name: &str) -> anyhow::Result<bool> {
        let request = ImageStatusRequest { image: Some(ImageSpec { image: name.to_owned() }) };
        let answer: ImageStatusResponse =
            self.connection.call("/runtime.v1.ImageService/ImageStatus", &request)?;
        Ok(answer.image.is_some())
    }

    /// Makes a pod and answers its id.
    ///
    /// # Errors
    /// A [`Status`] of the runtime's.
    pub fn run_pod(&self, config: &PodSandboxConfig, runtime_handler: &str) -> anyhow::Result<String> {
        let request = RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: runtime_handler.to_owned(),
        };
        Ok(self.call::<Id>("RunPodSandbox", &request)?.id)
    }

    /// Ends a pod's containers and takes its network away.
    ///
    /// # Errors
    /// A [`Status`] of the runtime's.
    pub fn stop_pod(&self, id: &str) -> anyhow::Result<()> {
        self.call::<Empty>("StopPodSandbox", &Id::new(id)).map(drop)
    }

    /// Removes a pod with its containers.
    ///
    /// # Errors
    /// A [`Status`] of the runtime's.
    pub fn remove_pod(&self, id: &str) -> anyhow::Result<()> {
        self.call::<Empty>("RemovePodSandbox", &Id::new(id)).map(drop)
    }

    /// What a pod is doing.
    ///
    /// # Errors
    /// A [`Status`] of the runtime's.
    pub fn pod_status(&self, id: &str) -> anyhow::Result<PodSandboxStatus> {
        let answer: PodSandboxStatusResponse = self.call("PodSandboxStatus", &Id::new(id))?;
        answer.status.context("an answer without status")
    }

    /// What a pod uses.
    ///
    /// # Errors
    /// A [`Status`] of the runtime's.
    pub fn pod_stats(&self, id: &str) -> anyhow::Result<PodSandboxStats> {
        let answer: PodSandboxStatsResponse = self.call("PodSandboxStats", &Id::new(id))?;
        answer.stats.context("an answer without figures")
    }

    /// Makes a container in a pod and answers its id.
    ///
    /// # Errors
    /// A [`Status`] of the runtime's.
    pub fn create(
        &self,
        pod: &str,
        pod_config: &PodSandboxConfig,
        config: &ContainerConfig,
    ) -> anyhow::Result<String> {
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config.clone()),
            sandbox_config: Some(pod_config.clone()),
        };
        Ok(self.call::<Id>("CreateContainer", &request)?.id)
    }

    /// Starts a container.
    ///
    /// # Errors
    /// A [`Status`] of the runtime's.
    pub fn start(&self, container: &str) -> anyhow::Result<()> {
        self.call::<Empty>("StartContainer", &ContainerRequest::new(container)).map(drop)
    }

    /// Has a container end by SIGTERM, and after `grace` by SIGKILL.
    ///
    /// # Errors
    /// A [`Status`] of the runtime's.
    pub fn stop(&self, container: &str, grace: Duration) -> anyhow::Result<()> {
        let timeout = i64::try_from(grace.as_secs())?;
        let request = StopContainerRequest { container_id: container.to_owned(), timeout };
        self.call::<Empty>("StopContainer", &request).map(drop)
    }

    /// Removes a container.
    ///
    /// # Errors
    /// A [`Status`] of the runtime's.
    pub fn remove(&self, container: &str) -> anyhow::Result<()> {
        self.call::<Empty>("RemoveContainer", &ContainerRequest::new(container)).map(drop)
    }

    /// What a container is doing.
    ///
    /// # Errors
    /// A [`Status`] of the runtime's.
    pub fn status(&self, container: &str) -> anyhow::Result<ContainerStatus> {
        let answer: ContainerStatusResponse =
            self.call("ContainerStatus", &ContainerRequest::new(container))?;
        answer.status.context("an answer without status")
    }

    /// What the containers of a pod use.
    ///
    /// # Errors
    /// A [`Status`] of the runtime's.
    pub fn list_stats(&self, pod: &str) -> anyhow::Result<Vec<ContainerStats>> {
        let filter = Some(ContainerStatsFilter { pod_sandbox_id: pod.to_owned() });
        let request = ListContainerStatsRequest { filter };
        Ok(self.call::<ListContainerStatsResponse>("ListContainerStats", &request)?.stats)
    }

    /// What a container uses.
    ///
    /// # Errors
    /// A [`Status`] of the runtime's.
    pub fn stats(&self, container: &str) -> anyhow::Result<ContainerStats> {
        let answer: ContainerStatsResponse =
            self.call("ContainerStats", &ContainerRequest::new(container))?;
        answer.stats.context("an answer without figures")
    }

    /// Changes a container's limits.
    ///
    /// # Errors
    /// A [`Status`] of the runtime's.
    pub fn update(&self, container: &str, linux: LinuxContainerResources) -> anyhow::Result<()> {
        let request =
            UpdateContainerResourcesRequest { container_id: container.to_owned(), linux: Some(linux) };
        self.call::<Empty>("UpdateContainerResources", &request).map(drop)
    }

    /// Opens a container's log anew, as after a rotation.
    ///
    /// # Errors
    /// A [`Status`] of the runtime's.
    pub fn reopen_log(&self, container: &str) -> anyhow::Result<()> {
        self.call::<Empty>("ReopenContainerLog", &ContainerRequest::new(container)).map(drop)
    }

    /// Runs a command in a container to its end, or for `limit`.
    ///
    /// # Errors
    /// A [`Status`] of the runtime's; DeadlineExceeded after `limit`.
    pub fn exec(
        &self,
        container: &str,
        command: &[&str],
        limit: Duration,
    ) -> anyhow::Result<ExecSyncResponse> {
        let request = ExecSyncRequest {
            container_id: container.to_owned(),
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            timeout: i64::try_from(limit.as_secs())?,
        };
        self.call("ExecSync", &request)
    }

    /// Runs a command in a container and connects to its streams, with or without a terminal.
    ///
    /// # Errors
    /// A [`Status`] of the runtime's, or no stream.
    pub fn exec_streaming(&self, container: &str, command: &[&str], tty: bool) -> anyhow::Result<Channels> {
        let request = ExecRequest {
            container_id: container.to_owned(),
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            tty,
            stdin: true,
            stdout: true,
            // On a terminal both are one.
            stderr: !tty,
        };
        Channels::open(&self.call::<Url>("Exec", &request)?.url)
    }

    /// Connects to the streams of a container's first process.
    ///
    /// # Errors
    /// A [`Status`] of the runtime's, or no stream.
    pub fn attach(&self, container: &str, tty: bool) -> anyhow::Result<Channels> {
        let request = AttachRequest {
            container_id: container.to_owned(),
            stdin: true,
            tty,
            stdout: true,
            stderr: !tty,
        };
        Channels::open(&self.call::<Url>("Attach", &request)?.url)
    }

    /// Connects to a port of a pod's loopback.
    ///
    /// # Errors
    /// A [`Status`] of the runtime's, or no stream.
    pub fn port_forward(&self, pod: &str, port: u16) -> anyhow::Result<Channels> {
        let request = PortForwardRequest { pod_sandbox_id: pod.to_owned(), ports: vec![i32::from(port)] };
        Channels::open(&self.call::<Url>("PortForward", &request)?.url)
    }
}
