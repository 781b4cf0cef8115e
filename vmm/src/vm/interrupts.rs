//! How interrupts reach the guest: local APICs in KVM, an I/O APIC of ours, an irqfd per device between them.

use std::io;
use std::sync::Arc;

use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_enable_cap, kvm_irq_routing_entry,
};
use kvm_ioctls::VmFd;

use crate::devices::io_apic::{Route, Router};

/// Has KVM make a local APIC for each vCPU, and nothing else of a PC's interrupt controllers.
pub(super) fn create_local_apics(vm: &VmFd, io_apic_inputs: u8) -> Result<(), kvm_ioctls::Error> {
    let mut capability = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
    if let Some(argument) = capability.args.first_mut() {
        *argument = io_apic_inputs.into();
    }
    vm.enable_cap(&capability)
}

/// Tells KVM to which messages the inputs' irqfds lead.
pub(super) struct KvmRouter(pub(super) Arc<VmFd>);

impl Router for KvmRouter {
    fn set(&self, routes: &[Route]) -> io::Result<()> {
        let entries: Vec<_> = routes.iter().map(entry).collect();
        let routing = KvmIrqRouting::from_entries(&entries).map_err(|_| io::ErrorKind::OutOfMemory)?;
        self.0.set_gsi_routing(&routing).map_err(io::Error::from)
    }
}

fn entry(route: &Route) -> kvm_irq_routing_entry {
    let mut entry =
        kvm_irq_routing_entry { gsi: route.input, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    entry.u.msi.address_lo = route.address;
    entry.u.msi.data = route.data;
    entry
}
