//! Opening KVM and checking that it can do what this VMM needs.

use kvm_ioctls::{Cap, Kvm};

/// The one version of the KVM API that there is (Linux, Documentation/virt/kvm/api.rst, 4.1).
const API_VERSION: i32 = 12;

/// What the VMM cannot do without, by the kernel's names.
const NEEDED: &[(Cap, &str)] = &[
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::ReadonlyMem, "KVM_CAP_READONLY_MEM"),
    (Cap::SplitIrqchip, "KVM_CAP_SPLIT_IRQCHIP"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::SetIdentityMapAddr, "KVM_CAP_SET_IDENTITY_MAP_ADDR"),
    (Cap::TscDeadlineTimer, "KVM_CAP_TSC_DEADLINE_TIMER"),
    (Cap::GetTscKhz, "KVM_CAP_GET_TSC_KHZ"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// Why KVM is of no use.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// There is no device.
    #[error(
        "{path} does not exist: load the module kvm_intel or kvm_amd, and enable virtualisation in the firmware (or, on a virtual machine, nested virtualisation in its host)"
    )]
    Missing {
        /// The device.
        path: String,
    },
    /// The device is not ours to open.
    #[error(
        "no permission to open {path}: run as root or as a member of the group that owns it (often `kvm`)"
    )]
    Permission {
        /// The device.
        path: String,
    },
    /// The device cannot be opened for another reason.
    #[error("cannot open {path}: {source}")]
    Open {
        /// The device.
        path: String,
        /// The host's answer.
        source: kvm_ioctls::Error,
    },
    /// Not KVM, or not a KVM of this age.
    #[error("{path} speaks KVM API version {found}, not {API_VERSION}: it is not the KVM of a Linux kernel")]
    ApiVersion {
        /// The device.
        path: String,
        /// The version that it speaks.
        found: i32,
    },
    /// KVM cannot do what is needed.
    #[error("the host's KVM lacks {missing}: use a newer host kernel (5.12 or later)")]
    Capabilities {
        /// The capabilities, by the kernel's names.
        missing: String,
    },
    /// More vCPUs than KVM or this VMM can have.
    #[error("{asked} vCPUs are not possible: set `vcpus` to 1 to {limit}")]
    Vcpus {
        /// What was asked for.
        asked: u32,
        /// The most that can be.
        limit: u32,
    },
}

/// The most vCPUs that a VM can have.
pub const VCPU_LIMIT: u32 = 64;

/// Opens `/dev/kvm` and checks it.
///
/// # Errors
/// Whatever makes it unusable.
pub fn open() -> Result<Kvm, KvmError> {
    open_at("/dev/kvm")
}

fn open_at(path: &str) -> Result<Kvm, KvmError> {
    let name = std::ffi::CString::new(path).unwrap_or_default();
    let kvm = Kvm::new_with_path(&name).map_err(|source| match source.errno() {
        libc::ENOENT | libc::ENXIO | libc::ENODEV => KvmError::Missing { path: path.into() },
        libc::EACCES | libc::EPERM => KvmError::Permission { path: path.into() },
        _ => KvmError::Open { path: path.into(), source },
    })?;
    let found = kvm.get_api_version();
    if found != API_VERSION {
        return Err(KvmError::ApiVersion { path: path.into(), found });
    }
    check_capabilities(|capability| kvm.check_extension(capability))?;
    Ok(kvm)
}

fn check_capabilities(has: impl Fn(Cap) -> bool) -> Result<(), KvmError> {
    let missing: Vec<_> = NEEDED.iter().filter(|(cap, _)| !has(*cap)).map(|(_, name)| *name).collect();
    if missing.is_empty() { Ok(()) } else { Err(KvmError::Capabilities { missing: missing.join(", ") }) }
}

/// Checks that a VM with `asked` vCPUs can be.
///
/// # Errors
/// [`KvmError::Vcpus`].
pub fn check_vcpus(asked: u32, kvm: &Kvm) -> Result<(), KvmError> {
    let limit = u32::try_from(kvm.get_max_vcpus()).unwrap_or(VCPU_LIMIT).min(VCPU_LIMIT);
    if (1..=limit).contains(&asked) { Ok(()) } else { Err(KvmError::Vcpus { asked, limit }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_device_is_named_with_the_modules_to_load() {
        let error = open_at("/nonexistent/kvm").unwrap_err().to_string();
        assert!(error.contains("/nonexistent/kvm") && error.contains("kvm_intel"), "{error}");
    }

    #[test]
    fn a_device_that_is_not_kvm_is_told_by_its_version() {
        assert!(matches!(open_at("/dev/null"), Err(KvmError::ApiVersion { .. })));
    }

    #[test]
    fn every_missing_capability_is_named() {
        let error = check_capabilities(|cap| !matches!(cap, Cap::Irqfd | Cap::ImmediateExit)).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("KVM_CAP_IRQFD, KVM_CAP_IMMEDIATE_EXIT"), "{text}");
        assert!(check_capabilities(|_| true).is_ok());
    }
}
