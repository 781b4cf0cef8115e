//! End-to-end tests, benchmarks, and how their results are shown.

pub mod bench;
pub mod ctr;
pub mod demo;
pub mod e2e;
pub mod leaks;
pub mod report;
