//! `start`: finds the pod's shim or starts it, and prints its address.
//!
//! Nothing else may be written: containerd takes standard error for the answer too.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{env, mem};

use rustix::io::DupFlags;

use super::flags::Flags;
use super::input::Input;
use super::socket::{self, Socket};
use crate::config::{CONFIG_VARIABLE, Config, ConfigError};
use crate::daemon::{LISTENER, TTRPC_ADDRESS};
use crate::identifier::{self, InvalidIdentifier};
use crate::pod::directory::PodDirectory;
use crate::pod::record::Record;
use crate::spec::{Document, DocumentError};
use crate::task_service::{OptionsError, RuntimeOptions};

/// Where a configuration that came as text is kept, in the bundle.
const INLINE_CONFIG: &str = "saya.toml";

/// How long the shim of an earlier pod of the same name may take to end. containerd sets `start` no limit.
const PREDECESSOR_PATIENCE: Duration = Duration::from_secs(30);

/// Why a shim could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// An id or a namespace that is no identifier.
    #[error(transparent)]
    Identifier(#[from] InvalidIdentifier),
    /// The bundle's spec.
    #[error(transparent)]
    Spec(#[from] DocumentError),
    /// The runtime's options.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// A container for a pod that is not there.
    #[error("container {container}: its sandbox {sandbox} is not running")]
    NoSandbox {
        /// The container.
        container: String,
        /// The sandbox.
        sandbox: String,
    },
    /// The pod of the same name before this one does not end.
    #[error("the shim of an earlier pod named {pod} (process {process}) has been ending for {} s", PREDECESSOR_PATIENCE.as_secs())]
    Predecessor {
        /// The pod.
        pod: String,
        /// Its shim.
        process: u32,
    },
    /// A directory for the socket that is not the same for all of containerd's processes.
    #[error("socket_dir {0:?} is not an absolute path")]
    SocketDirectory(PathBuf),
    /// The system.
    #[error("{what}: {source}")]
    System {
        /// What was being done.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

fn system(what: &'static str) -> impl Fn(io::Error) -> StartError {
    move |source| StartError::System { what, source }
}

/// Finds or starts the shim for the container that the flags name, whose bundle is the working directory.
///
/// # Errors
/// Whatever kept the shim from starting.
pub(super) fn run(mut flags: Flags) -> Result<(), StartError> {
    let mut input = Input::read(io::stdin(), &mut flags).map_err(system("what containerd has to say"))??;
    identifier::validate("namespace", &flags.namespace)?;
    identifier::validate("container id", &flags.id)?;
    let bundle = env::current_dir().map_err(system("the bundle"))?;
    let spec = spec_of(&bundle)?;
    let sandbox = spec.as_ref().map_or(Ok(flags.id.as_str()), |spec| spec.sandbox_id(&flags.id))?;
    let makes_pod = spec.as_ref().is_none_or(Document::makes_pod);
    if makes_pod {
        let directory = PodDirectory::new(&flags.namespace, sandbox);
        await_predecessor(sandbox, &directory.record(), PREDECESSOR_PATIENCE)?;
    }
    let directory = input.socket_directory.as_deref().unwrap_or(Path::new(socket::DIRECTORY));
    if !directory.is_absolute() {
        return Err(StartError::SocketDirectory(directory.to_owned()));
    }
    let path = socket::path(directory, &flags.address, &flags.namespace, sandbox);
    match socket::listen(&path).map_err(system("the shim's socket"))? {
        Socket::Served => {}
        Socket::New(_) if !makes_pod => {
            socket::remove(&path);
            return Err(StartError::NoSandbox { container: flags.id.clone(), sandbox: sandbox.to_owned() });
        }
        Socket::New(listener) => {
            if let Err(error) = start(&flags, &bundle, &listener, &input) {
                socket::remove(&path);
                return Err(error);
            }
        }
    }
    let address = socket::address(&path);
    socket::note(&bundle, &address).map_err(system("the bundle's file address"))?;
    // A file that cannot be read is told of by the call that makes the pod.
    if let Ok(config) = effective_configuration(&input.options) {
        input.answer = input.answer.for_version(config.shim_version);
    }
    input.answer.write(&address, io::stdout()).map_err(system("standard output"))
}

/// Lets a shim that is taking an earlier pod of the name away finish. It answers on the pod's socket until it is gone, and
/// has the pod's directory. Before containerd is told that the earlier pod is deleted, its record says that it is ending.
fn await_predecessor(pod: &str, record: &Path, patience: Duration) -> Result<(), StartError> {
    let ending = Record::read(record).filter(|record| record.ending);
    match ending.and_then(|record| record.shim) {
        Some(shim) if !shim.ends_within(patience) => {
            Err(StartError::Predecessor { pod: pod.to_owned(), process: shim.pid })
        }
        _ => Ok(()),
    }
}

/// The bundle's spec. That of a sandbox which the Sandbox API makes has none, but a place for a root file system, as every
/// bundle of containerd's has.
fn spec_of(bundle: &Path) -> Result<Option<Document>, DocumentError> {
    match Document::read(bundle) {
        Err(error) if error.is_missing() && bundle.join("rootfs").is_dir() => Ok(None),
        read => read.map(Some),
    }
}

fn start(flags: &Flags, bundle: &Path, listener: &UnixListener, input: &Input) -> Result<(), StartError> {
    let config = configuration(bundle, &input.options)?;
    let mut command = daemon_command(flags, listener).map_err(system("the shim's binary"))?;
    if let Some(config) = config {
        command.env(CONFIG_VARIABLE, config);
    }
    if let Some(address) = &input.ttrpc_address {
        command.env(TTRPC_ADDRESS, address);
    }
    let child = command.spawn().map_err(system("starting the shim"))?;
    fs::write(bundle.join("shim.pid"), child.id().to_string())
        .map_err(system("the bundle's file shim.pid"))?;
    let score = oom_score().map_err(system("containerd's OOM score"))?;
    fs::write(format!("/proc/{}/oom_score_adj", child.id()), score).map_err(system("the shim's OOM score"))
}

/// The configuration that the pod's shim has.
fn effective_configuration(options: &RuntimeOptions) -> Result<Config, ConfigError> {
    if !options.config_body.is_empty() {
        return Config::parse(&options.config_body, Path::new(INLINE_CONFIG));
    }
    if !options.config_path.is_empty() {
        return Config::read(Path::new(&options.config_path));
    }
    Config::load()
}

/// The configuration file that the runtime's options ask for, if they do.
fn configuration(bundle: &Path, options: &RuntimeOptions) -> Result<Option<PathBuf>, StartError> {
    if !options.config_body.is_empty() {
        let path = bundle.join(INLINE_CONFIG);
        fs::write(&path, &options.config_body).map_err(system("the configuration in the bundle"))?;
        return Ok(Some(path));
    }
    Ok(Some(&options.config_path).filter(|path| !path.is_empty()).map(PathBuf::from))
}

/// This binary again, as the long-running shim, with the listening socket at [`LISTENER`].
fn daemon_command(flags: &Flags, listener: &UnixListener) -> io::Result<Command> {
    let mut command = Command::new(env::current_exe()?);
    command.args(["-namespace", &flags.namespace, "-id", &flags.id, "-address", &flags.address]);
    if !flags.publish_binary.is_empty() {
        command.args(["-publish-binary", &flags.publish_binary]);
    }
    if flags.debug {
        command.arg("-debug");
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    let number = listener.as_raw_fd();
    let place_listener = move || {
        // SAFETY: the parent holds the listener open across fork.
        let listener = unsafe { BorrowedFd::borrow_raw(number) };
        if number == LISTENER {
            return Ok(rustix::io::fcntl_setfd(listener, rustix::io::FdFlags::empty())?);
        }
        // SAFETY: whatever is at this number belongs to no one in this process, which is about to exec.
        let mut placed = mem::ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(LISTENER) });
        Ok(rustix::io::dup3(listener, &mut placed, DupFlags::empty())?)
    };
    // SAFETY: between fork and exec the closure makes system calls alone and touches no lock and no heap.
    unsafe { command.pre_exec(place_listener) };
    Ok(command)
}

/// The shim's OOM score, one above containerd's, so that containerd is the later to be killed.
fn oom_score() -> io::Result<String> {
    const HIGHEST: i32 = 1000;
    let parent = rustix::process::getppid().map_or(1, |pid| pid.as_raw_nonzero().get());
    let score = fs::read_to_string(format!("/proc/{parent}/oom_score_adj"))?;
    let score: i32 = score.trim().parse().map_err(io::Error::other)?;
    Ok((score + 1).min(HIGHEST).to_string())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::pod::record::Process;

    #[test]
    fn a_pod_waits_for_the_shim_of_an_earlier_one_of_its_name_that_is_ending_and_for_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pod.json");
        await_predecessor("p", &path, Duration::ZERO).expect("there was none");

        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let mut record = Record { shim: Process::of(child.id()).ok(), ..Record::default() };
        record.write(&path).unwrap();
        await_predecessor("p", &path, Duration::ZERO).expect("it is not ending");
        record.ending = true;
        record.write(&path).unwrap();
        let error = await_predecessor("p", &path, Duration::ZERO).unwrap_err().to_string();
        assert!(error.contains(&child.id().to_string()), "{error}");

        let reaper = std::thread::spawn(move || {
            child.kill().unwrap();
            child.wait().unwrap();
        });
        let begin = Instant::now();
        await_predecessor("p", &path, Duration::from_secs(1000)).unwrap();
        assert!(begin.elapsed() < Duration::from_secs(1000));
        reaper.join().unwrap();
    }
}
