//! End-to-end tests: what a user of `ctr` is promised, checked under a real containerd. They run inside the lab (or on a
//! host with hardware virtualization) by the `saya-e2e` binary, against our runtime or, as the control, against runc.

mod bad_input;
pub mod context;
pub mod datagrams;
mod events;
mod exec;
mod files;
mod filesystem;
mod filters;
mod host_mount;
mod identity;
mod image_root;
mod jail;
mod kill_matrix;
mod leftovers;
mod lifecycle;
mod loop_device;
pub mod mapping;
mod mounts;
mod network;
mod oci_spec;
mod pods;
mod pseudo_terminal;
mod resources;
mod restart;
pub mod runner;
mod sandbox_service;
mod scarcity;
pub mod set_id;
mod silent_guest;
mod stdio;
mod task_api;
mod terminal;
pub mod watch;
mod workloads;

use context::Context;
pub(crate) use task_api::Task;

/// One promise.
#[derive(Clone, Copy)]
pub struct Test {
    /// The promise, as a name.
    pub name: &'static str,
    /// Checks it.
    pub check: fn(&Context) -> anyhow::Result<()>,
}

/// The tests of pods, which go by CRI.
pub fn of_pods() -> Vec<Test> {
    pods::TESTS.to_vec()
}

/// Every test, in the order in which they run.
pub fn all() -> Vec<Test> {
    [
        lifecycle::TESTS,
        stdio::TESTS,
        identity::TESTS,
        files::TESTS,
        filesystem::TESTS,
        network::TESTS,
        pods::TESTS,
        sandbox_service::TESTS,
        mounts::TESTS,
        exec::TESTS,
        events::TESTS,
        terminal::TESTS,
        oci_spec::TESTS,
        resources::TESTS,
        workloads::TESTS,
        jail::TESTS,
        filters::TESTS,
        kill_matrix::TESTS,
        silent_guest::TESTS,
        scarcity::TESTS,
        bad_input::TESTS,
        restart::TESTS,
        leftovers::TESTS,
    ]
    .concat()
}
