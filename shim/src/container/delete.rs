//! Deleting processes and containers.

use std::sync::Arc;

use saya_agent_api::agent::{ReleaseSharePathRequest, SignalProcessRequest};
use ttrpc::Code;

use super::error::TaskError;
use super::hooks;
use super::process::{Phase, Process};
use super::tasks::{Container, Tasks};
use crate::events::{Event, Exit};
use crate::pod::agent::{self, Agent, is_lost, no_timeout};

impl Tasks {
    /// Deletes a container with its first process, or an additional process. Answers how it ended.
    ///
    /// # Errors
    /// It runs.
    pub(crate) async fn delete(&self, id: &str, exec: &str) -> Result<Exit, TaskError> {
        // containerd deletes what took it too long to create.
        self.settle(id).await;
        let container = self.container(id)?;
        let process = container.process(exec)?;
        if exec.is_empty() {
            self.delete_container(&container).await
        } else {
            self.delete_exec(&container, &process).await
        }
    }

    async fn delete_container(&self, container: &Arc<Container>) -> Result<Exit, TaskError> {
        if container.init.phase() == Phase::Created {
            self.kill_created(container).await?;
        }
        let turn = container.init.operation.lock().await;
        let exit = stopped(&container.init)?;
        if self.container(&container.id).is_err() {
            return Err(TaskError::not_found("container not created"));
        }
        let agent = self.agent().await.ok();
        if let Some(agent) = &agent {
            self.forget(agent, &container.init).await;
        }
        self.release_devices(&container.id).await;
        self.take_host_cpus_back(&container.id).await;
        container.end_watchers();
        container.init.close_io();
        let removed = self.remove_files(&container.id, &container.places).await;
        self.remove(&container.id);
        self.publisher().send(Event::delete(&container.id, self.pod().host_pid(), exit));
        drop(turn);
        if let Some(agent) = agent {
            release_share(agent, container.id.clone(), removed);
        }
        let state = hooks::state(&container.id, &container.bundle, "stopped", 0);
        if let Err(error) = hooks::run(&container.hooks.poststop, &state).await {
            tracing::warn!(container = container.id, %error, "a poststop hook failed");
        }
        Ok(exit)
    }

    /// A container that was never started is ended first.
    async fn kill_created(&self, container: &Container) -> Result<(), TaskError> {
        if let Ok(agent) = self.agent().await {
            let request =
                SignalProcessRequest { container_id: container.id.clone(), signal: 9, ..Default::default() };
            let answer = agent.ask_at_once(agent.calls().signal_process(no_timeout(), &request)).await;
            // A guest that is lost takes the container along.
            let lost = is_lost(&answer);
            if !lost {
                self.see_to_the_end(&agent, &container.init);
            }
            match self.answer(answer).await {
                Ok(_) => {}
                Err(error) if error.code() == Code::NOT_FOUND || lost => {}
                Err(error) => return Err(error.context("ending the container")),
            }
        }
        container.init.wait().await;
        Ok(())
    }

    async fn delete_exec(&self, container: &Container, process: &Arc<Process>) -> Result<Exit, TaskError> {
        let _turn = process.operation.lock().await;
        let exit = match process.phase() {
            Phase::Created if process.guest_pid() == 0 => Exit { status: 0, at: 0 },
            _ => stopped(process)?,
        };
        if process.guest_pid() != 0
            && let Ok(agent) = self.agent().await
        {
            self.forget(&agent, process).await;
        }
        process.close_io();
        container.remove_exec(&process.exec);
        Ok(exit)
    }

    /// The agent forgets a process that has ended. Where it knows nothing of it, that is as well.
    async fn forget(&self, agent: &Agent, process: &Process) {
        let name = agent::process(&process.container, &process.exec);
        let answer = agent.ask_at_once(agent.calls().delete_process(no_timeout(), &name)).await;
        match self.answer(answer).await {
            Ok(_) => {}
            Err(error) if error.code() == Code::NOT_FOUND => {}
            Err(error) => {
                tracing::warn!(process = process.id(), %error, "the agent did not delete a process");
            }
        }
    }
}

fn stopped(process: &Process) -> Result<Exit, TaskError> {
    match process.phase() {
        Phase::Stopped(exit) => Ok(exit),
        Phase::Created | Phase::Running => {
            Err(TaskError::failed_precondition("cannot delete a running process"))
        }
    }
}

/// Lets the guest drop what it remembers of a container's files, so that the host's file systems are free. Nobody
/// waits for it: the pod may be over at any moment, and with it what it remembers.
fn release_share(agent: Agent, container: String, paths: Vec<String>) {
    tokio::spawn(async move {
        for path in paths {
            let request = ReleaseSharePathRequest { path, ..Default::default() };
            if let Err(error) = agent.ask(agent.calls().release_share_path(no_timeout(), &request)).await {
                tracing::debug!(container, %error, "the guest keeps a deleted container's files in mind");
                return;
            }
        }
    });
}
