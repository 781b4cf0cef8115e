//! The runtimes that a benchmark compares, as `ctr run` is told of them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// The image that benchmarks run.
pub const BUSYBOX: &str = "docker.io/library/busybox:latest";

/// The image of a server that benchmarks and the demonstration run.
pub const REDIS: &str = "docker.io/library/redis:latest";

/// The image of a server of web pages.
pub const NGINX: &str = "docker.io/library/nginx:latest";

/// The image of a program that measures networks.
pub const IPERF3: &str = "docker.io/library/iperf3:latest";

/// One way to run a container.
#[derive(Debug, Clone)]
pub struct Runtime {
    /// Its name in tables.
    pub name: &'static str,
    arguments: Vec<String>,
}

impl Runtime {
    /// Ours.
    pub fn kata() -> Self {
        Self { name: "kata", arguments: vec!["--runtime".into(), "io.containerd.kata.v2".into()] }
    }

    /// The control.
    pub fn runc() -> Self {
        Self { name: "runc", arguments: vec!["--runtime".into(), "io.containerd.runc.v2".into()] }
    }

    /// gVisor under runc's shim. It has no way to be told `--network=none` through containerd, so a wrapper in
    /// `scratch` tells it. `None` where `runsc` is not on `PATH`.
    ///
    /// # Errors
    /// When the wrapper cannot be written.
    pub fn runsc(scratch: &Path) -> anyhow::Result<Option<Self>> {
        let Some(runsc) = on_path("runsc") else { return Ok(None) };
        let wrapper = scratch.join("runsc-network-none");
        let script = format!("#!/bin/sh\nexec {} --network=none \"$@\"\n", runsc.display());
        fs::write(&wrapper, script).with_context(|| format!("cannot write {}", wrapper.display()))?;
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
        let mut runtime = Self::runc();
        runtime.name = "runsc";
        runtime.arguments.extend(["--runc-binary".into(), wrapper.display().to_string()]);
        Ok(Some(runtime))
    }

    /// `ctr run` of busybox with this runtime: `flags`, then the container's id and its command.
    pub fn run(&self, flags: &[&str], id: &str, command: &[&str]) -> Command {
        self.run_image(flags, BUSYBOX, id, command)
    }

    /// `ctr run` with this runtime: `flags` before the image, and the container's id and command after it.
    pub fn run_image(&self, flags: &[&str], image: &str, id: &str, command: &[&str]) -> Command {
        let mut ctr = Command::new("ctr");
        ctr.arg("run").args(&self.arguments).args(flags).arg(image).arg(id).args(command);
        ctr.stdin(Stdio::null());
        ctr
    }
}

/// Runs `command` to its end and says how long it took.
///
/// # Errors
/// When it cannot be started or does not end with status 0; the message holds what it printed.
pub fn timed(command: &mut Command) -> anyhow::Result<Duration> {
    let begin = Instant::now();
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    let took = begin.elapsed();
    if !output.status.success() {
        bail!("{command:?} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(took)
}

pub(super) fn on_path(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|directory| directory.join(program))
        .find(|path| path.is_file())
}
