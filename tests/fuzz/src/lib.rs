//! What a fuzzer calls with bytes of its choice. A target that returns has found nothing.
//!
//! `cargo xtask fuzz` builds these into a libFuzzer program (`libfuzzer/`); the test `replay` feeds them the corpus.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "what it works with is not there: nothing can be tested"
)]

mod agent;
mod control;
mod fuse;
mod input;
mod mmio;
mod vsock;

/// A target.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, and its corpus's directory.
    pub name: &'static str,
    /// Runs it on an input.
    pub run: fn(&[u8]),
}

/// All targets.
pub const TARGETS: &[Target] = &[
    Target { name: "agent", run: agent::run },
    Target { name: "configuration", run: saya_shim::fuzzing::configuration },
    Target { name: "control", run: control::run },
    Target { name: "fuse", run: fuse::run },
    Target { name: "mmio", run: mmio::run },
    Target { name: "spec", run: saya_shim::fuzzing::spec },
    Target { name: "vsock", run: vsock::run },
];

/// The target of that name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.iter().copied().find(|target| target.name == name)
}
