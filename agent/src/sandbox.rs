//! The pod: the containers of this guest.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::container::plan::ContainerPlan;
use crate::container::{Container, Surroundings};
use crate::error::{Error, Result};
use crate::stdio::StreamNumbers;

/// The containers by their ids; `None` while one is made or removed.
type Containers = HashMap<String, Option<Arc<Container>>>;

/// All that runs in this guest.
#[derive(Debug)]
pub(crate) struct Sandbox {
    /// What containers need of the agent.
    pub(crate) surroundings: Surroundings,
    containers: Mutex<Containers>,
}

impl Sandbox {
    /// A guest without containers.
    pub(crate) fn new(surroundings: Surroundings) -> Self {
        Self { surroundings, containers: Mutex::default() }
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

    fn containers(&self) -> MutexGuard<'_, Containers> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
