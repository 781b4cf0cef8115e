//! The host's block devices in containers.

use saya_agent_api::agent::{AttachDeviceRequest, DetachDeviceRequest};
use saya_vmm::control::PluggedDevice;
use serde_json::Value;

use super::error::TaskError;
use super::tasks::Tasks;
use crate::pod::agent::{Agent, no_timeout};
use crate::pod::block_devices::{self, Attached};
use crate::spec::devices::HostBlockDevice;

impl Tasks {
    /// Gives the guest the devices that a container is to have, and the container the guest's numbers of them.
    ///
    /// # Errors
    /// The host has no such device, or the guest cannot be given any more.
    pub(super) async fn attach_devices(
        &self,
        container: &str,
        devices: &[HostBlockDevice],
        guest: &mut Value,
        agent: &Agent,
    ) -> Result<(), TaskError> {
        for device in devices {
            let number = self.acquire_device(container, device, agent).await?;
            if let Some(guest) = guest.as_object_mut() {
                device.place(guest, number);
            }
        }
        Ok(())
    }

    async fn acquire_device(
        &self,
        container: &str,
        device: &HostBlockDevice,
        agent: &Agent,
    ) -> Result<(u32, u32), TaskError> {
        let mut attached = self.pod().block_devices().lock().await;
        if let Some(attached) = attached.iter_mut().find(|attached| attached.is(device)) {
            attached.users.push(container.to_owned());
            return Ok(attached.number);
        }
        let vm = self.pod().vm().map_err(TaskError::failed)?;
        let place = block_devices::attach(device, vm.hot_plug()).await.map_err(TaskError::failed)?;
        let taken = self.take_into_use(place, agent).await;
        match &taken {
            Ok(number) => attached.push(Attached::new(device, place, *number, container)),
            Err(_) => self.detach(place, Some(agent)).await,
        }
        taken
    }

    async fn take_into_use(&self, place: PluggedDevice, agent: &Agent) -> Result<(u32, u32), TaskError> {
        let request = attach_request(place);
        let answer = agent.ask(agent.calls().attach_device(no_timeout(), &request)).await;
        let answer = self.answer(answer).await.map_err(|error| error.context("attaching a block device"))?;
        if answer.block_major == 0 {
            let words = "the agent in the guest has found no block device where one is";
            return self.answer(Err(ttrpc::Error::Others(words.into()))).await;
        }
        Ok((answer.block_major, answer.block_minor))
    }

    /// Takes the devices away that only this container had. What the guest says to it does not matter.
    pub(super) async fn release_devices(&self, container: &str) {
        let mut attached = self.pod().block_devices().lock().await;
        for device in attached.iter_mut() {
            device.users.retain(|user| user != container);
        }
        let unused: Vec<_> = attached.extract_if(.., |device| device.users.is_empty()).collect();
        if unused.is_empty() {
            return;
        }
        let agent = self.agent().await.ok();
        for device in unused {
            self.detach(device.place, agent.as_ref()).await;
        }
    }

    /// Takes a device away, from the guest and then from the machine.
    pub(super) async fn detach(&self, place: PluggedDevice, agent: Option<&Agent>) {
        if let Some(agent) = agent {
            let request = DetachDeviceRequest { slot: place.slot.into(), ..Default::default() };
            if let Err(error) = agent.ask(agent.calls().detach_device(no_timeout(), &request)).await {
                tracing::warn!(slot = place.slot, %error, "the guest has not given a device up");
            }
        }
        let Ok(vm) = self.pod().vm() else { return };
        if let Err(error) = vm.hot_plug().detach(place.slot).await {
            // It goes with the VM.
            tracing::warn!(slot = place.slot, %error, "a device was not taken away");
        }
    }
}

/// What the agent is told of a device.
pub(super) fn attach_request(place: PluggedDevice) -> AttachDeviceRequest {
    AttachDeviceRequest {
        slot: place.slot.into(),
        address: place.address,
        size: place.size,
        interrupt: place.interrupt.into(),
        ..Default::default()
    }
}
