//! The virtio devices of a virtual machine.

use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::balloon::Balloon;
use crate::devices::virtio::rng::Rng;
use crate::event_loop::EventLoop;

/// The devices, in the order in which the guest sees them.
pub(super) fn build(event_loop: &EventLoop) -> Vec<Box<dyn VirtioDevice>> {
    vec![Box::new(Rng::new(event_loop.clone())), Box::new(Balloon::new(event_loop.clone()))]
}
