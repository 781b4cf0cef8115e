//! The guest's first process: it runs the containers of a pod inside the microVM.
//!
//! As process 1 it brings the guest up and serves on vsock. Called as `saya-agent serve DIRECTORY CGROUP` it serves
//! on Unix sockets in a directory, on a machine that is up already, with containers' cgroups below the one named:
//! that is for tests. Called as `saya-agent hold-pod` it is the process of a pod that has no container of its own.
//!
//! It has one thread. Containers and their processes begin as clones of it, and what a clone may do follows from that.

mod boot;
mod clock;
mod container;
mod devices;
mod error;
mod forward;
mod kernel_log;
mod network;
mod paths;
mod pod;
mod ports;
mod power;
mod process;
mod reaper;
mod sandbox;
mod serve;
mod service;
mod stdio;
mod sys;
mod transport;

use std::process::ExitCode;

use tokio::runtime::Builder;

fn main() -> ExitCode {
    let entered = boot::microseconds_since_boot();
    let runtime = match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    let result = if std::env::args().nth(1).as_deref() == Some(saya_agent_api::HOLD_POD) {
        // It is process 1 too, but of the pod's pid namespace.
        runtime.block_on(pod::hold())
    } else if rustix::process::getpid().is_init() {
        runtime.block_on(serve::as_first_process(entered))
    } else {
        runtime.block_on(serve::for_tests())
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&*error),
    }
}

/// Says why; the end of the first process makes the kernel panic, which the VMM reports with the lines before it.
fn fail(error: &dyn std::error::Error) -> ExitCode {
    log::error!("{error}");
    eprintln!("saya-agent: {error}");
    ExitCode::FAILURE
}
