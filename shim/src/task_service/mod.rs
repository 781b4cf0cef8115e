//! containerd's Task service, versions 2 and 3, whose messages are the same.

mod options;
pub(crate) mod stats;

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest, PauseRequest,
    PidsRequest, PidsResponse, ProcessInfo, ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest,
    StartResponse, StateRequest, StateResponse, StatsRequest, StatsResponse, Status, UpdateTaskRequest,
    WaitRequest, WaitResponse,
};
use containerd_shim_protos::shim::oci::ProcessDetails;
use containerd_shim_protos::shim_async::{Task, create_task};
use ttrpc::r#async::{Service, TtrpcContext};

use crate::cgroup;
use crate::clock;
use crate::container::{CreateRequest, Freezer, Phase, Process, TaskError, Tasks, complete};
use crate::daemon::Ending;
use crate::events::{Exit, any};
use crate::io::Stdio;
use saya_agent_api::agent::GuestProcess;

pub(crate) use options::{OptionsError, RuntimeOptions};

/// The name that the service has in containerd 2.
const VERSION_3: &str = "containerd.task.v3.Task";
/// The name that the service has in containerd 1.x.
const VERSION_2: &str = "containerd.task.v2.Task";

/// Answers containerd's calls.
#[derive(Clone)]
pub(crate) struct TaskService {
    tasks: Tasks,
    ending: Arc<Ending>,
}

impl TaskService {
    /// A service for the containers of `tasks`; `ending` begins when containerd wants the shim to end.
    pub(crate) fn new(tasks: Tasks, ending: Arc<Ending>) -> Self {
        Self { tasks, ending }
    }

    /// The service under both of its names, for a ttrpc server.
    pub(crate) fn services(self) -> HashMap<String, Service> {
        let mut services = create_task(Arc::new(self.clone()));
        if let Some(same) = create_task(Arc::new(self)).remove(VERSION_3) {
            services.insert(VERSION_2.to_owned(), same);
        }
        services
    }
}

#[async_trait]
impl Task for TaskService {
    async fn create(
        &self,
        _: &TtrpcContext,
        request: CreateTaskRequest,
    ) -> ttrpc::Result<CreateTaskResponse> {
        options::check(request.options.as_ref())?;
        let tasks = self.tasks.clone();
        complete(async move {
            let pid = tasks
                .create(CreateRequest {
                    id: request.id,
                    bundle: request.bundle.into(),
                    rootfs: request.rootfs,
                    stdio: Stdio {
                        stdin: request.stdin,
                        stdout: request.stdout,
                        stderr: request.stderr,
                        terminal: request.terminal,
                    },
                    checkpoint: request.checkpoint,
                })
                .await?;
            Ok(CreateTaskResponse { pid, ..Default::default() })
        })
        .await
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> ttrpc::Result<StartResponse> {
        let tasks = self.tasks.clone();
        complete(async move {
            let pid = tasks.start(&request.id, &request.exec_id).await?;
            Ok(StartResponse { pid, ..Default::default() })
        })
        .await
    }

    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> ttrpc::Result<StateResponse> {
        let container = self.tasks.container(&request.id)?;
        let process = container.process(&request.exec_id)?;
        let exit = exit_of(&process);
        let pid = if process.guest_pid() == 0 { 0 } else { self.tasks.pod().host_pid() };
        Ok(StateResponse {
            id: process.id().to_owned(),
            exec_id: process.exec.clone(),
            bundle: container.bundle.to_string_lossy().into_owned(),
            pid,
            status: status(process.phase(), container.freezer()).into(),
            stdin: process.stdio.stdin.clone(),
            stdout: process.stdio.stdout.clone(),
            stderr: process.stdio.stderr.clone(),
            terminal: process.stdio.terminal,
            exit_status: exit.map_or(0, |exit| exit.status),
            exited_at: exit.map(|exit| clock::timestamp(exit.at)).into(),
            ..Default::default()
        })
    }

    async fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> ttrpc::Result<DeleteResponse> {
        let tasks = self.tasks.clone();
        complete(async move {
            let exit = tasks.delete(&request.id, &request.exec_id).await?;
            Ok(DeleteResponse {
                pid: tasks.pod().host_pid(),
                exit_status: exit.status,
                exited_at: Some(clock::timestamp(exit.at)).into(),
                ..Default::default()
            })
        })
        .await
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> ttrpc::Result<WaitResponse> {
        let process = self.tasks.container(&request.id)?.process(&request.exec_id)?;
        let exit = process.wait().await;
        Ok(WaitResponse {
            exit_status: exit.status,
            exited_at: Some(clock::timestamp(exit.at)).into(),
            ..Default::default()
        })
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
        self.tasks.kill(&request.id, &request.exec_id, request.signal, request.all).await?;
        Ok(Empty::default())
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
        let stdio = Stdio {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        let spec = request.spec.into_option().map(|spec| spec.value).unwrap_or_default();
        self.tasks.exec(&request.id, &request.exec_id, &spec, stdio)?;
        Ok(Empty::default())
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> ttrpc::Result<Empty> {
        self.tasks.resize(&request.id, &request.exec_id, request.width, request.height).await?;
        Ok(Empty::default())
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> ttrpc::Result<Empty> {
        self.tasks.container(&request.id)?.process(&request.exec_id)?.close_stdin();
        Ok(Empty::default())
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> ttrpc::Result<Empty> {
        let tasks = self.tasks.clone();
        complete(async move { tasks.pause(&request.id).await }).await?;
        Ok(Empty::default())
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> ttrpc::Result<Empty> {
        let tasks = self.tasks.clone();
        complete(async move { tasks.resume(&request.id).await }).await?;
        Ok(Empty::default())
    }

    async fn checkpoint(&self, _: &TtrpcContext, request: CheckpointTaskRequest) -> ttrpc::Result<Empty> {
        self.tasks.container(&request.id)?;
        Err(TaskError::unimplemented(
            "checkpoint is not supported: a container's memory is inside a virtual machine",
        )
        .into())
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        let resources = request.resources.into_option().map(|resources| resources.value).unwrap_or_default();
        self.tasks.update(&request.id, &resources).await?;
        Ok(Empty::default())
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> ttrpc::Result<PidsResponse> {
        let processes = self.tasks.processes(&request.id).await?;
        let processes: Result<_, TaskError> = processes.iter().map(process_info).collect();
        Ok(PidsResponse { processes: processes?, ..Default::default() })
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> ttrpc::Result<StatsResponse> {
        let files = self.tasks.statistics(&request.id).await?.files;
        let metrics = stats::message(&files, cgroup::is_unified()).map_err(TaskError::failed)?;
        Ok(StatsResponse { stats: Some(metrics).into(), ..Default::default() })
    }

    async fn connect(&self, _: &TtrpcContext, request: ConnectRequest) -> ttrpc::Result<ConnectResponse> {
        // containerd asks this when it starts, of each shim that it finds. containerd 1.6 does not take a shim away that answers,
        // also where it was killed before it had asked it for the container, or before that could not be created.
        self.tasks.settle(&request.id).await;
        let pod = self.tasks.pod();
        let is_sandbox = pod.files().is_some() && pod.id() == request.id;
        let task_pid = match self.tasks.container(&request.id) {
            Ok(_) => pod.host_pid(),
            Err(_) if is_sandbox => 0,
            Err(error) => return Err(error.into()),
        };
        Ok(ConnectResponse { shim_pid: std::process::id(), task_pid, ..Default::default() })
    }

    async fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> ttrpc::Result<Empty> {
        // A sandbox has an end of its own.
        if self.tasks.is_empty() && self.tasks.pod().files().is_none() {
            // Before containerd has its answer: with that it closes the connection, and calls `delete`.
            self.ending.begin();
        }
        Ok(Empty::default())
    }
}

fn exit_of(process: &Process) -> Option<Exit> {
    match process.phase() {
        Phase::Stopped(exit) => Some(exit),
        Phase::Created | Phase::Running => None,
    }
}

fn status(phase: Phase, freezer: Freezer) -> Status {
    match (phase, freezer) {
        (Phase::Stopped(_), _) => Status::STOPPED,
        (_, Freezer::Freezing) => Status::PAUSING,
        (_, Freezer::Frozen) => Status::PAUSED,
        (Phase::Created, Freezer::Thawed) => Status::CREATED,
        (Phase::Running, Freezer::Thawed) => Status::RUNNING,
    }
}

fn process_info(process: &GuestProcess) -> Result<ProcessInfo, TaskError> {
    let mut info = ProcessInfo { pid: process.pid, ..Default::default() };
    if !process.exec_id.is_empty() {
        let details = ProcessDetails { exec_id: process.exec_id.clone(), ..Default::default() };
        info.info = Some(any(&details).map_err(TaskError::failed)?).into();
    }
    Ok(info)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_has_ended_is_stopped_even_in_a_frozen_container() {
        let ended = Phase::Stopped(Exit { status: 0, at: 0 });
        assert_eq!(status(ended, Freezer::Frozen), Status::STOPPED);
        assert_eq!(status(Phase::Running, Freezer::Frozen), Status::PAUSED);
        assert_eq!(status(Phase::Running, Freezer::Thawed), Status::RUNNING);
        assert_eq!(status(Phase::Created, Freezer::Thawed), Status::CREATED);
    }

    #[test]
    fn a_processs_details_are_those_that_containerd_knows() {
        let process = GuestProcess { pid: 5, exec_id: "e1".into(), ..Default::default() };
        let info = process_info(&process).unwrap();
        assert_eq!(info.info.type_url, "containerd.runc.v1.ProcessDetails");
    }
}
