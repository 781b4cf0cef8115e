//! The requests of the host, one method each.

mod configure;
mod memory;
mod share;

use std::sync::Arc;

use async_trait::async_trait;
use rustix::termios::{Winsize, tcsetwinsize};
use saya_agent_api::agent::{
    AttachDeviceRequest, AttachDeviceResponse, ConfigureNetworkRequest, ConfigureSandboxRequest,
    ConfigureSandboxResponse, ContainerRequest, ContainerStatsResponse, CreateContainerRequest,
    CreateProcessRequest, CreateResponse, DetachDeviceRequest, Empty, GuestProcess, ListProcessesResponse,
    ProcessRequest, ReleaseSharePathRequest, ResizeTerminalRequest, SignalProcessRequest,
    UpdateContainerRequest, WaitOutOfMemoryRequest, WaitOutOfMemoryResponse, WaitProcessResponse,
};
use saya_agent_api::service::Agent;
use ttrpc::r#async::TtrpcContext;

use crate::boot::microseconds_since_boot;
use crate::container::plan::{self, ContainerPlan, ProcessPlan};
use crate::container::{Container, check_id};
use crate::devices;
use crate::error::{Action, Error, Result, SpecError};
use crate::power;
use crate::process::Process;
use crate::sandbox::Sandbox;
use crate::stdio::{StreamNumbers, window};
use memory::MemoryVolumes;

/// Answers requests.
#[derive(Debug)]
pub(crate) struct Service {
    sandbox: Arc<Sandbox>,
    memory: MemoryVolumes,
}

impl Service {
    /// Answers for `sandbox`.
    pub(crate) fn new(sandbox: Arc<Sandbox>) -> Self {
        Self { sandbox, memory: MemoryVolumes::default() }
    }

    fn process(&self, container: &str, exec_id: &str) -> Result<Arc<Process>> {
        self.sandbox.container(container)?.process(exec_id)
    }

    async fn configure_sandbox(&self, request: ConfigureSandboxRequest) -> Result<ConfigureSandboxResponse> {
        configure::sandbox(&request)?;
        let Some(holder) = request.holder.into_option() else {
            return Ok(ConfigureSandboxResponse::default());
        };
        let begin = microseconds_since_boot();
        let (container, _) =
            self.build(&holder.container_id, &holder.oci_spec, StreamNumbers::default()).await?;
        container.first().start().await?;
        Ok(ConfigureSandboxResponse {
            holder_pid: number_of(container.first()),
            holder_microseconds: microseconds_since_boot().saturating_sub(begin),
            ..ConfigureSandboxResponse::default()
        })
    }

    async fn create_container(&self, request: CreateContainerRequest) -> Result<CreateResponse> {
        let streams = StreamNumbers::from_request(&request.streams)?;
        share::mount_submounts(&request.submounts);
        self.memory.prepare(&request.memory_volumes)?;
        let (container, unknown_fields) =
            self.build(&request.container_id, &request.oci_spec, streams).await?;
        Ok(created(container.first(), unknown_fields))
    }

    /// Builds a container, and tells what of its spec is not known.
    async fn build(
        &self,
        id: &str,
        spec: &[u8],
        streams: StreamNumbers,
    ) -> Result<(Arc<Container>, Vec<String>)> {
        check_id(id)?;
        let spec = plan::parse(spec)?;
        let plan = ContainerPlan::from_spec(id, &spec.value, streams.terminal)?;
        share::mount_volumes(&plan.mounts);
        let sandbox = Arc::clone(&self.sandbox);
        // A task of its own goes on to its end when the caller goes away.
        let container = unaborted(async move { sandbox.create(&plan, streams).await }).await?;
        Ok((container, spec.unknown_fields))
    }

    async fn create_process(&self, request: CreateProcessRequest) -> Result<CreateResponse> {
        if request.exec_id.is_empty() {
            return Err(Error::InvalidRequest("exec_id is empty".to_owned()));
        }
        let streams = StreamNumbers::from_request(&request.streams)?;
        let spec = plan::parse(&request.oci_process)?;
        let plan = ProcessPlan::from_spec(&spec.value, "process", streams.terminal)?;
        let sandbox = Arc::clone(&self.sandbox);
        let process: Arc<Process> = unaborted(async move {
            let container = sandbox.container(&request.container_id)?;
            container.create_process(&request.exec_id, plan, streams, &sandbox.surroundings).await
        })
        .await?;
        Ok(created(&process, spec.unknown_fields))
    }

    fn signal(&self, request: &SignalProcessRequest) -> Result<()> {
        let signal = signal(request.signal)?;
        let container = self.sandbox.container(&request.container_id)?;
        if request.all {
            container.signal_all(signal)
        } else {
            container.process(&request.exec_id)?.signal(signal)
        }
    }

    fn resize(&self, request: &ResizeTerminalRequest) -> Result<()> {
        let process = self.process(&request.container_id, &request.exec_id)?;
        let streams = process.streams();
        let Some(terminal) = streams.terminal() else {
            return Err(Error::InvalidRequest(format!("{} has no terminal", process.subject())));
        };
        let size = window(request.columns, request.rows);
        let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(terminal.get_ref(), size).action(|| "set the terminal's size".to_owned())
    }

    fn update(&self, request: &UpdateContainerRequest) -> Result<()> {
        let container = self.sandbox.container(&request.container_id)?;
        let resources = plan::parse(&request.oci_resources)?;
        if let Some(field) = resources.unknown_fields.first() {
            return Err(SpecError::not_supported(field, "this limit is not known").into());
        }
        container.cgroup().update(&resources.value)
    }

    async fn delete(&self, request: ProcessRequest) -> Result<()> {
        if !request.exec_id.is_empty() {
            return self.sandbox.container(&request.container_id)?.delete_process(&request.exec_id);
        }
        let sandbox = Arc::clone(&self.sandbox);
        unaborted(async move { sandbox.remove(&request.container_id).await }).await
    }

    fn list(&self, request: &ContainerRequest) -> Result<ListProcessesResponse> {
        let processes = self.sandbox.container(&request.container_id)?.processes()?;
        let one = |(pid, exec_id)| GuestProcess { pid, exec_id, ..GuestProcess::default() };
        Ok(ListProcessesResponse {
            processes: processes.into_iter().map(one).collect(),
            ..ListProcessesResponse::default()
        })
    }
}

#[async_trait]
impl Agent for Service {
    async fn configure_sandbox(
        &self,
        _context: &TtrpcContext,
        request: ConfigureSandboxRequest,
    ) -> ttrpc::Result<ConfigureSandboxResponse> {
        Ok(self.configure_sandbox(request).await?)
    }

    async fn configure_network(
        &self,
        _context: &TtrpcContext,
        request: ConfigureNetworkRequest,
    ) -> ttrpc::Result<Empty> {
        empty(self.sandbox.configure_network(&request))
    }

    async fn attach_device(
        &self,
        _context: &TtrpcContext,
        request: AttachDeviceRequest,
    ) -> ttrpc::Result<AttachDeviceResponse> {
        Ok(devices::attach(&request)?)
    }

    async fn detach_device(
        &self,
        _context: &TtrpcContext,
        request: DetachDeviceRequest,
    ) -> ttrpc::Result<Empty> {
        empty(devices::detach(request.slot))
    }

    async fn create_container(
        &self,
        _context: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> ttrpc::Result<CreateResponse> {
        Ok(self.create_container(request).await?)
    }

    async fn create_process(
        &self,
        _context: &TtrpcContext,
        request: CreateProcessRequest,
    ) -> ttrpc::Result<CreateResponse> {
        Ok(self.create_process(request).await?)
    }

    async fn start_process(&self, _context: &TtrpcContext, request: ProcessRequest) -> ttrpc::Result<Empty> {
        let process = self.process(&request.container_id, &request.exec_id)?;
        empty(unaborted(async move { process.start().await }).await)
    }

    async fn wait_process(
        &self,
        _context: &TtrpcContext,
        request: ProcessRequest,
    ) -> ttrpc::Result<WaitProcessResponse> {
        let exit = self.process(&request.container_id, &request.exec_id)?.wait().await;
        Ok(WaitProcessResponse {
            exit_status: exit.status,
            stdout_bytes: exit.stdout_bytes,
            stderr_bytes: exit.stderr_bytes,
            exited_at_nanoseconds: exit.at_nanoseconds,
            ..WaitProcessResponse::default()
        })
    }

    async fn signal_process(
        &self,
        _context: &TtrpcContext,
        request: SignalProcessRequest,
    ) -> ttrpc::Result<Empty> {
        empty(self.signal(&request))
    }

    async fn resize_terminal(
        &self,
        _context: &TtrpcContext,
        request: ResizeTerminalRequest,
    ) -> ttrpc::Result<Empty> {
        empty(self.resize(&request))
    }

    async fn close_stdin(&self, _context: &TtrpcContext, request: ProcessRequest) -> ttrpc::Result<Empty> {
        let process = self.process(&request.container_id, &request.exec_id)?;
        process.streams().close_input();
        Ok(Empty::new())
    }

    async fn delete_process(&self, _context: &TtrpcContext, request: ProcessRequest) -> ttrpc::Result<Empty> {
        empty(self.delete(request).await)
    }

    async fn list_processes(
        &self,
        _context: &TtrpcContext,
        request: ContainerRequest,
    ) -> ttrpc::Result<ListProcessesResponse> {
        Ok(self.list(&request)?)
    }

    async fn pause_container(
        &self,
        _context: &TtrpcContext,
        request: ContainerRequest,
    ) -> ttrpc::Result<Empty> {
        let container = self.sandbox.container(&request.container_id)?;
        empty(unaborted(async move { container.pause().await }).await)
    }

    async fn resume_container(
        &self,
        _context: &TtrpcContext,
        request: ContainerRequest,
    ) -> ttrpc::Result<Empty> {
        let container = self.sandbox.container(&request.container_id)?;
        empty(unaborted(async move { container.resume().await }).await)
    }

    async fn update_container(
        &self,
        _context: &TtrpcContext,
        request: UpdateContainerRequest,
    ) -> ttrpc::Result<Empty> {
        empty(self.update(&request))
    }

    async fn container_stats(
        &self,
        _context: &TtrpcContext,
        request: ContainerRequest,
    ) -> ttrpc::Result<ContainerStatsResponse> {
        let files = self.sandbox.container(&request.container_id)?.cgroup().statistics()?;
        Ok(ContainerStatsResponse { files, ..ContainerStatsResponse::default() })
    }

    async fn wait_out_of_memory(
        &self,
        _context: &TtrpcContext,
        request: WaitOutOfMemoryRequest,
    ) -> ttrpc::Result<WaitOutOfMemoryResponse> {
        let count = self.sandbox.container(&request.container_id)?.out_of_memory(request.seen).await?;
        Ok(WaitOutOfMemoryResponse {
            count: count.unwrap_or(request.seen),
            ended: count.is_none(),
            ..WaitOutOfMemoryResponse::default()
        })
    }

    async fn release_share_path(
        &self,
        _context: &TtrpcContext,
        request: ReleaseSharePathRequest,
    ) -> ttrpc::Result<Empty> {
        empty(share::release(&request.path))
    }

    async fn power_off(&self, _context: &TtrpcContext, _request: Empty) -> ttrpc::Result<Empty> {
        let source = power::off();
        empty(Err(Error::System { action: "power off".to_owned(), source }))
    }
}

fn empty(result: Result<()>) -> ttrpc::Result<Empty> {
    Ok(result.map(|()| Empty::new())?)
}

fn created(process: &Process, unknown_fields: Vec<String>) -> CreateResponse {
    CreateResponse { pid: number_of(process), unknown_fields, ..CreateResponse::default() }
}

fn number_of(process: &Process) -> u32 {
    process.pid().as_raw_nonzero().get().cast_unsigned()
}

/// Signals are numbered from 1 to 64 on Linux.
fn signal(number: u32) -> Result<i32> {
    i32::try_from(number)
        .ok()
        .filter(|number| (1..=64).contains(number))
        .ok_or_else(|| Error::InvalidRequest(format!("signal is {number}; it is 1 to 64")))
}

/// Runs `work` to its end even when the request is given up, so that nothing is left half done.
async fn unaborted<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    match tokio::spawn(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::Setup(format!("the agent is ending: {error}"))),
    }
}
