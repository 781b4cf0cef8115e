//! A container and its processes.

pub(crate) mod cgroup;
pub(crate) mod channel;
#[cfg(test)]
mod every_field;
pub(crate) mod plan;
pub(crate) mod seccomp;
mod setup;
mod spawn;

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::cgroup::{Cgroup, events};
use self::plan::{ContainerPlan, ProcessPlan};
use crate::error::{Action, Error, Result, SpecError};
use crate::process::{Process, State};
use crate::reaper::Reaper;
use crate::stdio::{Registry, StreamNumbers};
use crate::sys::send_signal;

/// What containers need of the agent.
#[derive(Clone, Debug)]
pub(crate) struct Surroundings {
    /// Tells when a process ends.
    pub(crate) reaper: Reaper,
    /// Has the connections for streams.
    pub(crate) streams: Registry,
    /// Where the cgroup tree is.
    pub(crate) cgroup_root: std::path::PathBuf,
}

/// A container that was created.
#[derive(Debug)]
pub(crate) struct Container {
    id: String,
    cgroup: Cgroup,
    first: Arc<Process>,
    /// Additional processes by their exec ids; `None` while one is made.
    others: Mutex<HashMap<String, Option<Arc<Process>>>>,
    user_namespace: bool,
    paused: AtomicBool,
    /// What additional processes take over from the container.
    seccomp: Option<seccomp::Filter>,
    personality: Option<libc::c_ulong>,
}

impl Container {
    /// Builds a container and stops before the exec of its first process.
    pub(crate) async fn create(
        plan: &ContainerPlan,
        streams: StreamNumbers,
        surroundings: &Surroundings,
    ) -> Result<Arc<Self>> {
        let cgroup = Cgroup::create(&surroundings.cgroup_root, plan.cgroups_path.as_deref(), &plan.id)?;
        if let Err(error) = cgroup.limit(&plan.resources) {
            discard(&cgroup);
            return Err(error);
        }
        let first = match spawn::first_process(plan, &cgroup, streams, surroundings).await {
            Ok(first) => first,
            Err(error) => {
                let error = reason_of_failure(plan, &cgroup, error);
                discard(&cgroup);
                return Err(error);
            }
        };
        let container = Arc::new(Self {
            id: plan.id.clone(),
            cgroup,
            first,
            others: Mutex::default(),
            paused: AtomicBool::new(false),
            user_namespace: plan.namespaces.has_user_namespace(),
            seccomp: plan.process.seccomp.clone(),
            personality: plan.process.personality,
        });
        tokio::spawn(Arc::clone(&container).kill_rest_at_exit());
        Ok(container)
    }

    /// Makes an additional process and stops before its exec.
    pub(crate) async fn create_process(
        &self,
        exec_id: &str,
        mut plan: ProcessPlan,
        streams: StreamNumbers,
        surroundings: &Surroundings,
    ) -> Result<Arc<Process>> {
        self.check_lively("exec in")?;
        self.reserve(exec_id)?;
        plan.seccomp.clone_from(&self.seccomp);
        plan.personality = self.personality;
        let made = spawn::additional_process(self, exec_id, &plan, streams, surroundings).await;
        let mut others = self.others();
        match made {
            Ok(process) => {
                others.insert(exec_id.to_owned(), Some(Arc::clone(&process)));
                Ok(process)
            }
            Err(error) => {
                others.remove(exec_id);
                Err(error)
            }
        }
    }

    fn reserve(&self, exec_id: &str) -> Result<()> {
        let mut others = self.others();
        if others.contains_key(exec_id) {
            return Err(Error::ProcessExists { container: self.id.clone(), process: exec_id.to_owned() });
        }
        others.insert(exec_id.to_owned(), None);
        Ok(())
    }

    /// Its first process.
    pub(crate) fn first(&self) -> &Arc<Process> {
        &self.first
    }

    /// The process with this exec id; the first one when it is empty.
    pub(crate) fn process(&self, exec_id: &str) -> Result<Arc<Process>> {
        if exec_id.is_empty() {
            return Ok(Arc::clone(&self.first));
        }
        let others = self.others();
        others
            .get(exec_id)
            .and_then(Option::as_ref)
            .map(Arc::clone)
            .ok_or_else(|| Error::NoSuchProcess { container: self.id.clone(), process: exec_id.to_owned() })
    }

    /// Its process ids, each with the exec id of the process if it has one.
    pub(crate) fn processes(&self) -> Result<Vec<(u32, String)>> {
        let pids = self.cgroup.processes()?;
        let others = self.others();
        let exec_id = |pid| {
            let known = others.values().flatten().find(|process| process.pid() == pid);
            known.map_or_else(String::new, |process| process.exec_id().to_owned())
        };
        let number = |pid: rustix::process::Pid| pid.as_raw_nonzero().get().cast_unsigned();
        Ok(pids.into_iter().map(|pid| (number(pid), exec_id(pid))).collect())
    }

    /// Sends a signal to all its processes.
    pub(crate) fn signal_all(&self, signal: i32) -> Result<()> {
        if signal == libc::SIGKILL {
            return self.cgroup.kill();
        }
        for pid in self.cgroup.processes()? {
            // One may have ended since it was listed.
            match send_signal(pid, signal) {
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                result => result.action(|| format!("send signal {signal} to process {pid:?}"))?,
            }
        }
        Ok(())
    }

    /// Forgets an additional process that has ended or was never started.
    pub(crate) fn delete_process(&self, exec_id: &str) -> Result<()> {
        let process = self.process(exec_id)?;
        match process.state() {
            State::Running => return Err(process.wrong_state("delete")),
            State::Created => process.signal(libc::SIGKILL)?,
            State::Exited(_) => {}
        }
        self.others().remove(exec_id);
        Ok(())
    }

    /// Takes its cgroup away. All its processes have ended, or end now.
    pub(crate) async fn remove(&self) -> Result<()> {
        if !matches!(self.first.state(), State::Exited(_)) {
            return Err(self.first.wrong_state("delete"));
        }
        self.cgroup.kill()?;
        self.cgroup.emptied().await?;
        self.cgroup.remove()
    }

    /// Stops all its processes.
    pub(crate) async fn pause(&self) -> Result<()> {
        self.check_lively("pause")?;
        self.cgroup.freeze().await?;
        self.paused.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Lets its processes go on.
    pub(crate) async fn resume(&self) -> Result<()> {
        if !self.paused.load(Ordering::Relaxed) {
            return Err(self.first.wrong_state("resume"));
        }
        self.cgroup.thaw().await?;
        self.paused.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Neither ended nor paused.
    fn check_lively(&self, action: &'static str) -> Result<()> {
        if let State::Exited(_) = self.first.state() {
            return Err(self.first.wrong_state(action));
        }
        if self.paused.load(Ordering::Relaxed) {
            return Err(Error::WrongState { action, subject: self.first.subject(), state: "paused" });
        }
        Ok(())
    }

    /// Answers with the kernel's count of processes that it has ended for want of memory, when it is above `seen`;
    /// with nothing when the container has ended.
    pub(crate) async fn out_of_memory(&self, seen: u64) -> Result<Option<u64>> {
        let count = |text: &str| events::value(text, "oom_kill").filter(|count| *count > seen);
        let file = self.cgroup.file("memory.events");
        let reached = events::wait_for(&file, |text| count(text).is_some());
        tokio::select! {
            biased;
            result = reached => result?,
            _ = self.first.wait() => {}
        }
        Ok(self.cgroup.read("memory.events")?.as_deref().and_then(count))
    }

    /// Its cgroup.
    pub(crate) fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// The end of the first process ends the container, also where it was not the first of a pid namespace, in which
    /// case the kernel sees to it.
    async fn kill_rest_at_exit(self: Arc<Self>) {
        self.first.wait().await;
        if let Err(error) = self.cgroup.kill() {
            log::warn!("container {:?}: {error}", self.id);
        }
    }

    fn others(&self) -> MutexGuard<'_, HashMap<String, Option<Arc<Process>>>> {
        self.others.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why the set-up of a container failed: what it needs itself counts towards the container's limit. Without one, the
/// kernel's want of memory is nothing that the spec could mend.
fn reason_of_failure(plan: &ContainerPlan, cgroup: &Cgroup, error: Error) -> Error {
    match plan.resources.memory().and_then(|memory| memory.limit()).filter(|limit| *limit > 0) {
        Some(limit) if cgroup.ran_out_of_memory() => {
            log::warn!("container {:?} ran out of memory while it was set up: {error}", plan.id);
            too_little_memory(limit)
        }
        _ => error,
    }
}

/// `limit` is in bytes.
fn too_little_memory(limit: i64) -> Error {
    let problem = format!("is {limit} bytes, too little to set the container up");
    SpecError::invalid("linux.resources.memory.limit", problem).into()
}

/// Removes the cgroup of a container that could not be made.
fn discard(cgroup: &Cgroup) {
    if let Err(error) = cgroup.remove() {
        log::warn!("after a failed creation: {error}");
    }
}

/// Checks an id that becomes a part of paths.
pub(crate) fn check_id(id: &str) -> Result<()> {
    let plain = |character: char| character.is_ascii_alphanumeric() || "_.-+:@".contains(character);
    if !id.is_empty() && id.len() <= 1024 && id.chars().all(plain) && Path::new(id).file_name().is_some() {
        return Ok(());
    }
    Err(Error::InvalidRequest(format!(
        "container_id {id:?} is not a name: letters, digits and _.-+:@ make one"
    )))
}
