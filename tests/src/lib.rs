//! End-to-end tests, benchmarks, and how their results are shown.

pub mod bench;
pub mod demo;
pub mod leaks;
pub mod report;
