//! Passing connections on from the loopback of the pod's network namespace to that of the guest.

use std::io;
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

use super::vm::Vm;
use crate::network::{LoopbackListener, NetworkError, PodNamespace};

/// How long no connection is accepted after one could not be.
const PAUSE: Duration = Duration::from_millis(100);

/// Passes connections on for as long as the VM runs. Where the kernel has no way to, it is said in the log: the pod
/// works, but for `kubectl port-forward`.
pub(super) async fn pass_on(vm: Vm, namespace: PodNamespace) {
    tokio::select! {
        _ = vm.stopped() => {}
        served = serve(&vm, namespace) => {
            if let Err(error) = served {
                tracing::warn!(%error, "ports of the pod's loopback are not passed on");
            }
        }
    }
}

async fn serve(vm: &Vm, namespace: PodNamespace) -> Result<(), NetworkError> {
    // The guest boots first: it is in more of a hurry.
    let Ok(agent) = vm.ready().await else { return Ok(()) };
    let listening = tokio::task::spawn_blocking(move || namespace.listen_on_loopback());
    let host = NetworkError::host("listening on loopback");
    let LoopbackListener { listener, link: _link } = match listening.await {
        Ok(listening) => listening?,
        Err(error) => return Err(host(io::Error::other(error))),
    };
    let listener = TcpListener::from_std(listener).map_err(host)?;
    loop {
        match listener.accept().await {
            Ok((client, _)) => {
                tokio::spawn(forward(client, agent.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a connection to the pod's loopback");
                // What is missing are descriptors or memory, and until there are some again the next call fails at once.
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn forward(mut client: TcpStream, agent: super::agent::Agent) {
    let forwarded = async {
        let port = client.local_addr()?.port();
        let mut guest = agent.connect_to_loopback(port).await?;
        copy_bidirectional(&mut client, &mut guest).await
    };
    if let Err(error) = forwarded.await {
        tracing::debug!(%error, "a connection to the pod's loopback");
    }
}
