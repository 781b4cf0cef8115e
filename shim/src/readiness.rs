//! Waiting for descriptors to become ready.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use saya_vmm::control::ShimEnd;
use tokio::io::unix::AsyncFd;

/// What owns one descriptor, the same as long as it lives.
pub(crate) trait OwnsDescriptor: AsRawFd {}

impl OwnsDescriptor for OwnedFd {}
impl OwnsDescriptor for ShimEnd {}

/// Registers a descriptor with the event loop.
///
/// # Errors
/// What epoll_ctl(2) returned: a regular file has no readiness.
pub(crate) fn register<T: OwnsDescriptor>(owner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: `owner` holds its descriptor open and the same until it is dropped, which AsyncFd does after it has
    // taken the descriptor out of the event loop.
    unsafe { AsyncFd::register(owner) }.map_err(io::Error::from)
}

/// Lets the others on this thread have theirs when this task has had its share.
///
/// To be awaited in each round of a loop that goes on for as long as descriptors are ready, since that is for whoever is at
/// their other ends to decide: waiting for a descriptor that is ready already is no wait.
pub(crate) async fn take_turns() {
    tokio::task::consume_budget().await;
}
