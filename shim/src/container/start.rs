//! Starting processes, and naming additional ones.

use std::sync::Arc;

use saya_agent_api::agent::CreateProcessRequest;

use super::create::tell_unknown_fields;
use super::error::TaskError;
use super::process::{Phase, Process};
use super::tasks::{Container, Freezer, Tasks};
use super::{exit, hooks};
use crate::clock::wall_ns;
use crate::events::{Event, Exit};
use crate::identifier;
use crate::io::{HostEnds, Stdio};
use crate::pod::agent::{self, Agent, no_timeout};
use crate::spec::security_modules;

/// The status that a process has whose start failed: a shell's for what it cannot execute.
const NOT_STARTED: u32 = 127;

impl Tasks {
    /// Starts a container's first process, or an additional one. Answers the pid.
    ///
    /// # Errors
    /// Started or ended already, or it could not be executed.
    pub(crate) async fn start(&self, id: &str, exec: &str) -> Result<u32, TaskError> {
        self.pod().timeline().mark(|timeline| &mut timeline.start_received_ns);
        let container = self.container(id)?;
        let process = container.process(exec)?;
        let pid = self.pod().host_pid();
        let turn = process.operation.lock().await;
        process.check_startable()?;
        if exec.is_empty() {
            self.start_init(&container).await?;
        } else {
            self.start_exec(&container, &process).await?;
        }
        process.started();
        self.publisher().send(Event::started(id, exec, pid));
        drop(turn);
        if exec.is_empty() {
            self.after_start(&container).await;
        }
        Ok(pid)
    }

    async fn start_init(&self, container: &Container) -> Result<(), TaskError> {
        let agent = self.agent().await?;
        self.take_later_interfaces(&container.id, &agent).await?;
        if !container.traits.runs_already {
            let name = agent::process(&container.id, "");
            let answer = agent.ask(agent.calls().start_process(no_timeout(), &name)).await;
            self.answer(answer).await.map_err(|error| error.context("starting the container"))?;
        }
        self.pod().timeline().mark(|timeline| &mut timeline.container_running_ns);
        Ok(())
    }

    /// What follows a container's start: it runs whatever becomes of this.
    async fn after_start(&self, container: &Container) {
        let state = hooks::state(&container.id, &container.bundle, "running", self.pod().host_pid());
        if let Err(error) = hooks::run(&container.hooks.poststart, &state).await {
            tracing::warn!(container = container.id, %error, "a poststart hook failed");
        }
        let timeline = self.pod().timeline();
        tracing::debug!(timeline = ?timeline.snapshot(), "timeline");
        if let Err(error) = timeline.write(&self.pod().directory().timeline()) {
            tracing::warn!(%error, "the timeline is not written");
        }
    }

    async fn start_exec(&self, container: &Container, process: &Arc<Process>) -> Result<(), TaskError> {
        if !matches!(container.init.phase(), Phase::Running | Phase::Created) {
            let message = format!("container {} init process is not running", container.id);
            return Err(TaskError::failed_precondition(message));
        }
        if container.freezer() != Freezer::Thawed {
            return Err(TaskError::failed_precondition("cannot exec in a paused state"));
        }
        let ends = HostEnds::open(&process.stdio, process.id(), self.namespace()).await?;
        let agent = self.agent().await?;
        let connected = ends.connect(&agent, process.stdio.terminal).await;
        let (io, mut streams) = self.connected(connected).await?;
        (streams.terminal_columns, streams.terminal_rows) = process.terminal_size();
        let request = CreateProcessRequest {
            container_id: container.id.clone(),
            exec_id: process.exec.clone(),
            oci_process: process.spec().to_vec(),
            streams: Some(streams).into(),
            ..Default::default()
        };
        let answer = agent.ask(agent.calls().create_process(no_timeout(), &request)).await;
        let made = match self.answer(answer).await {
            Ok(made) => {
                tell_unknown_fields(process.id(), &made.unknown_fields);
                self.checked(made.pid).await
            }
            Err(error) => Err(error),
        };
        match made {
            Ok(pid) => process.made(pid, io),
            Err(error) => {
                io.close();
                process.stopped(Exit { status: NOT_STARTED, at: wall_ns() });
                return Err(error.context("creating the process"));
            }
        }
        self.start_made(process, &agent).await?;
        exit::watch_exec(self, process);
        Ok(())
    }

    async fn start_made(&self, process: &Process, agent: &Agent) -> Result<(), TaskError> {
        let name = agent::process(&process.container, &process.exec);
        let answer = agent.ask(agent.calls().start_process(no_timeout(), &name)).await;
        let Err(error) = self.answer(answer).await else { return Ok(()) };
        // It is no more in the guest once containerd deletes it; it has ended here and now.
        process.close_io();
        process.stopped(Exit { status: NOT_STARTED, at: wall_ns() });
        Err(error.context("starting the process"))
    }

    /// Names an additional process of a container, to be started later.
    ///
    /// # Errors
    /// AlreadyExists, or the container is not in a state for it.
    pub(crate) fn exec(&self, id: &str, exec: &str, spec: &[u8], stdio: Stdio) -> Result<(), TaskError> {
        let container = self.container(id)?;
        identifier::validate("exec id", exec).map_err(TaskError::invalid_argument)?;
        if matches!(container.init.phase(), Phase::Stopped(_)) {
            return Err(TaskError::failed_precondition("cannot exec in a stopped state"));
        }
        if container.freezer() != Freezer::Thawed {
            return Err(TaskError::failed_precondition("cannot exec in a paused state"));
        }
        let spec = process_spec(spec, stdio.terminal, container.traits.of_cri)?;
        container.add_exec(Process::with_spec(id, exec, stdio, spec))?;
        self.publisher().send(Event::exec_added(id, exec));
        Ok(())
    }
}

/// The OCI process for the guest: with its terminal as the call has it, which goes before the spec, and without what is the
/// node's alone.
fn process_spec(spec: &[u8], terminal: bool, of_cri: bool) -> Result<Vec<u8>, TaskError> {
    let malformed =
        |error: serde_json::Error| TaskError::invalid_argument(format!("the process's spec: {error}"));
    let mut process: serde_json::Map<_, _> = serde_json::from_slice(spec).map_err(malformed)?;
    process.insert("terminal".into(), terminal.into());
    security_modules::take_from_process(&mut process, of_cri);
    serde_json::to_vec(&process).map_err(malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_calls_terminal_goes_before_the_specs() {
        let spec = process_spec(br#"{"args":["sh"],"terminal":true}"#, false, false).unwrap();
        let spec: serde_json::Value = serde_json::from_slice(&spec).unwrap();
        assert_eq!(spec, serde_json::json!({"args": ["sh"], "terminal": false}));
        assert!(process_spec(b"[]", false, false).is_err());
    }

    #[test]
    fn an_additional_process_has_no_more_of_the_nodes_defaults_than_the_first_one() {
        let spec = br#"{"apparmorProfile":"cri-containerd.apparmor.d","selinuxLabel":"label"}"#;
        let read =
            |of_cri| serde_json::from_slice::<serde_json::Value>(&process_spec(spec, false, of_cri).unwrap());
        assert_eq!(read(true).unwrap(), serde_json::json!({"terminal": false}));
        assert_eq!(read(false).unwrap(), serde_json::json!({"terminal": false, "selinuxLabel": "label"}));
    }
}
