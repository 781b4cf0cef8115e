//! What the kernel counts for a cgroup.

use std::collections::HashMap;
use std::fs;

use super::Cgroup;
use crate::error::{Action, Result};

/// The files that a container's figures are made from. Those of controllers that the kernel lacks are left out.
const FILES: [&str; 24] = [
    "cpu.stat",
    "cpu.max",
    "cpu.weight",
    "cpu.pressure",
    "cpuset.cpus.effective",
    "cpuset.mems.effective",
    "io.stat",
    "io.pressure",
    "memory.current",
    "memory.peak",
    "memory.min",
    "memory.low",
    "memory.high",
    "memory.max",
    "memory.stat",
    "memory.events",
    "memory.pressure",
    "memory.swap.current",
    "memory.swap.max",
    "memory.swap.events",
    "pids.current",
    "pids.max",
    "rdma.current",
    "rdma.max",
];

impl Cgroup {
    /// The files as the kernel prints them, by name.
    pub(crate) fn statistics(&self) -> Result<HashMap<String, String>> {
        let mut files = HashMap::new();
        for name in FILES.map(str::to_owned).into_iter().chain(self.huge_page_files()?) {
            if let Some(text) = self.read(&name)? {
                files.insert(name, text);
            }
        }
        Ok(files)
    }

    /// Which sizes of huge pages there are depends on the processor.
    fn huge_page_files(&self) -> Result<Vec<String>> {
        let action = || format!("list {}", self.file("").display());
        let mut names = Vec::new();
        for entry in fs::read_dir(self.file("")).action(action)? {
            let name = entry.action(action)?.file_name().to_string_lossy().into_owned();
            if name.starts_with("hugetlb.") {
                names.push(name);
            }
        }
        Ok(names)
    }
}
