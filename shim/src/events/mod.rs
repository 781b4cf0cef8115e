//! What happened to tasks, told to containerd.

mod message;
mod publisher;

pub(crate) use message::{Event, Exit, any};
pub(crate) use publisher::{Address, Publisher};
#[cfg(test)]
pub(crate) use publisher::{ForwardError, Forwarder};
