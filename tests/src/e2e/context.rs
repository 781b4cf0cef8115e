//! What a test works with: the runtime under test, containers by way of `ctr`, a scratch directory.

use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

pub(super) use super::image_root::ImageRoot;
pub(super) use crate::bench::runtimes::{BUSYBOX, NGINX, REDIS};
pub(super) use crate::ctr::ctr;
use crate::ctr::remove;

/// Sends `input` and the end of input once the process has printed a line, and gives all that it printed and how it ended.
/// An end of input that comes while the process is still being made is lost by `ctr`, with any runtime.
pub(super) fn converse(mut child: Child, input: &[u8]) -> anyhow::Result<(String, ExitStatus)> {
    let mut output = BufReader::new(child.stdout.take().context("no standard output")?);
    let mut printed = String::new();
    output.read_line(&mut printed)?;
    child.stdin.take().context("no standard input")?.write_all(input)?;
    output.read_to_string(&mut printed)?;
    Ok((printed, child.wait()?))
}

/// How long [`eventually`] waits.
const PATIENCE: Duration = Duration::from_secs(60);

/// The runtime under test, and a directory of the test's own.
pub struct Context {
    /// containerd's name of the runtime.
    pub runtime: String,
    /// CRI's runtime handler for pods, where it is not the usual one of the runtime.
    pub handler: Option<String>,
    /// Empty at the test's beginning, removed after its end.
    pub scratch: PathBuf,
    /// Whether the long form of a test is wanted.
    pub long: bool,
}

/// What a container printed and how it ended.
pub(super) struct Ended {
    pub(super) status: Option<i32>,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: String,
}

impl Ended {
    /// Its standard output as text.
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Asserts the exit status, showing what was printed otherwise.
    pub(super) fn expect_status(self, expected: i32) -> anyhow::Result<Self> {
        ensure!(
            self.status == Some(expected),
            "ended with {:?} instead of {expected}: {self:?}",
            self.status
        );
        Ok(self)
    }
}

impl fmt::Debug for Ended {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let beginning: String = self.text().chars().take(400).collect();
        write!(formatter, "status {:?}, printed {beginning:?}, errors {:?}", self.status, self.stderr)
    }
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        Self { status: output.status.code(), stdout: output.stdout, stderr }
    }
}

/// Why a test does not apply to the runtime under test.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NotApplicable(pub(super) &'static str);

impl Context {
    /// Whether the runtime under test is not ours, but what ours is compared with.
    pub(super) fn is_control(&self) -> bool {
        self.runtime == "io.containerd.runc.v2"
    }

    /// Ends a test, as skipped, that says nothing about the control.
    ///
    /// # Errors
    /// [`NotApplicable`], under the control.
    pub(super) fn for_ours_alone(&self, why: &'static str) -> Result<(), NotApplicable> {
        if self.is_control() { Err(NotApplicable(why)) } else { Ok(()) }
    }

    /// Ends a test, as skipped, that is run in its long form alone.
    ///
    /// # Errors
    /// [`NotApplicable`], where the short forms run.
    pub(super) fn in_the_long_form_alone(&self) -> Result<(), NotApplicable> {
        if self.long { Ok(()) } else { Err(NotApplicable("it takes long: run it with --long")) }
    }

    /// `ctr run` with `flags`, not started.
    pub(super) fn run_command(&self, flags: &[&str], image: &str, id: &str, command: &[&str]) -> Command {
        let mut ctr = Command::new("ctr");
        ctr.args(["run", "--runtime", &self.runtime]).args(flags).arg(image).arg(id).args(command);
        ctr.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        ctr
    }

    /// Runs busybox to its end and removes it.
    pub(super) fn run(&self, flags: &[&str], id: &str, command: &[&str]) -> anyhow::Result<Ended> {
        let flags = [&["--rm"], flags].concat();
        Ok(self.run_command(&flags, BUSYBOX, id, command).output().context("cannot start ctr")?.into())
    }

    /// Runs busybox to its end with `input` on its standard input.
    pub(super) fn run_with_input(
        &self,
        flags: &[&str],
        id: &str,
        command: &[&str],
        input: &[u8],
    ) -> anyhow::Result<Ended> {
        let flags = [&["--rm"], flags].concat();
        with_input(self.run_command(&flags, BUSYBOX, id, command), input)
    }

    /// Starts a container in the background.
    pub(super) fn start(
        &self,
        image: &str,
        id: &str,
        flags: &[&str],
        command: &[&str],
    ) -> anyhow::Result<Running> {
        let flags = [&["--detach"], flags].concat();
        let ended: Ended =
            self.run_command(&flags, image, id, command).output().context("cannot start ctr")?.into();
        ended.expect_status(0)?;
        Ok(Running { id: id.to_owned() })
    }

    /// Starts busybox in the foreground and returns once it has printed a line.
    pub(super) fn start_attached(&self, id: &str, command: &[&str]) -> anyhow::Result<Attached> {
        let mut child =
            self.run_command(&["--rm"], BUSYBOX, id, command).spawn().context("cannot start ctr")?;
        let mut output = BufReader::new(child.stdout.take().context("no standard output")?);
        let mut line = String::new();
        output.read_line(&mut line).context("cannot read what the container printed")?;
        if line.is_empty() {
            bail!("the container printed nothing: {:?}", Ended::from(child.wait_with_output()?));
        }
        Ok(Attached { id: id.to_owned(), child, line: line.trim().to_owned() })
    }
}

/// A container in the background. Whatever is left of it is removed by the runner.
pub(super) struct Running {
    pub(super) id: String,
}

impl Running {
    /// `ctr task exec`, not started.
    pub(super) fn exec_command(&self, flags: &[&str], exec_id: &str, command: &[&str]) -> Command {
        let mut ctr = Command::new("ctr");
        ctr.args(["task", "exec", "--exec-id", exec_id]).args(flags).arg(&self.id).args(command);
        ctr.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        ctr
    }

    /// Runs a process in the container to its end.
    pub(super) fn exec(&self, exec_id: &str, command: &[&str]) -> anyhow::Result<Ended> {
        Ok(self.exec_command(&[], exec_id, command).output().context("cannot start ctr")?.into())
    }

    /// Kills and removes it.
    pub(super) fn remove(&self) -> anyhow::Result<()> {
        remove(&self.id)
    }
}

/// A container in the foreground of a `ctr run`.
pub(super) struct Attached {
    pub(super) id: String,
    /// The first line that it printed.
    pub(super) line: String,
    child: Child,
}

impl Attached {
    /// Sends its first process a signal.
    pub(super) fn kill(&self, signal: &str) -> anyhow::Result<()> {
        ctr(["task", "kill", "--signal", signal, &self.id]).map(drop)
    }

    /// How its `ctr run` ended.
    pub(super) fn wait(mut self) -> anyhow::Result<ExitStatus> {
        Ok(self.child.wait()?)
    }
}

/// Runs `command` to its end with `input` on its standard input.
pub(super) fn with_input(mut command: Command, input: &[u8]) -> anyhow::Result<Ended> {
    let mut child = command.stdin(Stdio::piped()).spawn().context("cannot start ctr")?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    thread::scope(|scope| {
        let writer = scope.spawn(move || stdin.write_all(input));
        let ended = Ended::from(child.wait_with_output()?);
        let written = writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))?;
        written.with_context(|| format!("the container took not all its input: {ended:?}"))?;
        Ok(ended)
    })
}

/// Waits until `condition` holds, for as long as a slow machine may need.
pub(super) fn eventually(
    what: &str,
    mut condition: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let begin = Instant::now();
    while !condition()? {
        ensure!(begin.elapsed() < PATIENCE, "{what}: not so after {} s", PATIENCE.as_secs());
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// A `--mount` flag's value for a bind mount.
pub(super) fn bind(source: &Path, destination: &str, options: &str) -> String {
    format!("type=bind,src={},dst={destination},options={options}", source.display())
}
