//! The build steps: unpack, patch, configure, check, compile, strip.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use super::{Error, SOURCE_TARBALL, fragments, patches};

/// A build step failed.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// A command ended with an error.
    #[error("the guest kernel's build failed: `{command}` ended with {status}; log {}, its end:\n{tail}", log.display())]
    Failed {
        /// The command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// The file with everything that the build wrote.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
}

/// What `make` is told so that two builds give the same bytes (Documentation/kbuild/reproducible-builds.rst).
const REPRODUCIBLE: &[(&str, &str)] = &[
    ("KBUILD_BUILD_TIMESTAMP", "Thu Jan  1 00:00:00 UTC 1970"),
    ("KBUILD_BUILD_USER", "saya"),
    ("KBUILD_BUILD_HOST", "saya"),
    ("KBUILD_BUILD_VERSION", "1"),
    ("LC_ALL", "C"),
    ("TZ", "UTC"),
];

/// Variables of a surrounding `make` or compiler set-up that would change the build.
const UNWANTED: &[&str] =
    &["MAKEFLAGS", "MAKELEVEL", "ARCH", "CROSS_COMPILE", "KCFLAGS", "KBUILD_OUTPUT", "O"];

/// The number of steps that a build took when this was written; only for the percentage shown.
const USUAL_STEPS: usize = 2_000;

/// How often progress is told at most.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);

/// How many of the log's last lines an error shows.
const TAIL_LINES: usize = 25;

/// Builds the kernel in `scratch` and puts `vmlinux`, `System.map` and `config` into `result`.
pub(super) fn kernel(
    scratch: &Path,
    result: &Path,
    log: &Path,
    progress: &mut dyn FnMut(&str),
) -> Result<(), Error> {
    let mut log = Log::create(log)?;
    progress("guest kernel: unpacking the source");
    log.run("tar", tar(scratch), &mut |_| {})?;
    patch(scratch, &mut log)?;
    configure(scratch, &mut log)?;
    compile(scratch, &mut log, progress)?;
    collect(scratch, result, &mut log)
}

fn tar(scratch: &Path) -> Command {
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--strip-components=1", "--file", SOURCE_TARBALL, "--directory"]).arg(scratch);
    tar
}

/// Applies our patches. One whose surroundings have changed is refused: somebody has to look at it again.
fn patch(source: &Path, log: &mut Log) -> Result<(), Error> {
    for (name, text) in patches::ALL {
        let file = source.join(name);
        fs::write(&file, text).map_err(Error::file("write", &file))?;
        let mut patch = Command::new("patch");
        patch.current_dir(source).args(["--strip=1", "--fuzz=0", "--batch", "--forward", "--input", name]);
        log.run("patch", patch, &mut |_| {})?;
    }
    Ok(())
}

/// `make` in the source tree itself: a separate output directory would put absolute paths into the kernel.
fn make(source: &Path, arguments: &[&str]) -> Command {
    let mut make = Command::new("make");
    make.current_dir(source).args(arguments).envs(REPRODUCIBLE.iter().copied());
    for name in UNWANTED {
        make.env_remove(name);
    }
    make
}

fn configure(source: &Path, log: &mut Log) -> Result<(), Error> {
    let wanted = source.join("wanted.config");
    fs::write(&wanted, fragments::joined()).map_err(Error::file("write", &wanted))?;
    let mut make = make(source, &["allnoconfig"]);
    make.env("KCONFIG_ALLCONFIG", &wanted);
    log.run("make", make, &mut |_| {})?;
    let config = source.join(".config");
    let granted = fs::read_to_string(&config).map_err(Error::file("read", &config))?;
    Ok(fragments::check(&granted, source)?)
}

fn compile(source: &Path, log: &mut Log, progress: &mut dyn FnMut(&str)) -> Result<(), Error> {
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let mut meter = Meter::new(Instant::now());
    log.run("make", make(source, &[&format!("-j{jobs}"), "vmlinux"]), &mut |line| {
        if let Some(text) = meter.line(line, Instant::now()) {
            progress(&text);
        }
    })
}

fn collect(source: &Path, result: &Path, log: &mut Log) -> Result<(), Error> {
    let mut strip = Command::new("strip");
    strip.current_dir(source).args(["--strip-all", "-o"]).arg(result.join("vmlinux")).arg("vmlinux");
    log.run("strip", strip, &mut |_| {})?;
    for (from, to) in [("System.map", "System.map"), (".config", "config")] {
        fs::copy(source.join(from), result.join(to)).map_err(Error::file("copy", &source.join(from)))?;
    }
    Ok(())
}

/// Turns the lines of `make` into a line of progress now and then.
struct Meter {
    start: Instant,
    told: Instant,
    steps: usize,
}

impl Meter {
    fn new(start: Instant) -> Self {
        Self { start, told: start, steps: 0 }
    }

    fn line(&mut self, line: &str, now: Instant) -> Option<String> {
        self.steps += usize::from(is_step(line));
        if now - self.told < PROGRESS_INTERVAL {
            return None;
        }
        self.told = now;
        let percent = (self.steps * 100 / USUAL_STEPS).min(99);
        let seconds = (now - self.start).as_secs();
        Some(format!("guest kernel: compiling, about {percent} % ({} steps in {seconds} s)", self.steps))
    }
}

/// A step of `make`'s short output is two spaces and a name in capitals: `  CC      init/main.o`.
fn is_step(line: &str) -> bool {
    line.strip_prefix("  ").is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_uppercase()))
}

/// The file that keeps all that the build's commands write.
struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    fn create(path: &Path) -> Result<Self, Error> {
        let file = File::create(path).map_err(Error::file("create", path))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Runs a command to its end. Each line that it writes goes to the file and to `seen`.
    fn run(
        &mut self,
        program: &'static str,
        mut command: Command,
        seen: &mut dyn FnMut(&str),
    ) -> Result<(), Error> {
        let text = format!("{command:?}");
        let file_error = |error| Error::File { action: "write", path: self.path.clone(), error };
        let (output, input) = io::pipe().map_err(|error| Error::NoProgram { program, error })?;
        let second = input.try_clone().map_err(|error| Error::NoProgram { program, error })?;
        command.stdin(std::process::Stdio::null()).stdout(input).stderr(second);
        let mut child = command.spawn().map_err(|error| Error::NoProgram { program, error })?;
        // The command holds our writing ends of the pipe; without this the pipe would never end.
        drop(command);
        let mut tail = Tail::default();
        for line in BufReader::new(output).split(b'\n') {
            let line = line.map_err(file_error)?;
            let line = String::from_utf8_lossy(&line);
            writeln!(self.file, "{line}").map_err(file_error)?;
            seen(&line);
            tail.push(&line);
        }
        let status = child.wait().map_err(|error| Error::NoProgram { program, error })?;
        if status.success() {
            return Ok(());
        }
        let (log, tail) = (self.path.clone(), tail.text());
        Err(CompileError::Failed { command: text, status, log, tail }.into())
    }
}

/// The last lines of an output.
#[derive(Default)]
struct Tail(std::collections::VecDeque<String>);

impl Tail {
    fn push(&mut self, line: &str) {
        if self.0.len() == TAIL_LINES {
            self.0.pop_front();
        }
        self.0.push_back(line.to_owned());
    }

    fn text(&self) -> String {
        self.0.iter().map(|line| format!("{line}\n")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_counts_steps_and_is_told_only_now_and_then() {
        let start = Instant::now();
        let mut meter = Meter::new(start);
        assert_eq!(meter.line("  CC      init/main.o", start), None);
        assert_eq!(meter.line("warning: CC is not a step here", start), None);
        let told = meter.line("  AR      init/built-in.a", start + Duration::from_secs(11));
        assert_eq!(told.as_deref(), Some("guest kernel: compiling, about 0 % (2 steps in 11 s)"));
        assert_eq!(meter.line("  LD      vmlinux", start + Duration::from_secs(12)), None);
    }

    #[test]
    fn progress_never_claims_the_end() {
        let start = Instant::now();
        let mut meter = Meter { start, told: start, steps: 10 * USUAL_STEPS };
        let told = meter.line("", start + Duration::from_secs(60)).unwrap();
        assert!(told.contains(" 99 %"), "{told}");
    }

    #[test]
    fn a_failing_command_shows_the_end_of_its_output_and_where_the_rest_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut command = Command::new("sh");
        command.args(["-c", "seq 100; echo the compiler complains >&2; exit 3"]);
        let mut lines = 0;
        let error =
            Log::create(&path).unwrap().run("sh", command, &mut |_| lines += 1).unwrap_err().to_string();
        assert_eq!(lines, 101);
        assert!(error.contains("the compiler complains") && error.contains("\n100\n"), "{error}");
        assert!(error.contains("exit status: 3") && error.contains(path.to_str().unwrap()), "{error}");
        assert!(!error.contains("\n50\n"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 101);
    }
}
