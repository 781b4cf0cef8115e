//! From the kernel's exec of `/init` to a guest that is ready: what the first process does once, without a timer.
//!
//! The host is told as soon as the agent listens; what requests need besides is done while the host turns around,
//! before the first request is read.

mod limits;
mod loopback;
mod mounts;
mod root;

use std::io;
use std::os::fd::OwnedFd;

use rustix::time::{ClockId, clock_gettime};
use saya_agent_api::{AGENT_PORT, LOOPBACK_PORT, READY_PORT, STREAM_PORT};

use crate::clock;
use crate::kernel_log;
use crate::sys::vsock;
use crate::transport::Listener;

/// Why the guest did not come up.
#[derive(Debug, thiserror::Error)]
#[error("boot: cannot {step}: {source}")]
pub(crate) struct BootError {
    step: &'static str,
    source: io::Error,
}

/// Names the step that failed.
trait Step<T> {
    fn step(self, step: &'static str) -> Result<T, BootError>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: &'static str) -> Result<T, BootError> {
        self.map_err(|error| BootError { step, source: error.into() })
    }
}

/// What the first process serves on.
#[derive(Debug)]
pub(crate) struct Listeners {
    /// For ttrpc.
    pub(crate) control: Listener,
    /// For stdio.
    pub(crate) streams: Listener,
    /// For connections to the guest's loopback.
    pub(crate) forwards: Listener,
}

/// The connection that told the host that the agent is ready; it stays open as long as the agent lives.
#[derive(Debug)]
pub(crate) struct ReadyConnection {
    _open: OwnedFd,
}

/// Microseconds since the kernel started.
pub(crate) fn microseconds_since_boot() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(now.tv_nsec).unwrap_or(0);
    seconds * 1_000_000 + nanoseconds / 1_000
}

/// Brings the guest up. `entered` is when this process began, by [`microseconds_since_boot`].
pub(crate) fn bring_up(entered: u64) -> Result<(Listeners, ReadyConnection), BootError> {
    root::make_pivotable().step("put a mount over the initial file system")?;
    mounts::devices()?;
    kernel_log::to_kernel().step("open /dev/kmsg")?;
    let listeners = listen()?;
    let ready = announce(entered)?;
    clock::set().step("set the clock")?;
    mounts::remaining()?;
    loopback::bring_up().step("bring up lo")?;
    limits::raise().step("raise the limit of open files")?;
    Ok((listeners, ready))
}

fn listen() -> Result<Listeners, BootError> {
    let control = vsock::listen(AGENT_PORT).step("listen on the agent's vsock port")?;
    let streams = vsock::listen(STREAM_PORT).step("listen on the vsock port for streams")?;
    let forwards = vsock::listen(LOOPBACK_PORT).step("listen on the vsock port for loopback")?;
    Ok(Listeners {
        control: Listener::new(control).step("watch the agent's vsock port")?,
        streams: Listener::new(streams).step("watch the vsock port for streams")?,
        forwards: Listener::new(forwards).step("watch the vsock port for loopback")?,
    })
}

fn announce(entered: u64) -> Result<ReadyConnection, BootError> {
    let connection = vsock::connect(vsock::HOST, READY_PORT).step("connect to the host's vsock port")?;
    let listening = microseconds_since_boot();
    let line = format!("{{\"entered_user_space_us\":{entered},\"listening_us\":{listening}}}\n");
    rustix::io::write(&connection, line.as_bytes()).step("tell the host that the agent listens")?;
    Ok(ReadyConnection { _open: connection })
}
