//! Events as containerd knows them.

use containerd_shim_protos::api::Mount;
use containerd_shim_protos::events::task::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskIO, TaskOOM, TaskPaused,
    TaskResumed, TaskStart,
};
use containerd_shim_protos::shim::event::Envelope;
use protobuf::MessageDyn;
use protobuf::well_known_types::any::Any;

use crate::clock;
use crate::io::Stdio;

/// Something that happened to a task.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Event {
    /// A container was created.
    Create(Box<TaskCreate>),
    /// A container's first process runs.
    Start(TaskStart),
    /// A process has ended.
    Exit(TaskExit),
    /// A container was deleted.
    Delete(TaskDelete),
    /// An additional process was named.
    ExecAdded(TaskExecAdded),
    /// An additional process runs.
    ExecStarted(TaskExecStarted),
    /// The kernel killed a process for want of memory.
    OutOfMemory(TaskOOM),
    /// A container was frozen.
    Paused(TaskPaused),
    /// A container runs again.
    Resumed(TaskResumed),
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit {
    /// 0–255; 128 + n after signal n.
    pub(crate) status: u32,
    /// Nanoseconds since 1970.
    pub(crate) at: u64,
}

impl Event {
    /// A container was created.
    pub(crate) fn create(
        container: &str,
        bundle: &str,
        rootfs: Vec<Mount>,
        stdio: &Stdio,
        checkpoint: &str,
        pid: u32,
    ) -> Self {
        let io = TaskIO {
            stdin: stdio.stdin.clone(),
            stdout: stdio.stdout.clone(),
            stderr: stdio.stderr.clone(),
            terminal: stdio.terminal,
            ..Default::default()
        };
        Self::Create(Box::new(TaskCreate {
            container_id: container.into(),
            bundle: bundle.into(),
            rootfs,
            io: Some(io).into(),
            checkpoint: checkpoint.into(),
            pid,
            ..Default::default()
        }))
    }

    /// A process runs: the container's first, or the additional one named `exec`.
    pub(crate) fn started(container: &str, exec: &str, pid: u32) -> Self {
        if exec.is_empty() {
            return Self::Start(TaskStart { container_id: container.into(), pid, ..Default::default() });
        }
        Self::ExecStarted(TaskExecStarted {
            container_id: container.into(),
            exec_id: exec.into(),
            pid,
            ..Default::default()
        })
    }

    /// A process has ended: the container's first, or the additional one named `exec`.
    pub(crate) fn exit(container: &str, exec: &str, pid: u32, exit: Exit) -> Self {
        Self::Exit(TaskExit {
            container_id: container.into(),
            id: if exec.is_empty() { container.into() } else { exec.into() },
            pid,
            exit_status: exit.status,
            exited_at: Some(clock::timestamp(exit.at)).into(),
            ..Default::default()
        })
    }

    /// A container was deleted.
    pub(crate) fn delete(container: &str, pid: u32, exit: Exit) -> Self {
        Self::Delete(TaskDelete {
            container_id: container.into(),
            pid,
            exit_status: exit.status,
            exited_at: Some(clock::timestamp(exit.at)).into(),
            ..Default::default()
        })
    }

    /// An additional process was named.
    pub(crate) fn exec_added(container: &str, exec: &str) -> Self {
        Self::ExecAdded(TaskExecAdded {
            container_id: container.into(),
            exec_id: exec.into(),
            ..Default::default()
        })
    }

    /// The kernel killed a process of the container for want of memory.
    pub(crate) fn out_of_memory(container: &str) -> Self {
        Self::OutOfMemory(TaskOOM { container_id: container.into(), ..Default::default() })
    }

    /// A container was frozen.
    pub(crate) fn paused(container: &str) -> Self {
        Self::Paused(TaskPaused { container_id: container.into(), ..Default::default() })
    }

    /// A container runs again.
    pub(crate) fn resumed(container: &str) -> Self {
        Self::Resumed(TaskResumed { container_id: container.into(), ..Default::default() })
    }

    /// Whether it tells of the end of a process or a container, for which somebody waits.
    pub(crate) fn is_an_end(&self) -> bool {
        matches!(self, Self::Exit(_) | Self::Delete(_))
    }

    /// The topic under which containerd's clients find the event.
    pub(crate) fn topic(&self) -> &'static str {
        match self {
            Self::Create(_) => "/tasks/create",
            Self::Start(_) => "/tasks/start",
            Self::Exit(_) => "/tasks/exit",
            Self::Delete(_) => "/tasks/delete",
            Self::ExecAdded(_) => "/tasks/exec-added",
            Self::ExecStarted(_) => "/tasks/exec-started",
            Self::OutOfMemory(_) => "/tasks/oom",
            Self::Paused(_) => "/tasks/paused",
            Self::Resumed(_) => "/tasks/resumed",
        }
    }

    fn message(&self) -> &dyn MessageDyn {
        match self {
            Self::Create(message) => &**message,
            Self::Start(message) => message,
            Self::Exit(message) => message,
            Self::Delete(message) => message,
            Self::ExecAdded(message) => message,
            Self::ExecStarted(message) => message,
            Self::OutOfMemory(message) => message,
            Self::Paused(message) => message,
            Self::Resumed(message) => message,
        }
    }

    /// The event in the envelope that containerd takes, with the present time.
    ///
    /// # Errors
    /// A message that cannot be encoded.
    pub(crate) fn envelope(&self, namespace: &str) -> protobuf::Result<Envelope> {
        Ok(Envelope {
            timestamp: Some(clock::timestamp(clock::wall_ns())).into(),
            namespace: namespace.into(),
            topic: self.topic().into(),
            event: Some(any(self.message())?).into(),
            ..Default::default()
        })
    }
}

/// A message with its type's full name, as containerd's typeurl writes it: without a host before it.
///
/// # Errors
/// A message that cannot be encoded.
pub(crate) fn any(message: &dyn MessageDyn) -> protobuf::Result<Any> {
    Ok(Any {
        type_url: message.descriptor_dyn().full_name().to_owned(),
        value: message.write_to_bytes_dyn()?,
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use protobuf::Message;

    use super::*;

    #[test]
    fn an_exit_carries_container_process_status_and_time() {
        let event = Event::exit("c1", "e1", 7, Exit { status: 137, at: 1_500_000_000 });
        let envelope = event.envelope("default").unwrap();
        assert_eq!(envelope.topic, "/tasks/exit");
        assert_eq!(envelope.namespace, "default");
        assert_eq!(envelope.event.type_url, "containerd.events.TaskExit");
        let exit = TaskExit::parse_from_bytes(&envelope.event.value).unwrap();
        assert_eq!((exit.container_id.as_str(), exit.id.as_str()), ("c1", "e1"));
        assert_eq!((exit.pid, exit.exit_status), (7, 137));
        assert_eq!((exit.exited_at.seconds, exit.exited_at.nanos), (1, 500_000_000));
    }

    #[test]
    fn the_first_process_goes_by_its_containers_id() {
        let Event::Exit(exit) = Event::exit("c1", "", 7, Exit { status: 0, at: 0 }) else { panic!() };
        assert_eq!(exit.id, "c1");
        assert!(matches!(Event::started("c1", "", 7), Event::Start(_)));
        assert!(matches!(Event::started("c1", "e", 7), Event::ExecStarted(_)));
    }
}
