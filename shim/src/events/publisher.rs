//! Handing events to containerd, in their order, across its restarts.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use protobuf::Message;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::message::Event;

/// How many events wait for containerd at most, without those of which there is one for each process that containerd itself
/// has started.
const QUEUE_MAX: usize = 2048;
/// How often containerd may refuse an event before it is dropped.
const REFUSALS_MAX: u32 = 5;
/// How long containerd may take for one event.
const FORWARD_PATIENCE: Duration = Duration::from_secs(5);
/// The longest wait between two attempts.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Where containerd takes events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    /// Its ttrpc socket.
    Ttrpc(String),
    /// A binary that publishes one event each time it is run, with containerd's gRPC address.
    Binary {
        /// The binary.
        path: PathBuf,
        /// The address.
        address: String,
    },
    /// Nowhere: none was given.
    None,
}

/// Why an event did not get through.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ForwardError {
    /// containerd is not there at present.
    #[error("containerd is not reachable: {0}")]
    Unreachable(String),
    /// containerd did not want the event.
    #[error("containerd refused the event: {0}")]
    Refused(String),
}

/// A way to containerd.
#[async_trait]
pub(crate) trait Forwarder: Send {
    /// Hands one event over.
    async fn forward(&mut self, envelope: &Envelope) -> Result<(), ForwardError>;
}

/// Takes events from all over the shim. Clones share one queue.
#[derive(Debug, Clone)]
pub(crate) struct Publisher {
    queue: mpsc::UnboundedSender<Item>,
    room: Arc<Semaphore>,
}

#[derive(Debug)]
enum Item {
    /// An event, with the room that it takes among those that wait.
    Event(Box<Event>, Option<OwnedSemaphorePermit>),
    Flush(oneshot::Sender<()>),
}

impl Publisher {
    /// Begins to hand events of `namespace` to containerd.
    pub(crate) fn start(address: Address, namespace: &str) -> Self {
        match address {
            Address::Ttrpc(socket) => Self::start_with(TtrpcForwarder { socket, client: None }, namespace),
            Address::Binary { path, address } => {
                Self::start_with(BinaryForwarder { path, address }, namespace)
            }
            Address::None => Self::start_with(NoForwarder, namespace),
        }
    }

    /// As [`start`](Self::start), by a way of the caller's.
    pub(crate) fn start_with(forwarder: impl Forwarder + 'static, namespace: &str) -> Self {
        let (queue, items) = mpsc::unbounded_channel();
        tokio::spawn(work(items, forwarder, namespace.to_owned()));
        Self { queue, room: Arc::new(Semaphore::new(QUEUE_MAX)) }
    }

    /// Queues an event. It never waits: where containerd has been away for so long that there is no more room, the event is
    /// dropped and logged. The ends of processes and containers are never dropped.
    pub(crate) fn send(&self, event: Event) {
        let room = if event.is_an_end() {
            None
        } else {
            let Ok(room) = self.room.clone().try_acquire_owned() else {
                let topic = event.topic();
                tracing::error!(topic, "an event is dropped: {QUEUE_MAX} others wait for containerd");
                return;
            };
            Some(room)
        };
        // The other end lives as long as the shim.
        let _ = self.queue.send(Item::Event(Box::new(event), room));
    }

    /// Waits until every event queued before has been handed over or dropped.
    pub(crate) async fn flush(&self) {
        let (done, waiting) = oneshot::channel();
        if self.queue.send(Item::Flush(done)).is_ok() {
            // An error means that the queue is gone, and with it everything to wait for.
            let _ = waiting.await;
        }
    }
}

async fn work(mut items: mpsc::UnboundedReceiver<Item>, mut forwarder: impl Forwarder, namespace: String) {
    while let Some(item) = items.recv().await {
        match item {
            Item::Event(event, _room) => deliver(&mut forwarder, &event, &namespace).await,
            Item::Flush(done) => {
                // Who no longer waits does not need to know.
                let _ = done.send(());
            }
        }
    }
}

/// Hands one event over, however long containerd is away; one that containerd itself refuses is dropped in the end.
async fn deliver(forwarder: &mut impl Forwarder, event: &Event, namespace: &str) {
    let topic = event.topic();
    let envelope = match event.envelope(namespace) {
        Ok(envelope) => envelope,
        Err(error) => {
            tracing::error!(topic, %error, "an event cannot be encoded");
            return;
        }
    };
    let (mut refusals, mut attempts) = (0, 0);
    loop {
        match forwarder.forward(&envelope).await {
            Ok(()) => return,
            Err(ForwardError::Refused(error)) => {
                refusals += 1;
                tracing::warn!(topic, error, refusals, "containerd refused an event");
                if refusals == REFUSALS_MAX {
                    return;
                }
            }
            Err(ForwardError::Unreachable(error)) => {
                tracing::debug!(topic, error, "an event waits for containerd");
            }
        }
        attempts += 1;
        tokio::time::sleep(Duration::from_millis(250).saturating_mul(attempts).min(PAUSE_MAX)).await;
    }
}

/// containerd's ttrpc socket.
struct TtrpcForwarder {
    socket: String,
    client: Option<EventsClient>,
}

#[async_trait]
impl Forwarder for TtrpcForwarder {
    async fn forward(&mut self, envelope: &Envelope) -> Result<(), ForwardError> {
        let client = match self.client.take() {
            Some(client) => client,
            None => {
                let address = format!("unix://{}", self.socket.trim_start_matches("unix://"));
                let client = Client::connect(&address).await;
                EventsClient::new(client.map_err(|error| ForwardError::Unreachable(error.to_string()))?)
            }
        };
        let mut context =
            ttrpc::context::with_timeout(i64::try_from(FORWARD_PATIENCE.as_nanos()).unwrap_or(i64::MAX));
        // The key under which containerd's ttrpc services look for the namespace.
        context.add("containerd-namespace-ttrpc".into(), envelope.namespace.clone());
        let request = ForwardRequest { envelope: Some(envelope.clone()).into(), ..Default::default() };
        match client.forward(context, &request).await {
            Ok(_) => {
                self.client = Some(client);
                Ok(())
            }
            Err(ttrpc::Error::RpcStatus(status)) => {
                self.client = Some(client);
                Err(ForwardError::Refused(status.message))
            }
            Err(error) => Err(ForwardError::Unreachable(error.to_string())),
        }
    }
}

/// `containerd publish`, run for each event.
struct BinaryForwarder {
    path: PathBuf,
    address: String,
}

#[async_trait]
impl Forwarder for BinaryForwarder {
    async fn forward(&mut self, envelope: &Envelope) -> Result<(), ForwardError> {
        let refused = |error: String| ForwardError::Refused(error);
        let event = envelope.event.write_to_bytes().map_err(|error| refused(error.to_string()))?;
        let mut command = Command::new(&self.path);
        command.args(["--address", &self.address, "publish", "--topic", &envelope.topic]);
        command.args(["--namespace", &envelope.namespace]);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| refused(error.to_string()))?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(&event).await.map_err(|error| refused(error.to_string()))?;
        }
        match tokio::time::timeout(FORWARD_PATIENCE, child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(refused(status.to_string())),
            Ok(Err(error)) => Err(refused(error.to_string())),
            Err(_) => Err(refused("no answer".into())),
        }
    }
}

/// Nobody listens.
struct NoForwarder;

#[async_trait]
impl Forwarder for NoForwarder {
    async fn forward(&mut self, _: &Envelope) -> Result<(), ForwardError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::events::Exit;

    /// Fails as it is told, then takes what comes.
    struct Script {
        failures: Vec<ForwardError>,
        taken: Arc<Mutex<Vec<String>>>,
    }

    #[async_trait]
    impl Forwarder for Script {
        async fn forward(&mut self, envelope: &Envelope) -> Result<(), ForwardError> {
            match self.failures.pop() {
                Some(error) => Err(error),
                None => {
                    self.taken.lock().unwrap().push(envelope.topic.clone());
                    Ok(())
                }
            }
        }
    }

    async fn published(failures: Vec<ForwardError>) -> Vec<String> {
        let taken = Arc::new(Mutex::new(Vec::new()));
        let publisher = Publisher::start_with(Script { failures, taken: taken.clone() }, "default");
        publisher.send(Event::started("c1", "", 1));
        publisher.send(Event::paused("c1"));
        publisher.flush().await;
        let taken = taken.lock().unwrap();
        taken.clone()
    }

    #[tokio::test(flavor = "current_thread")]
    async fn events_arrive_in_their_order() {
        assert_eq!(published(vec![]).await, ["/tasks/start", "/tasks/paused"]);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn events_wait_for_a_containerd_that_is_away_and_keep_their_order() {
        let away = || ForwardError::Unreachable("restarting".into());
        assert_eq!(published(vec![away(), away()]).await, ["/tasks/start", "/tasks/paused"]);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_queue_that_is_full_drops_what_comes_instead_of_growing_and_never_an_end() {
        /// Takes nothing until the gate is open.
        struct Gated(Arc<Semaphore>, Arc<Mutex<Vec<String>>>);
        #[async_trait]
        impl Forwarder for Gated {
            async fn forward(&mut self, envelope: &Envelope) -> Result<(), ForwardError> {
                let _open = self.0.acquire().await;
                self.1.lock().unwrap().push(envelope.topic.clone());
                Ok(())
            }
        }
        let (gate, taken) = (Arc::new(Semaphore::new(0)), Arc::default());
        let publisher = Publisher::start_with(Gated(gate.clone(), Arc::clone(&taken)), "default");
        let exit = Exit { status: 137, at: 1 };
        for _ in 0..QUEUE_MAX + 10 {
            publisher.send(Event::out_of_memory("c1"));
        }
        publisher.send(Event::exit("c1", "", 1, exit));
        publisher.send(Event::paused("c2"));
        publisher.send(Event::delete("c1", 1, exit));
        gate.add_permits(1);
        publisher.flush().await;
        let taken = taken.lock().unwrap();
        assert_eq!(taken.len(), QUEUE_MAX + 2);
        assert_eq!(taken[QUEUE_MAX..], ["/tasks/exit", "/tasks/delete"]);
        publisher.send(Event::paused("c2"));
        assert_eq!(publisher.room.available_permits(), QUEUE_MAX - 1, "there is room again");
    }
}
