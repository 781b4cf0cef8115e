//! The pod: the containers of this guest.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use saya_agent_api::agent::ConfigureNetworkRequest;

use crate::container::plan::{ContainerPlan, Sysctl};
use crate::container::{Container, Surroundings};
use crate::error::{Action, Error, Result};
use crate::network;
use crate::stdio::StreamNumbers;

/// The containers by their ids; `None` while one is made or removed.
type Containers = HashMap<String, Option<Arc<Container>>>;

/// All that runs in this guest.
#[derive(Debug)]
pub(crate) struct Sandbox {
    /// What containers need of the agent.
    pub(crate) surroundings: Surroundings,
    containers: Mutex<Containers>,
    /// What the containers' specs have set of the network that they share, in the order of their creation, each sysctl once.
    network_sysctls: Mutex<Vec<Sysctl>>,
}

impl Sandbox {
    /// A guest without containers.
    pub(crate) fn new(surroundings: Surroundings) -> Self {
        Self { surroundings, containers: Mutex::default(), network_sysctls: Mutex::default() }
    }

    /// The container with this id.
    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>> {
        let containers = self.containers();
        containers
            .get(id)
            .and_then(Option::as_ref)
            .map(Arc::clone)
            .ok_or_else(|| Error::NoSuchContainer(id.to_owned()))
    }

    /// Builds a container.
    pub(crate) async fn create(
        &self,
        plan: &ContainerPlan,
        streams: StreamNumbers,
    ) -> Result<Arc<Container>> {
        {
            let mut containers = self.containers();
            if containers.contains_key(&plan.id) {
                return Err(Error::ContainerExists(plan.id.clone()));
            }
            containers.insert(plan.id.clone(), None);
        }
        let made = Container::create(plan, streams, &self.surroundings).await;
        let mut containers = self.containers();
        match made {
            Ok(container) => {
                remember(&mut self.network_sysctls(), &plan.sysctls);
                containers.insert(plan.id.clone(), Some(Arc::clone(&container)));
                Ok(container)
            }
            Err(error) => {
                containers.remove(&plan.id);
                Err(error)
            }
        }
    }

    /// Removes a container whose first process has ended.
    pub(crate) async fn remove(&self, id: &str) -> Result<()> {
        let container = self.container(id)?;
        container.remove().await?;
        self.containers().remove(id);
        Ok(())
    }

    /// Gives the guest its network, which may have changed since containers were created: what their specs have set still
    /// counts for more than what the namespace on the host has.
    pub(crate) fn configure_network(&self, request: &ConfigureNetworkRequest) -> Result<()> {
        network::configure(request)?;
        for sysctl in self.network_sysctls().iter() {
            sysctl.set().action(|| format!("set {} to {:?} once more", sysctl.name(), sysctl.value))?;
        }
        Ok(())
    }

    fn network_sysctls(&self) -> MutexGuard<'_, Vec<Sysctl>> {
        self.network_sysctls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn containers(&self) -> MutexGuard<'_, Containers> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Adds what a container's spec sets of the network to what is `known`: of each sysctl the last value, however often a container is made
/// anew.
fn remember(known: &mut Vec<Sysctl>, sysctls: &[Sysctl]) {
    for sysctl in sysctls.iter().filter(|sysctl| sysctl.is_of_network()) {
        known.retain(|earlier| earlier.path != sysctl.path);
        known.push(sysctl.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_each_network_sysctl_the_last_value_is_remembered_however_often_containers_come() {
        let sysctl = |name, value| Sysctl::new(name, value).unwrap();
        let mut known = Vec::new();
        for value in ["1", "2", "3"] {
            remember(&mut known, &[sysctl("net.core.somaxconn", value), sysctl("kernel.msgmax", value)]);
            remember(&mut known, &[sysctl("net.ipv4.ip_forward", "1")]);
        }
        assert_eq!(known, [sysctl("net.core.somaxconn", "3"), sysctl("net.ipv4.ip_forward", "1")]);
    }
}
