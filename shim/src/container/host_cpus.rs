//! The host's CPUs and memory nodes that a pod's containers have been given. On the host all of them are one process, the VMM:
//! it runs on what they have together.

use std::collections::BTreeMap;

use super::error::TaskError;
use super::tasks::Tasks;
use crate::cgroup::{self, Confined};
use crate::spec::host_cpus::HostCpus;
use crate::spec::number_list::NumberList;

/// What each of a pod's containers of CRI has been given, but for the one that makes the pod.
#[derive(Debug, Default)]
pub(super) struct HostCpusOfContainers {
    containers: BTreeMap<String, HostCpus>,
    /// What the pod's cgroup was told last.
    told: HostCpus,
}

impl HostCpusOfContainers {
    /// Changes what a container has been given; `None` where there is no such container. Answers what it had before.
    fn change(&mut self, container: &str, given: Option<HostCpus>) -> Option<HostCpus> {
        match given {
            Some(given) => self.containers.insert(container.to_owned(), given),
            None => self.containers.remove(container),
        }
    }

    /// What all of them have together: all that the host has, where one of them has that.
    fn together(&self) -> HostCpus {
        let union = |list: fn(&HostCpus) -> &Option<NumberList>| {
            let mut lists = self.containers.values().map(|given| list(given).clone());
            let first = lists.next()?;
            lists.try_fold(first?, |union, list| Some(union.union(list?)))
        };
        HostCpus { cpus: union(|given| &given.cpus), mems: union(|given| &given.mems) }
    }
}

impl Tasks {
    /// What a container has been given.
    pub(super) async fn host_cpus(&self, container: &str) -> HostCpus {
        self.host_cpus_of_containers().lock().await.containers.get(container).cloned().unwrap_or_default()
    }

    /// Gives a container of CRI CPUs and memory nodes of the host. The pod runs on what its containers then have together.
    ///
    /// # Errors
    /// The host refuses it; then everything is as before.
    pub(super) async fn give_host_cpus(&self, container: &str, given: HostCpus) -> Result<(), TaskError> {
        let mut all = self.host_cpus_of_containers().lock().await;
        self.change_together(&mut all, container, Some(given)).await
    }

    /// As [`give_host_cpus`](Self::give_host_cpus), unless the container has gone meanwhile or none were to be given to it.
    ///
    /// # Errors
    /// The same.
    pub(super) async fn change_host_cpus(&self, container: &str, given: HostCpus) -> Result<(), TaskError> {
        let mut all = self.host_cpus_of_containers().lock().await;
        match all.containers.contains_key(container) {
            true => self.change_together(&mut all, container, Some(given)).await,
            false => Ok(()),
        }
    }

    /// The container is no more.
    pub(super) async fn take_host_cpus_back(&self, container: &str) {
        let mut all = self.host_cpus_of_containers().lock().await;
        if let Err(error) = self.change_together(&mut all, container, None).await {
            tracing::warn!(container, %error, "the pod keeps the CPUs and memory nodes of a container that is no more");
        }
    }

    async fn change_together(
        &self,
        all: &mut HostCpusOfContainers,
        container: &str,
        given: Option<HostCpus>,
    ) -> Result<(), TaskError> {
        let before = all.change(container, given);
        let together = all.together();
        if together == all.told {
            return Ok(());
        }
        let directories = self.pod().cgroup_directories();
        let (wanted, told) = (together.clone(), all.told.clone());
        // A change of memory nodes may move all of the guest's memory.
        let done = tokio::task::spawn_blocking(move || {
            cgroup::confine(&directories, &wanted).inspect_err(|_| {
                // The refusal is what is to be told.
                let _ = cgroup::confine(&directories, &told);
            })
        });
        match done.await.map_err(TaskError::failed)? {
            Ok(confined) => {
                let cpus = together.cpus.as_ref().map(ToString::to_string);
                let mems = together.mems.as_ref().map(ToString::to_string);
                match confined {
                    Confined::Done => {
                        tracing::debug!(cpus, mems, "the pod runs on these CPUs and memory nodes");
                    }
                    Confined::NoController => tracing::warn!(
                        cpus,
                        mems,
                        "CPUs and memory nodes that a pod is given are not heeded: its cgroup has no cpuset controller"
                    ),
                }
                all.told = together;
                Ok(())
            }
            Err(error) => {
                all.change(container, before);
                Err(TaskError::invalid_argument(error))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(cpus: &str, mems: &str) -> HostCpus {
        HostCpus { cpus: cpus.parse().ok(), mems: mems.parse().ok() }
    }

    #[test]
    fn a_pod_runs_on_what_its_containers_have_as_long_as_each_has_some() {
        let mut all = HostCpusOfContainers::default();
        assert_eq!(all.together(), HostCpus::default());
        all.change("one", Some(given("2-3", "0")));
        assert_eq!(all.together(), given("2-3", "0"));
        all.change("two", Some(given("6", "")));
        assert_eq!(all.together(), given("2-3,6", ""));
        all.change("three", Some(HostCpus::default()));
        assert_eq!(all.together(), HostCpus::default(), "one of them may run anywhere");
        assert_eq!(all.change("three", Some(given("4", "1"))), Some(HostCpus::default()));
        assert_eq!(all.together(), given("2-4,6", ""));
        all.change("two", None);
        assert_eq!(all.together(), given("2-4", "0-1"));
        for container in ["one", "three", "nobody"] {
            all.change(container, None);
        }
        assert_eq!(all.together(), HostCpus::default());
    }
}
