//! Between a transport and KVM: notifications of queues and the interrupt pass without the VMM's doing.

use std::sync::Arc;

use kvm_ioctls::{IoEventAddress, VmFd};

use crate::devices::virtio::mmio::{MmioTransport, QUEUE_NOTIFY};

/// Where a device is: the address of its registers, and its interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) address: u64,
    pub(super) interrupt: u8,
}

/// Which call KVM has refused, and its answer.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("{0}: {1}")]
pub(super) struct WiringError(pub(super) &'static str, pub(super) kvm_ioctls::Error);

/// Connects transports to KVM.
#[derive(Debug)]
pub(super) struct Wiring(pub(super) Arc<VmFd>);

impl Wiring {
    /// Has KVM handle notifications and interrupt of `transport`.
    pub(super) fn connect(&self, transport: &MmioTransport, place: Place) -> Result<(), WiringError> {
        let notify = IoEventAddress::Mmio(place.address + QUEUE_NOTIFY);
        let refused = |error| WiringError("KVM_IOEVENTFD", error);
        for (queue, eventfd) in (0u32..).zip(transport.notifications()) {
            self.0.register_ioevent(eventfd, &notify, queue).map_err(refused)?;
        }
        let line = transport.interrupt().line();
        self.0.register_irqfd(line, place.interrupt.into()).map_err(|error| WiringError("KVM_IRQFD", error))
    }

    /// Undoes [`connect`](Self::connect), or as much of it as was done.
    pub(super) fn disconnect(&self, transport: &MmioTransport, place: Place) {
        // What is not connected is refused, and that is as well.
        let _ = self.0.unregister_irqfd(transport.interrupt().line(), place.interrupt.into());
        let notify = IoEventAddress::Mmio(place.address + QUEUE_NOTIFY);
        for (queue, eventfd) in (0u32..).zip(transport.notifications()) {
            let _ = self.0.unregister_ioevent(eventfd, &notify, queue);
        }
    }
}
