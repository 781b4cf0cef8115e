//! Following processes to their ends.

use std::sync::Arc;
use std::time::Duration;

use saya_agent_api::agent::{SignalProcessRequest, WaitOutOfMemoryRequest};

use super::error::TaskError;
use super::process::{Phase, Process};
use super::tasks::{Container, Freezer, Tasks};
use crate::clock::wall_ns;
use crate::events::{Event, Exit};
use crate::io::Drain;
use crate::pod::agent::{self, no_timeout};

/// The status of a process whose virtual machine is gone: as if SIGKILL had ended it.
const KILLED: u32 = 137;
/// The status of a process of which the agent knows nothing: containerd's for an unknown one. It is also the highest.
const UNKNOWN: u32 = 255;

/// How long the agent is not asked again after a process has been killed for want of memory. An agent may say so without
/// end, and each time is an event for containerd.
const OUT_OF_MEMORY_PAUSE: Duration = Duration::from_secs(1);

/// Follows a container's first process.
pub(super) fn watch_init(tasks: &Tasks, container: &Arc<Container>) {
    let (tasks, container) = (tasks.clone(), container.clone());
    tokio::spawn(async move {
        let (exit, drain) = ended(&tasks, &container.init).await;
        // The end of the first process is the last that is told of a container.
        tokio::join!(end_others(&tasks, &container), drain.finish());
        container.set_freezer(Freezer::Thawed);
        report(&tasks, &container.init, exit).await;
    });
}

/// Follows an additional process.
pub(super) fn watch_exec(tasks: &Tasks, process: &Arc<Process>) {
    let (tasks, process) = (tasks.clone(), process.clone());
    tokio::spawn(async move {
        let (exit, drain) = ended(&tasks, &process).await;
        drain.finish().await;
        report(&tasks, &process, exit).await;
    });
}

/// Waits for a process to end, by itself or with its virtual machine.
async fn ended(tasks: &Tasks, process: &Process) -> (Exit, Drain) {
    let gone = |status| Exit { status, at: wall_ns() };
    let Ok(agent) = tasks.agent().await else {
        return (gone(KILLED), Drain::default());
    };
    let name = agent::process(&process.container, &process.exec);
    let answer = tokio::select! {
        answer = agent.calls().wait_process(no_timeout(), &name) => answer,
        () = tasks.pod().stopped() => Err(ttrpc::Error::RemoteClosed),
    };
    match answer {
        Ok(answer) => {
            (gone(answer.exit_status.min(UNKNOWN)), process.drain(answer.stdout_bytes, answer.stderr_bytes))
        }
        Err(ttrpc::Error::RpcStatus(status)) => {
            let error = TaskError::from(status);
            tracing::error!(process = process.id(), %error, "the agent lost a process");
            (gone(UNKNOWN), Drain::default())
        }
        Err(error) => {
            let report = tasks.pod().lost(&error).await;
            let reason = report.map(|report| report.to_string()).unwrap_or_default();
            tracing::error!(process = process.id(), reason, "a process ended with its virtual machine");
            // The streams end with the VM; what they held reaches its readers first.
            (gone(KILLED), process.drain(u64::MAX, u64::MAX).of_lost_machine())
        }
    }
}

/// Ends and awaits the processes that a container's first one leaves behind.
async fn end_others(tasks: &Tasks, container: &Container) {
    let others = container.running_execs();
    if others.is_empty() {
        return;
    }
    let agent = tasks.agent().await.ok();
    if let Some(agent) = &agent
        && !container.traits.own_pid_namespace
    {
        let request = SignalProcessRequest {
            container_id: container.id.clone(),
            signal: 9,
            all: true,
            ..Default::default()
        };
        let answer = agent.ask_at_once(agent.calls().signal_process(no_timeout(), &request)).await;
        if let Err(error) = tasks.answer(answer).await {
            tracing::warn!(container = container.id, %error, "processes outlive their container's first one");
        }
    }
    if let Some(agent) = &agent {
        for other in &others {
            tasks.see_to_the_end(agent, other);
        }
    }
    for other in others {
        other.wait().await;
    }
}

/// Tells containerd of an end, after whatever is being done with the process has been told.
async fn report(tasks: &Tasks, process: &Process, exit: Exit) {
    let _turn = process.operation.lock().await;
    if matches!(process.phase(), Phase::Stopped(_)) {
        return;
    }
    let event = Event::exit(&process.container, &process.exec, tasks.pod().host_pid(), exit);
    tasks.publisher().send(event);
    process.stopped(exit);
}

/// Tells containerd when the kernel kills processes of the container for want of memory, of several within
/// [`OUT_OF_MEMORY_PAUSE`] once.
pub(super) fn watch_out_of_memory(tasks: &Tasks, container: &Arc<Container>) {
    let (tasks, id) = (tasks.clone(), container.id.clone());
    let watcher = tokio::spawn(async move {
        let Ok(agent) = tasks.agent().await else { return };
        let mut request = WaitOutOfMemoryRequest { container_id: id.clone(), ..Default::default() };
        loop {
            match agent.calls().wait_out_of_memory(no_timeout(), &request).await {
                Ok(answer) => {
                    if answer.count > request.seen {
                        request.seen = answer.count;
                        tasks.publisher().send(Event::out_of_memory(&id));
                    }
                    if answer.ended {
                        return;
                    }
                    tokio::time::sleep(OUT_OF_MEMORY_PAUSE).await;
                }
                Err(error) => {
                    tracing::debug!(container = id, %error, "memory events are no longer followed");
                    return;
                }
            }
        }
    });
    container.keep_watcher(watcher);
}
