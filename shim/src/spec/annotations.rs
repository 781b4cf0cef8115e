//! The annotations that the shim reads.

/// `sandbox` or `container`, set by containerd's CRI plugin.
pub(crate) const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";
/// The id of the sandbox that a container belongs to, set by containerd's CRI plugin.
pub(crate) const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";
/// The pod's CPU quota per period in microseconds, set by containerd's CRI plugin.
pub(crate) const SANDBOX_CPU_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
/// The pod's CPU period in microseconds, set by containerd's CRI plugin.
pub(crate) const SANDBOX_CPU_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";
/// The pod's memory limit in bytes, set by containerd's CRI plugin.
pub(crate) const SANDBOX_MEMORY: &str = "io.kubernetes.cri.sandbox-memory";
