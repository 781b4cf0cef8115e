//! What proves Saya: the lab (a machine in which microVMs run where the host's processor cannot run them itself), the
//! end-to-end tests and benchmarks that run in it, and how their results are shown.

pub mod at_terminal;
pub mod bench;
pub mod cni;
pub mod containerd;
pub mod cri;
pub mod ctr;
pub mod demo;
#[allow(clippy::indexing_slicing, reason = "a test that looks for what is not there has failed")]
pub mod e2e;
pub mod lab;
pub mod leaks;
pub mod processes;
pub mod report;
