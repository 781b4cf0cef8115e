//! The long-running shim of a pod.

mod ending;
mod logging;

use std::env;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use ttrpc::asynchronous::Server;
use ttrpc::asynchronous::transport::Listener;

use crate::bootstrap::Flags;
use crate::container::Tasks;
use crate::events::{Address, Publisher};
use crate::pod::Pod;
use crate::pod::timeline::Recorder;
use crate::sandbox_service::SandboxService;
use crate::task_service::TaskService;

pub(crate) use ending::Ending;

/// The descriptor at which `start` hands the listening socket over, as containerd's own shims have it.
pub(crate) const LISTENER: RawFd = 3;

/// The environment variable with the path of containerd's ttrpc socket.
pub(crate) const TTRPC_ADDRESS: &str = "TTRPC_ADDRESS";

/// How long the last events may take.
const FLUSH_PATIENCE: Duration = Duration::from_secs(5);
/// How long an idle helper thread lives.
const HELPER_THREAD_LIFE: Duration = Duration::from_millis(200);
/// How many helper threads there may be, for mounts and the like.
const HELPER_THREADS_MAX: usize = 4;

/// Runs the shim until containerd wants it to end.
///
/// # Errors
/// It could not begin to serve.
pub(crate) fn run(flags: &Flags) -> io::Result<()> {
    let timeline = Arc::new(Recorder::default());
    timeline.mark(|timeline| &mut timeline.shim_started_ns);
    let bundle = match &flags.bundle {
        Some(bundle) => bundle.clone(),
        None => env::current_dir()?,
    };
    logging::start(&bundle, flags.debug);
    let listener = listener(flags)?;
    crate::rights::reduce()?;
    // One thread: the VMM, which dies with the thread that made it, and a shim's memory want no more.
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(HELPER_THREADS_MAX)
        .thread_keep_alive(HELPER_THREAD_LIFE)
        .build()?
        .block_on(serve(flags, &bundle, listener, timeline))
}

fn listener(flags: &Flags) -> io::Result<UnixListener> {
    if !flags.socket.is_empty() {
        return UnixListener::bind(&flags.socket);
    }
    // SAFETY: `start` leaves the listening socket at this number for this process, which has not used it yet.
    let descriptor = unsafe { OwnedFd::from_raw_fd(LISTENER) };
    rustix::net::sockopt::socket_acceptconn(&descriptor)?
        .then_some(UnixListener::from(descriptor))
        .ok_or_else(|| io::Error::other(format!("descriptor {LISTENER} is not a listening socket")))
}

async fn serve(
    flags: &Flags,
    bundle: &Path,
    listener: UnixListener,
    timeline: Arc<Recorder>,
) -> io::Result<()> {
    let socket = listener.local_addr()?.as_pathname().map(PathBuf::from);
    // First of all the VM: it boots while containerd connects, unless that has still to say what it is to be.
    let pod = Arc::new(Pod::start(&flags.namespace, &flags.id, bundle, timeline));
    let publisher = Publisher::start(publish_address(flags), &flags.namespace);
    let tasks = Tasks::new(&flags.namespace, pod.clone(), publisher.clone());
    let ending = Arc::new(Ending::new(pod.clone(), socket));
    let mut services = SandboxService::new(tasks.clone(), ending.clone()).services();
    services.extend(TaskService::new(tasks, ending.clone()).services());
    let mut server = Server::new().add_listener(Listener::try_from(listener)?).register_service(services);
    server.start().await.map_err(io::Error::other)?;
    tracing::debug!(pod = pod.id(), pid = std::process::id(), "the shim serves");

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        () = ending.begun() => {}
        _ = terminate.recv() => tracing::info!("ended by SIGTERM"),
        _ = interrupt.recv() => tracing::info!("ended by SIGINT"),
    }
    ending.begin();
    pod.tear_down().await;
    if tokio::time::timeout(FLUSH_PATIENCE, publisher.flush()).await.is_err() {
        tracing::warn!("containerd has not taken the last events");
    }
    Ok(())
}

fn publish_address(flags: &Flags) -> Address {
    match env::var(TTRPC_ADDRESS) {
        Ok(address) if !address.is_empty() => Address::Ttrpc(address),
        _ if !flags.publish_binary.is_empty() => {
            Address::Binary { path: flags.publish_binary.clone().into(), address: flags.address.clone() }
        }
        _ => Address::None,
    }
}
