//! Making a process: clone, then the talk with the child until it stands before its exec.

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::cgroup::Cgroup;
use super::channel::{self, AgentEnd, ChildEnd, Go, Report};
use super::plan::{ContainerPlan, Namespaces, ProcessPlan};
use super::setup::{self, Inheritance, namespaces};
use super::{Container, Surroundings};
use crate::error::{Action, Error, Result};
use crate::process::Process;
use crate::reaper::Reaper;
use crate::stdio::{self, ChildStreams, StreamNumbers, Streams};
use crate::sys;
use crate::sys::clone::{Side, clone_process};

/// Makes the first process of a container.
pub(super) async fn first_process(
    plan: &ContainerPlan,
    cgroup: &Cgroup,
    streams: StreamNumbers,
    surroundings: &Surroundings,
) -> Result<Arc<Process>> {
    let made = namespaces_at_clone(&plan.namespaces);
    let pid_namespace = plan.namespaces.joins(libc::CLONE_NEWPID).map(|join| open(&join.path)).transpose()?;
    let child = |channel: &ChildEnd, stdio: &ChildStreams| {
        setup::become_container(plan, made, &Inheritance { channel, stdio: stdio.as_array() })
    };
    let place =
        Place { cgroup: cgroup.open()?, pid_namespace: pid_namespace.map(OwnedFd::from), namespaces: made };
    make(&plan.id, "", &place, &plan.namespaces, streams, surroundings, child).await
}

/// Makes an additional process in a container.
pub(super) async fn additional_process(
    container: &Container,
    exec_id: &str,
    plan: &ProcessPlan,
    streams: StreamNumbers,
    surroundings: &Surroundings,
) -> Result<Arc<Process>> {
    let first = container.first.pid();
    let pidfd = pidfd_open(first, PidfdFlags::empty()).action(|| format!("open process {first:?}"))?;
    let pid_namespace = open(Path::new(&format!("/proc/{}/ns/pid", first.as_raw_nonzero())))?;
    let user_namespace = container.user_namespace;
    let child = |channel: &ChildEnd, stdio: &ChildStreams| {
        let inheritance = Inheritance { channel, stdio: stdio.as_array() };
        setup::become_process(plan, pidfd.as_fd(), user_namespace, &inheritance)
    };
    let place =
        Place { cgroup: container.cgroup.open()?, pid_namespace: Some(pid_namespace.into()), namespaces: 0 };
    make(&container.id, exec_id, &place, &Namespaces::default(), streams, surroundings, child).await
}

/// In a user namespace, the others must be made after it, so the clone makes none.
fn namespaces_at_clone(namespaces: &Namespaces) -> u32 {
    if namespaces.has_user_namespace() { 0 } else { namespaces.create & namespaces::AT_CLONE.cast_unsigned() }
}

fn open(path: &Path) -> Result<File> {
    File::open(path).action(|| format!("open {}", path.display()))
}

/// Where a process is born.
struct Place {
    cgroup: OwnedFd,
    /// A pid namespace that exists already.
    pid_namespace: Option<OwnedFd>,
    /// `CLONE_NEW*` of those that the clone makes.
    namespaces: u32,
}

async fn make(
    container: &str,
    exec_id: &str,
    place: &Place,
    namespaces: &Namespaces,
    numbers: StreamNumbers,
    surroundings: &Surroundings,
    child: impl FnOnce(&ChildEnd, &ChildStreams),
) -> Result<Arc<Process>> {
    let (child_streams, pipes) = stdio::make_pipes(&numbers)?;
    let (agent_end, child_end) =
        channel::pair().action(|| "make a channel to the set-up process".to_owned())?;
    let pid = clone_into(place, || child(&child_end, &child_streams))?;
    let mut birth = Birth {
        process: watched(container, exec_id, pid, &surroundings.reaper),
        namespaces,
        reaper: &surroundings.reaper,
        channel: agent_end,
        terminal: None,
    };
    drop((child_end, child_streams));
    let attended = birth.attend().await;
    let Birth { process, channel, terminal, .. } = birth;
    let coupled = match attended {
        Ok(()) => Streams::couple(&surroundings.streams, numbers, pipes, terminal).await,
        Err(error) => Err(error),
    };
    match coupled {
        Ok(streams) => {
            process.set_up(channel, streams);
            Ok(process)
        }
        Err(error) => {
            give_up(&process).await;
            Err(error)
        }
    }
}

fn watched(container: &str, exec_id: &str, pid: Pid, reaper: &Reaper) -> Arc<Process> {
    let process = Arc::new(Process::new(container, exec_id, pid));
    reaper.watch(Arc::clone(&process));
    process
}

/// Ends a process that could not be set up, if it has not ended itself.
async fn give_up(process: &Process) {
    if let Err(error) = process.signal(libc::SIGKILL)
        && !matches!(error, Error::ProcessEnded(_))
    {
        log::warn!("{error}");
    }
    process.wait().await;
}

/// A process between its clone and its exec.
struct Birth<'a> {
    process: Arc<Process>,
    namespaces: &'a Namespaces,
    reaper: &'a Reaper,
    channel: AgentEnd,
    terminal: Option<OwnedFd>,
}

impl Birth<'_> {
    /// Answers the child until it is ready.
    async fn attend(&mut self) -> Result<()> {
        loop {
            let report = self.channel.next().await;
            match report.action(|| format!("hear from the set-up of {}", self.process.subject()))? {
                Some(Report::Ready) => return Ok(()),
                Some(Report::Failed(message)) => return Err(Error::Setup(message)),
                Some(Report::Terminal(terminal)) => self.terminal = Some(terminal),
                Some(Report::NeedsMappings) => {
                    write_mappings(self.process.pid(), self.namespaces)?;
                    self.go_on()?;
                }
                Some(Report::Successor(pid)) => {
                    let pid = Pid::from_raw(pid).ok_or_else(|| Error::Setup(format!("no process {pid}")))?;
                    self.process =
                        watched(self.process.container(), self.process.exec_id(), pid, self.reaper);
                    self.go_on()?;
                }
                None => {
                    let status = self.process.wait().await.status;
                    let subject = self.process.subject();
                    return Err(Error::Setup(format!(
                        "the set-up of {subject} ended early, status {status}"
                    )));
                }
            }
        }
    }

    fn go_on(&self) -> Result<()> {
        self.channel.go(Go::On).action(|| format!("go on with the set-up of {}", self.process.subject()))
    }
}

fn write_mappings(pid: Pid, namespaces: &Namespaces) -> Result<()> {
    let maps = [
        ("uid_map", "linux.uidMappings", &namespaces.uid_map),
        ("gid_map", "linux.gidMappings", &namespaces.gid_map),
    ];
    for (file, field, lines) in maps {
        fs::write(format!("/proc/{}/{file}", pid.as_raw_nonzero()), lines)
            .action(|| format!("set {field}"))?;
    }
    Ok(())
}

/// Clones this process; the child calls `child`.
fn clone_into(place: &Place, child: impl FnOnce()) -> Result<Pid> {
    let own = match &place.pid_namespace {
        Some(namespace) => {
            let own = open(Path::new("/proc/self/ns/pid"))?;
            set_pid_namespace_of_children(namespace.as_fd())?;
            Some(own)
        }
        None => None,
    };
    // SAFETY: the agent has one thread, and `child` ends in exec or `_exit`; should it panic, the guard ends it.
    let side = unsafe { clone_process(place.namespaces.into(), Some(place.cgroup.as_fd())) };
    match side {
        Ok(Side::Child) => {
            let _guard = AbortOnUnwind;
            child();
            std::process::abort()
        }
        side => {
            if let Some(own) = own {
                set_pid_namespace_of_children(own.as_fd())?;
            }
            match side.action(|| "clone the set-up process".to_owned())? {
                Side::Parent(pid) => Ok(pid),
                Side::Child => Err(Error::Setup("two children of one clone".to_owned())),
            }
        }
    }
}

/// The caller stays in its own pid namespace; its next children are born in the other one.
fn set_pid_namespace_of_children(namespace: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: takes no pointer.
    let result = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWPID) };
    sys::checked(result.into()).map(drop).action(|| "join the pid namespace".to_owned())
}

/// A panic in the child must not unwind into the copy of the agent's event loop.
struct AbortOnUnwind;

impl Drop for AbortOnUnwind {
    fn drop(&mut self) {
        std::process::abort();
    }
}
