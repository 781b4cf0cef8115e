//! The host as the lab: it can run microVMs by itself.

use std::fs;

/// Whether KVM on this machine uses the processor's own virtualisation: one of its two modules for x86 is loaded, and
/// /dev/kvm opens. A /dev/kvm without such a module is some other implementation, on which Linux may not boot.
#[must_use]
pub fn runs_microvms() -> bool {
    let module = ["kvm_intel", "kvm_amd"]
        .iter()
        .any(|name| fs::exists(format!("/sys/module/{name}")).unwrap_or(false));
    module && fs::File::options().read(true).write(true).open("/dev/kvm").is_ok()
}
