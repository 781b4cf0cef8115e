//! The ttrpc protocol that shim and agent share: the messages and the service of `proto/agent.proto`, and the
//! few numbers on which both sides must agree.

use std::time::Duration;

/// The messages.
#[allow(warnings, clippy::all, clippy::pedantic, clippy::restriction)]
pub mod agent {
    include!(concat!(env!("OUT_DIR"), "/agent.rs"));
}

/// The service: [`AgentClient`](service::AgentClient) for the shim, [`Agent`](service::Agent) for the agent.
#[allow(warnings, clippy::all, clippy::pedantic, clippy::restriction)]
pub mod service {
    // What is generated names its messages by `super::agent`.
    include!(concat!(env!("OUT_DIR"), "/agent_ttrpc.rs"));
}

/// The vsock port in the guest on which the agent serves [`service::Agent`].
pub const AGENT_PORT: u32 = 1024;

/// The vsock port in the guest that takes stdio streams: eight bytes of stream number, big-endian, then bytes.
pub const STREAM_PORT: u32 = 1025;

/// The vsock port in the guest whose connections are passed on to TCP servers on the guest's loopback: two bytes of
/// port number, big-endian, then bytes.
pub const LOOPBACK_PORT: u32 = 1026;

/// The vsock port on the host (CID 2) to which the agent connects once it listens on the ports above, and
/// which it keeps open as long as it lives. It writes one line of JSON, a [`READY_LINE_LIMIT`] bytes at most:
/// `{"entered_user_space_us":…,"listening_us":…}`, both in microseconds of `CLOCK_BOOTTIME`.
pub const READY_PORT: u32 = 1024;

/// The most bytes that the line on [`READY_PORT`] may have.
pub const READY_LINE_LIMIT: usize = 512;

/// How long the agent waits for a stream that a request named and that has not connected yet.
pub const STREAM_TIMEOUT: Duration = Duration::from_secs(30);

/// Where the agent mounts what the host shares, [`PRIVATE_SHARE`] and [`LIVE_SHARE`] by their names. The shim writes paths
/// below it into the specs it translates.
pub const SHARE_PATH: &str = "/run/saya/share";

/// The tag of the virtio-fs device with what only the guest writes: root file systems, as `<container>/rootfs`.
pub const PRIVATE_SHARE: &str = "private";

/// The tag of the virtio-fs device with what the host writes, too: volumes, as `<number>`.
pub const LIVE_SHARE: &str = "live";

/// Where the agent mounts a pod's volumes in memory, each by its name.
pub const MEMORY_PATH: &str = "/run/saya/memory";

/// An empty directory of the guest's: the root file system of a pod's own process, which is the agent's program (at
/// [`AGENT_PROGRAM`]) with the argument [`HOLD_POD`].
pub const POD_ROOT: &str = "/run/saya/pod";

/// Where the agent's program is in the guest.
pub const AGENT_PROGRAM: &str = "/init";

/// The argument with which the agent's program does nothing but hold a pod's namespaces and reap what is orphaned in them.
pub const HOLD_POD: &str = "hold-pod";
