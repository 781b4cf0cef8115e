//! What is done with a container while it runs.

use std::sync::Arc;

use saya_agent_api::agent::{
    ContainerRequest, ContainerStatsResponse, GuestProcess, ResizeTerminalRequest, SignalProcessRequest,
    UpdateContainerRequest,
};
use serde_json::{Map, Value};
use ttrpc::Code;

use super::error::TaskError;
use super::process::{Phase, Process};
use super::tasks::{Container, Freezer, Tasks};
use crate::events::Event;
use crate::pod::agent::{Agent, is_lost, no_timeout};
use crate::spec::host_cpus;

/// SIGKILL, by its number on every machine.
const KILL: u32 = 9;

/// The most processes of a container that are listed.
const PROCESSES_MAX: usize = 65_536;

impl Tasks {
    /// Sends a signal to a process, or to all of a container.
    ///
    /// # Errors
    /// NotFound when it has ended.
    pub(crate) async fn kill(&self, id: &str, exec: &str, signal: u32, all: bool) -> Result<(), TaskError> {
        let process = self.container(id)?.process(exec)?;
        process.check_signalable()?;
        let Ok(agent) = self.agent().await else {
            // Its end is about to be told.
            return Err(TaskError::not_found("process already finished"));
        };
        let request = SignalProcessRequest {
            container_id: id.to_owned(),
            exec_id: exec.to_owned(),
            signal,
            all,
            ..Default::default()
        };
        let call = agent.calls().signal_process(no_timeout(), &request);
        let answer = if signal == KILL { agent.ask_at_once(call).await } else { agent.ask(call).await };
        let guest_is_lost = is_lost(&answer);
        if signal == KILL && !guest_is_lost {
            // Whatever the agent has answered: a process that is said to be none is about to have ended, too.
            self.see_to_the_end(&agent, &process);
        }
        match self.answer(answer).await {
            Ok(_) => Ok(()),
            // With its virtual machine the process has ended, as it was to.
            Err(_) if guest_is_lost && signal == KILL => Ok(()),
            Err(error) if error.code() == Code::NOT_FOUND => {
                Err(TaskError::not_found("process already finished"))
            }
            Err(error) => Err(error),
        }
    }

    /// Ends the virtual machine when a process that was killed goes on: its guest is not to be trusted with it.
    pub(super) fn see_to_the_end(&self, agent: &Agent, process: &Arc<Process>) {
        let (tasks, process, limit) = (self.clone(), process.clone(), agent.longest_patience());
        tokio::spawn(async move {
            if tokio::time::timeout(limit, process.wait()).await.is_err() {
                tasks.pod().stop(&format!(
                    "{} has not ended within {} s of its SIGKILL (10 times the configuration key agent_timeout)",
                    described(&process),
                    limit.as_secs_f64()
                ));
            }
        });
    }

    /// Freezes a container.
    ///
    /// # Errors
    /// It does not run, or is frozen.
    pub(crate) async fn pause(&self, id: &str) -> Result<(), TaskError> {
        let (container, agent) = self.running(id, "pause").await?;
        if container.freezer() != Freezer::Thawed {
            return Err(TaskError::failed_precondition("cannot pause a paused container"));
        }
        container.set_freezer(Freezer::Freezing);
        let answer = agent.ask(agent.calls().pause_container(no_timeout(), &request(id))).await;
        let answer = self.answer(answer).await;
        container.set_freezer(if answer.is_ok() { Freezer::Frozen } else { Freezer::Thawed });
        answer?;
        self.publisher().send(Event::paused(id));
        Ok(())
    }

    /// Lets a frozen container run again.
    ///
    /// # Errors
    /// It is not frozen.
    pub(crate) async fn resume(&self, id: &str) -> Result<(), TaskError> {
        let (container, agent) = self.running(id, "resume").await?;
        if container.freezer() != Freezer::Frozen {
            return Err(TaskError::failed_precondition("cannot resume a running process"));
        }
        let answer = agent.ask(agent.calls().resume_container(no_timeout(), &request(id))).await;
        self.answer(answer).await?;
        container.set_freezer(Freezer::Thawed);
        self.publisher().send(Event::resumed(id));
        Ok(())
    }

    async fn running(&self, id: &str, verb: &str) -> Result<(Arc<Container>, Agent), TaskError> {
        let container = self.container(id)?;
        let refused =
            |state| Err(TaskError::failed_precondition(format!("cannot {verb} a {state} container")));
        match container.init.phase() {
            Phase::Running => Ok((container, self.agent().await?)),
            Phase::Created => refused("created"),
            Phase::Stopped(_) => refused("stopped"),
        }
    }

    /// Changes a container's limits; `resources` is the OCI `linux.resources` object as JSON.
    ///
    /// # Errors
    /// It has ended, or the limits cannot be, or are raised above what the virtual machine has.
    pub(crate) async fn update(&self, id: &str, resources: &[u8]) -> Result<(), TaskError> {
        let container = self.container(id)?;
        if matches!(container.init.phase(), Phase::Stopped(_)) {
            return Err(TaskError::failed_precondition("cannot update a stopped container"));
        }
        let malformed =
            |error: serde_json::Error| TaskError::invalid_argument(format!("linux.resources: {error}"));
        let mut resources: Map<String, Value> = serde_json::from_slice(resources).map_err(malformed)?;
        let host_cpus = self.host_cpus(id).await;
        let given = host_cpus.clone().after(Some(&resources)).map_err(TaskError::invalid_argument)?;
        if container.traits.of_cri {
            host_cpus::take_from_resources(&mut resources);
        }
        let (before, limits) = (container.limits(), container.limits().after(&resources));
        let size = self.pod().vm().map_err(TaskError::failed)?.size();
        limits.check_raised(before, size).map_err(TaskError::failed_precondition)?;
        let request = UpdateContainerRequest {
            container_id: id.to_owned(),
            oci_resources: serde_json::to_vec(&resources).map_err(malformed)?,
            ..Default::default()
        };
        let agent = self.agent().await?;
        self.change_host_cpus(id, given).await?;
        let answer = agent.ask(agent.calls().update_container(no_timeout(), &request)).await;
        if let Err(error) = self.answer(answer).await {
            self.change_host_cpus(id, host_cpus).await?;
            return Err(error);
        }
        container.set_limits(limits);
        self.pod().renew_limits();
        Ok(())
    }

    /// The size of a process's terminal. For a process without one it means nothing.
    ///
    /// # Errors
    /// It has ended.
    pub(crate) async fn resize(
        &self,
        id: &str,
        exec: &str,
        columns: u32,
        rows: u32,
    ) -> Result<(), TaskError> {
        let process = self.container(id)?.process(exec)?;
        match process.phase() {
            Phase::Stopped(_) => {
                return Err(TaskError::failed_precondition("cannot resize a stopped container"));
            }
            Phase::Created | Phase::Running if !process.stdio.terminal => return Ok(()),
            // An additional process that is only named: the size is its terminal's first once it starts.
            Phase::Created | Phase::Running if process.guest_pid() == 0 => {
                process.set_terminal_size(columns, rows);
                return Ok(());
            }
            Phase::Created | Phase::Running => {}
        }
        let request = ResizeTerminalRequest {
            container_id: id.to_owned(),
            exec_id: exec.to_owned(),
            columns,
            rows,
            ..Default::default()
        };
        let agent = self.agent().await?;
        let answer = agent.ask(agent.calls().resize_terminal(no_timeout(), &request)).await;
        self.answer(answer).await.map(|_| ())
    }

    /// The container's processes, by their pids in the guest, with the names that containerd has given some.
    ///
    /// # Errors
    /// No such container, or more than [`PROCESSES_MAX`].
    pub(crate) async fn processes(&self, id: &str) -> Result<Vec<GuestProcess>, TaskError> {
        let container = self.container(id)?;
        let agent = self.agent().await?;
        let answer = agent.ask(agent.calls().list_processes(no_timeout(), &request(id))).await;
        let mut processes = self.answer(answer).await?.processes;
        if processes.len() > PROCESSES_MAX {
            let words = format!("the guest lists {} processes, more than {PROCESSES_MAX}", processes.len());
            return Err(TaskError::failed(words));
        }
        for process in &mut processes {
            if container.process(&process.exec_id).is_err() {
                process.exec_id.clear();
            }
        }
        Ok(processes)
    }

    /// The files of the container's cgroup in the guest.
    ///
    /// # Errors
    /// No such container.
    pub(crate) async fn statistics(&self, id: &str) -> Result<ContainerStatsResponse, TaskError> {
        self.container(id)?;
        let agent = self.agent().await?;
        let answer = agent.ask(agent.calls().container_stats(no_timeout(), &request(id))).await;
        self.answer(answer).await
    }
}

fn described(process: &Process) -> String {
    let container = format!("container {}", process.container);
    if process.exec.is_empty() { container } else { format!("process {} of {container}", process.exec) }
}

fn request(id: &str) -> ContainerRequest {
    ContainerRequest { container_id: id.to_owned(), ..Default::default() }
}
