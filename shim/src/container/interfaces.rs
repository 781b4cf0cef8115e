//! Interfaces that come to the pod's network between a container's creation and its start, as Docker, nerdctl and
//! `ctr run --cni` have it.

use std::os::fd::AsFd;

use saya_vmm::control::{Device, PluggedDevice};

use super::devices::attach_request;
use super::error::TaskError;
use super::tasks::Tasks;
use crate::network::PodNetwork;
use crate::pod::agent::{Agent, no_timeout};
use crate::pod::{self, vm};

impl Tasks {
    /// Gives the guest the interfaces that have come to the pod's network since it booted.
    ///
    /// # Errors
    /// There is something that cannot be carried over. The interfaces are given back.
    pub(super) async fn take_later_interfaces(
        &self,
        container: &str,
        agent: &Agent,
    ) -> Result<(), TaskError> {
        // By a path there is a network of somebody's who has made it ready before; he may still add to it until the pod
        // is started.
        if self.pod().network_namespace().is_some() && container != self.pod().id() {
            return Ok(());
        }
        let _alone = self.pod().later_interfaces().await;
        let connected = self.pod().connect_later().await.map_err(TaskError::failed_precondition)?;
        let Some(network) = connected else { return Ok(()) };
        let mut places = Vec::new();
        match self.give_interfaces(&network, &mut places, agent).await {
            Ok(()) => {
                self.pod().keep_network(network);
                Ok(())
            }
            Err(error) => {
                for place in places {
                    self.detach(place, Some(agent)).await;
                }
                pod::disconnect(network).await;
                Err(error.context("interfaces that have come after the container's creation"))
            }
        }
    }

    async fn give_interfaces(
        &self,
        network: &PodNetwork,
        places: &mut Vec<PluggedDevice>,
        agent: &Agent,
    ) -> Result<(), TaskError> {
        let hot_plug = self.pod().vm().map_err(TaskError::failed)?.hot_plug();
        let configuration = network.configuration();
        for interface in &network.interfaces {
            let queues: Vec<_> = interface.queues.iter().map(AsFd::as_fd).collect();
            let attached = hot_plug.attach(Device::Interface(vm::described(interface)), &queues).await;
            let place = attached.map_err(|error| {
                TaskError::failed(error).context(&format!("interface {}", interface.name))
            })?;
            places.push(place);
            let answer = agent.ask(agent.calls().attach_device(no_timeout(), &attach_request(place))).await;
            self.answer(answer).await?;
        }
        let configuration = configuration.complete().await.map_err(TaskError::failed)?;
        let answer = agent.ask(agent.calls().configure_network(no_timeout(), &configuration)).await;
        self.answer(answer).await.map(drop)
    }
}
