//! The event loop, on the sockets of a guest or of a test.

use std::error::Error;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use saya_agent_api::service::create_agent;
use tokio::signal::unix::{SignalKind, signal};
use ttrpc::asynchronous::transport;

use crate::boot::{self, Listeners};
use crate::clock;
use crate::container::{Surroundings, cgroup};
use crate::forward;
use crate::kernel_log;
use crate::reaper::Reaper;
use crate::sandbox::Sandbox;
use crate::service::Service;
use crate::stdio::Registry;
use crate::transport::{Connection, Listener};

/// Brings the guest up and serves for ever.
pub(crate) async fn as_first_process(entered: u64) -> Result<(), Box<dyn Error>> {
    let (listeners, _ready) = boot::bring_up(entered)?;
    tokio::spawn(clock::follow());
    on(listeners, PathBuf::from(cgroup::ROOT)).await
}

/// Serves `DIRECTORY/control`, `DIRECTORY/streams` and `DIRECTORY/forwards`.
pub(crate) async fn for_tests() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [verb, directory, cgroup_root] = arguments.as_slice() else {
        return Err("usage: saya-agent serve DIRECTORY CGROUP".into());
    };
    if verb != "serve" {
        return Err(format!("{verb:?} is not a command; serve is").into());
    }
    kernel_log::to_standard_error()?;
    let directory = Path::new(directory);
    let listen = |name: &str| -> Result<Listener, std::io::Error> {
        let listener = UnixListener::bind(directory.join(name))?;
        listener.set_nonblocking(true)?;
        Listener::new(listener.into())
    };
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let listeners =
        Listeners { control: listen("control")?, streams: listen("streams")?, forwards: listen("forwards")? };
    on(listeners, PathBuf::from(cgroup_root)).await
}

async fn on(listeners: Listeners, cgroup_root: PathBuf) -> Result<(), Box<dyn Error>> {
    let reaper = Reaper::default();
    let streams = Registry::default();
    tokio::spawn(streams.clone().serve(listeners.streams));
    tokio::spawn(forward::serve(listeners.forwards));
    let sandbox = Sandbox::new(Surroundings { reaper: reaper.clone(), streams, cgroup_root });
    let service = create_agent(Arc::new(Service::new(Arc::new(sandbox))));
    let mut server =
        ttrpc::r#async::Server::new().add_listener(accepted_by(listeners.control)).register_service(service);
    server.start().await?;
    reaper.run(signal(SignalKind::child())?).await;
    Ok(())
}

/// Our listener as ttrpc takes one.
fn accepted_by(listener: Listener) -> transport::Listener {
    transport::Listener::new(futures_stream(listener))
}

fn futures_stream(listener: Listener) -> impl futures::Stream<Item = std::io::Result<Connection>> + Send {
    futures::stream::unfold(listener, |listener| async move {
        let connection = listener.next("a connection to the service").await;
        Some((Ok(connection), listener))
    })
}
