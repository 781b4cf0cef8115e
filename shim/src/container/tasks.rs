//! The pod's containers by their ids.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::error::TaskError;
use super::host_cpus::HostCpusOfContainers;
use super::limits::Limits;
use super::process::{Phase, Process};
use super::traits::Traits;
use crate::events::Publisher;
use crate::io::StdioError;
use crate::pod::Pod;
use crate::pod::agent::Agent;
use crate::pod::directory::ContainerPlaces;
use crate::spec::hooks::HostHooks;
use crate::spec::namespaces::{PidNamespace, PodNamespaces};

/// A pod's containers. Clones share them.
#[derive(Clone)]
pub(crate) struct Tasks {
    inner: Arc<Inner>,
}

struct Inner {
    namespace: String,
    pod: Arc<Pod>,
    publisher: Publisher,
    containers: Mutex<HashMap<String, Slot>>,
    host_cpus: tokio::sync::Mutex<HostCpusOfContainers>,
    /// Notified when a reservation has become a container, or is none any more.
    settled: Notify,
}

/// What an id stands for.
enum Slot {
    /// A container that is being created.
    Reserved,
    /// A container.
    Filled(Arc<Container>),
}

/// A container.
pub(crate) struct Container {
    /// Its id.
    pub(crate) id: String,
    /// Its bundle's directory.
    pub(crate) bundle: PathBuf,
    /// Its first process.
    pub(crate) init: Arc<Process>,
    /// Where its files are on the host.
    pub(crate) places: ContainerPlaces,
    /// What runs on the host after its start and its end.
    pub(crate) hooks: HostHooks,
    /// What its spec says of it.
    pub(crate) traits: Traits,
    execs: Mutex<HashMap<String, Arc<Process>>>,
    freezer: Mutex<Freezer>,
    limits: Mutex<Limits>,
    watchers: Mutex<Vec<JoinHandle<()>>>,
}

/// Whether a container is frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Freezer {
    /// It runs.
    Thawed,
    /// The agent is freezing it.
    Freezing,
    /// It is frozen.
    Frozen,
}

/// An id that is being created. It is free again unless it is [filled](Self::fill).
pub(crate) struct Reservation {
    tasks: Tasks,
    id: String,
    filled: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change of what these guard is one insertion, removal or assignment.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tasks {
    /// No containers yet.
    pub(crate) fn new(namespace: &str, pod: Arc<Pod>, publisher: Publisher) -> Self {
        let containers = Mutex::new(HashMap::new());
        let namespace = namespace.to_owned();
        let host_cpus = tokio::sync::Mutex::default();
        let settled = Notify::new();
        Self { inner: Arc::new(Inner { namespace, pod, publisher, containers, host_cpus, settled }) }
    }

    /// containerd's namespace.
    pub(crate) fn namespace(&self) -> &str {
        &self.inner.namespace
    }

    /// The pod.
    pub(crate) fn pod(&self) -> &Pod {
        &self.inner.pod
    }

    /// Where events go.
    pub(crate) fn publisher(&self) -> &Publisher {
        &self.inner.publisher
    }

    /// Which CPUs and memory nodes of the host the containers have been given.
    pub(super) fn host_cpus_of_containers(&self) -> &tokio::sync::Mutex<HostCpusOfContainers> {
        &self.inner.host_cpus
    }

    /// The agent.
    ///
    /// # Errors
    /// The pod could not be started or its VM has stopped.
    pub(crate) async fn agent(&self) -> Result<Agent, TaskError> {
        self.pod().agent().await.map_err(TaskError::failed)
    }

    /// Makes an agent's answer the caller's, and a lost agent the reason of its loss.
    ///
    /// # Errors
    /// The agent's refusal, or why there is no agent any more.
    pub(crate) async fn answer<T>(&self, answer: ttrpc::Result<T>) -> Result<T, TaskError> {
        match answer {
            Ok(answer) => Ok(answer),
            Err(ttrpc::Error::RpcStatus(status)) => Err(status.into()),
            Err(error) => Err(match self.pod().lost(&error).await {
                Some(report) => TaskError::failed(format!("the pod's virtual machine has stopped: {report}")),
                None => TaskError::failed(error),
            }),
        }
    }

    /// Streams that the guest has taken. One that has not said a word to them is lost.
    ///
    /// # Errors
    /// Why there are none.
    pub(crate) async fn connected<T>(&self, connected: Result<T, StdioError>) -> Result<T, TaskError> {
        match connected {
            Err(StdioError::Stream(error)) if error.kind() == io::ErrorKind::TimedOut => {
                self.answer(Err(ttrpc::Error::Others(error.to_string()))).await
            }
            connected => Ok(connected?),
        }
    }

    /// The pid that the agent has given a process. 0 is that of none: an agent that says so is lost.
    ///
    /// # Errors
    /// It is 0.
    pub(crate) async fn checked(&self, pid: u32) -> Result<u32, TaskError> {
        if pid != 0 {
            return Ok(pid);
        }
        let words = "the agent in the guest has made process number 0, which cannot be";
        self.answer(Err(ttrpc::Error::Others(words.into()))).await
    }

    /// Takes an id for a container to be.
    ///
    /// # Errors
    /// AlreadyExists.
    pub(crate) fn reserve(&self, id: &str) -> Result<Reservation, TaskError> {
        let mut containers = lock(&self.inner.containers);
        if containers.contains_key(id) {
            return Err(TaskError::already_exists(format!("container {id} already exists")));
        }
        containers.insert(id.to_owned(), Slot::Reserved);
        Ok(Reservation { tasks: self.clone(), id: id.to_owned(), filled: false })
    }

    /// The container with this id.
    ///
    /// # Errors
    /// NotFound, with the words of containerd's own shim.
    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>, TaskError> {
        match lock(&self.inner.containers).get(id) {
            Some(Slot::Filled(container)) => Ok(container.clone()),
            Some(Slot::Reserved) | None => Err(TaskError::not_found("container not created")),
        }
    }

    /// The containers.
    pub(crate) fn containers(&self) -> Vec<Arc<Container>> {
        let containers = lock(&self.inner.containers);
        let filled = |slot: &Slot| match slot {
            Slot::Filled(container) => Some(container.clone()),
            Slot::Reserved => None,
        };
        containers.values().filter_map(filled).collect()
    }

    /// The ids of the containers.
    pub(crate) fn ids(&self) -> Vec<String> {
        self.containers().iter().map(|container| container.id.clone()).collect()
    }

    /// What a container to be may join, once the pod's sandbox is there.
    pub(crate) fn pod_namespaces(&self) -> Option<PodNamespaces> {
        let sandbox = self.pod().sandbox()?;
        let containers = lock(&self.inner.containers);
        let own_pid = |slot: &Slot| match slot {
            Slot::Filled(container)
                if container.traits.own_pid_namespace && container.id != self.pod().id() =>
            {
                Some(container.pid_namespace())
            }
            Slot::Filled(_) | Slot::Reserved => None,
        };
        Some(PodNamespaces { sandbox, of_containers: containers.values().filter_map(own_pid).collect() })
    }

    /// Waits until the container with this id is no longer being created.
    pub(crate) async fn settle(&self, id: &str) {
        loop {
            let settled = self.inner.settled.notified();
            if !matches!(lock(&self.inner.containers).get(id), Some(Slot::Reserved)) {
                return;
            }
            settled.await;
        }
    }

    /// Forgets a container.
    pub(crate) fn remove(&self, id: &str) {
        lock(&self.inner.containers).remove(id);
    }

    /// Whether there is no container, nor one to be.
    pub(crate) fn is_empty(&self) -> bool {
        lock(&self.inner.containers).is_empty()
    }
}

impl Reservation {
    /// The container is there.
    pub(crate) fn fill(&mut self, container: Arc<Container>) {
        self.filled = true;
        lock(&self.tasks.inner.containers).insert(self.id.clone(), Slot::Filled(container));
        self.tasks.inner.settled.notify_waiters();
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.filled {
            self.tasks.remove(&self.id);
            self.tasks.inner.settled.notify_waiters();
        }
    }
}

impl Container {
    /// A container whose first process is `init`.
    pub(crate) fn new(
        bundle: PathBuf,
        init: Arc<Process>,
        places: ContainerPlaces,
        hooks: HostHooks,
        traits: Traits,
    ) -> Arc<Self> {
        Arc::new(Self {
            id: init.container.clone(),
            bundle,
            init,
            places,
            hooks,
            traits,
            execs: Mutex::default(),
            freezer: Mutex::new(Freezer::Thawed),
            limits: Mutex::new(traits.limits),
            watchers: Mutex::default(),
        })
    }

    fn pid_namespace(&self) -> PidNamespace {
        let ended = matches!(self.init.phase(), Phase::Stopped(_));
        PidNamespace { container: self.id.clone(), guest_pid: Some(self.init.guest_pid()).filter(|_| !ended) }
    }

    /// The first process for an empty id, else the additional one with this id.
    ///
    /// # Errors
    /// NotFound.
    pub(crate) fn process(&self, exec: &str) -> Result<Arc<Process>, TaskError> {
        if exec.is_empty() {
            return Ok(self.init.clone());
        }
        let found = lock(&self.execs).get(exec).cloned();
        found.ok_or_else(|| TaskError::not_found(format!("process does not exist {exec}")))
    }

    /// Names an additional process.
    ///
    /// # Errors
    /// AlreadyExists.
    pub(crate) fn add_exec(&self, process: Arc<Process>) -> Result<(), TaskError> {
        let mut execs = lock(&self.execs);
        if execs.contains_key(&process.exec) {
            return Err(TaskError::already_exists(format!("id {}", process.exec)));
        }
        execs.insert(process.exec.clone(), process);
        Ok(())
    }

    /// Forgets an additional process.
    pub(crate) fn remove_exec(&self, exec: &str) {
        lock(&self.execs).remove(exec);
    }

    /// The additional processes that run.
    pub(crate) fn running_execs(&self) -> Vec<Arc<Process>> {
        lock(&self.execs).values().filter(|process| process.phase() == Phase::Running).cloned().collect()
    }

    /// Whether it is frozen.
    pub(crate) fn freezer(&self) -> Freezer {
        *lock(&self.freezer)
    }

    /// It is frozen, or no more.
    pub(crate) fn set_freezer(&self, freezer: Freezer) {
        *lock(&self.freezer) = freezer;
    }

    /// What it may use at most.
    pub(crate) fn limits(&self) -> Limits {
        *lock(&self.limits)
    }

    /// It may use more or less from now on.
    pub(crate) fn set_limits(&self, limits: Limits) {
        *lock(&self.limits) = limits;
    }

    /// A task that is to end with the container.
    pub(crate) fn keep_watcher(&self, watcher: JoinHandle<()>) {
        lock(&self.watchers).push(watcher);
    }

    /// Ends those tasks.
    pub(crate) fn end_watchers(&self) {
        for watcher in lock(&self.watchers).drain(..) {
            watcher.abort();
        }
    }
}
