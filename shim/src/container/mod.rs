//! The containers of a pod and what containerd does with them.

mod control;
mod create;
mod delete;
mod devices;
mod error;
mod exit;
mod hooks;
mod host_cpus;
mod interfaces;
#[cfg(test)]
mod lifecycle_tests;
mod limits;
mod oom_score;
mod process;
mod start;
mod tasks;
mod traits;

pub(crate) use create::CreateRequest;
pub(crate) use error::{TaskError, complete};
pub(crate) use process::{Phase, Process};
pub(crate) use tasks::{Freezer, Tasks};
