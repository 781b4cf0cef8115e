//! Containers of the kata runtime by way of `ctr`.

use std::process::Command;

use crate::bench::runtimes::Runtime;
use crate::ctr::{ctr, finish, remove};

/// `ctr run` with our runtime.
pub(super) fn run_command(flags: &[&str], image: &str, id: &str, command: &[&str]) -> Command {
    Runtime::kata().run_image(flags, image, id, command)
}

/// Runs a container to its end and gives what it printed.
pub(super) fn ctr_run(flags: &[&str], image: &str, id: &str, command: &[&str]) -> anyhow::Result<String> {
    finish(&mut run_command(flags, image, id, command))
}

/// A container that runs in the background. It is removed also when a step fails.
pub(super) struct Container {
    id: &'static str,
    removed: bool,
}

impl Container {
    pub(super) fn start(image: &str, id: &'static str, command: &[&str]) -> anyhow::Result<Self> {
        ctr_run(&["--detach"], image, id, command)?;
        Ok(Self { id, removed: false })
    }

    pub(super) fn exec(&self, command: &[&str]) -> anyhow::Result<String> {
        let exec_id = format!("demo-exec-{}", std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos());
        ctr([&["task", "exec", "--exec-id", &exec_id, self.id], command].concat())
    }

    pub(super) fn remove(mut self) -> anyhow::Result<()> {
        self.removed = true;
        remove(self.id)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if !self.removed
            && let Err(error) = remove(self.id)
        {
            eprintln!("cannot remove container {}: {error:#}", self.id);
        }
    }
}
