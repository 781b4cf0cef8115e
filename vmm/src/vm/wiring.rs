//! Between a transport and KVM: notifications of queues and the interrupt pass without the VMM's doing.

use std::io;
use std::sync::Arc;

use kvm_ioctls::{IoEventAddress, VmFd};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::devices::virtio::interrupt::USED_BUFFER;
use crate::devices::virtio::mmio::{INTERRUPT_ACK, MmioTransport, QUEUE_NOTIFY};

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
pub(super) struct Wiring {
    vm: Arc<VmFd>,
    /// Nobody reads it: KVM takes what is written to it for done.
    acknowledged: EventFd,
}

impl Wiring {
    pub(super) fn new(vm: Arc<VmFd>) -> io::Result<Self> {
        Ok(Self { vm, acknowledged: EventFd::new(EFD_NONBLOCK)? })
    }

    /// Has KVM handle notifications and interrupt of `transport`.
    pub(super) fn connect(&self, transport: &MmioTransport, place: Place) -> Result<(), WiringError> {
        let notify = IoEventAddress::Mmio(place.address + QUEUE_NOTIFY);
        let refused = |error| WiringError("KVM_IOEVENTFD", error);
        for (queue, eventfd) in (0u32..).zip(transport.notifications()) {
            self.vm.register_ioevent(eventfd, &notify, queue).map_err(refused)?;
        }
        // The bit for used buffers stays set, so that a driver which acknowledges it alone need not come here: it looks
        // into its queues with every interrupt. Other reasons, and both at once, come here and are cleared.
        let acknowledge = IoEventAddress::Mmio(place.address + INTERRUPT_ACK);
        self.vm.register_ioevent(&self.acknowledged, &acknowledge, USED_BUFFER).map_err(refused)?;
        let line = transport.interrupt().line();
        self.vm.register_irqfd(line, place.interrupt.into()).map_err(|error| WiringError("KVM_IRQFD", error))
    }

    /// Undoes [`connect`](Self::connect), or as much of it as was done.
    pub(super) fn disconnect(&self, transport: &MmioTransport, place: Place) {
        // What is not connected is refused, and that is as well.
        let _ = self.vm.unregister_irqfd(transport.interrupt().line(), place.interrupt.into());
        let acknowledge = IoEventAddress::Mmio(place.address + INTERRUPT_ACK);
        let _ = self.vm.unregister_ioevent(&self.acknowledged, &acknowledge, USED_BUFFER);
        let notify = IoEventAddress::Mmio(place.address + QUEUE_NOTIFY);
        for (queue, eventfd) in (0u32..).zip(transport.notifications()) {
            let _ = self.vm.unregister_ioevent(eventfd, &notify, queue);
        }
    }
}
