//! Virtual CPUs: what they are (CPUID), how they start (registers), and the threads that run them.

mod counters;
pub(crate) mod cpuid;
mod msr;
mod registers;
pub(crate) mod thread;

pub use counters::ExitCounters;
pub use cpuid::{CpuidError, Topology};
pub use thread::{Vcpu, VcpuError, VcpuThread};
