//! How results are shown: tables and timelines that a person takes in at a glance.

pub mod start_timeline;
pub mod statistics;
pub mod table;
pub mod timeline;
