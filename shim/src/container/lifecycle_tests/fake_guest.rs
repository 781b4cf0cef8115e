//! A guest without a virtual machine: the agent's service and its streams behind a Unix socket, with processes that do
//! what their arguments say.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use saya_agent_api::agent::{
    ConfigureSandboxRequest, ConfigureSandboxResponse, ContainerRequest, ContainerStatsResponse,
    CreateContainerRequest, CreateProcessRequest, CreateResponse, Empty, GuestProcess, Holder,
    ListProcessesResponse, ProcessRequest, ReleaseSharePathRequest, SignalProcessRequest, Streams,
    WaitOutOfMemoryRequest, WaitOutOfMemoryResponse, WaitProcessResponse,
};
use saya_agent_api::service::{Agent, create_agent};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use ttrpc::Code;
use ttrpc::r#async::TtrpcContext;
use ttrpc::asynchronous::Server;
use ttrpc::asynchronous::transport::Listener;

use crate::pod::agent::read_line;

/// The guest, as a test sees it.
#[derive(Clone, Default)]
pub(super) struct FakeGuest {
    inner: Arc<Mutex<State>>,
    arrived: Arc<Notify>,
    manners: Arc<Mutex<Manners>>,
    relays: Arc<Mutex<Vec<AbortHandle>>>,
}

/// How a guest treats its host.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Manners {
    /// As it should.
    #[default]
    Honest,
    /// It answers nothing any more.
    Silent,
    /// It never answers this call.
    Deaf(&'static str),
    /// It says that processes have ended, and lets them go on.
    Immortal,
    /// It gives every process this pid.
    Pid(u32),
    /// Its answers have a string of this many bytes, with line breaks and what moves a terminal's cursor.
    Verbose(usize),
    /// It refuses to send signals, in as many words.
    Refusing(usize),
    /// It says of each process that gets a signal that there is none, and lets it go on.
    Forgetful,
    /// It ends the connection at this call.
    HangsUp(&'static str),
    /// It says without end that processes were killed for want of memory.
    OutOfMemory,
    /// It lists this many processes, with names of its own.
    Crowded(usize),
}

#[derive(Default)]
struct State {
    processes: HashMap<(String, String), FakeProcess>,
    streams: HashMap<u64, UnixStream>,
    specs: Vec<serde_json::Value>,
    calls: Vec<String>,
    next_pid: u32,
}

struct FakeProcess {
    pid: u32,
    arguments: Vec<String>,
    streams: Streams,
    end: watch::Sender<Option<WaitProcessResponse>>,
}

fn refuse<T>(code: Code, message: &str) -> ttrpc::Result<T> {
    Err(ttrpc::Error::RpcStatus(ttrpc::get_status(code, message)))
}

impl FakeGuest {
    /// Serves connections as a VMM's vsock socket would; `calls` is where to make the socket of the agent's service.
    pub(super) async fn serve(&self, listener: std::os::unix::net::UnixListener, calls: &Path) {
        listener.set_nonblocking(true).unwrap();
        let listener = UnixListener::from_std(listener).unwrap();
        let mut server = Server::new()
            .add_listener(Listener::from(UnixListener::bind(calls).unwrap()))
            .register_service(create_agent(Arc::new(self.clone())));
        server.start().await.unwrap();
        let (guest, calls) = (self.clone(), calls.to_owned());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let wanted = read_line(&mut stream, 32).await.unwrap();
                stream.write_all(b"OK 1\n").await.unwrap();
                match wanted.as_slice() {
                    b"CONNECT 1024" => {
                        let mut service = UnixStream::connect(&calls).await.unwrap();
                        let relay = tokio::spawn(async move {
                            tokio::io::copy_bidirectional(&mut stream, &mut service).await.unwrap()
                        });
                        guest.relays.lock().unwrap().push(relay.abort_handle());
                    }
                    b"CONNECT 1025" => {
                        let number = stream.read_u64().await.unwrap();
                        guest.inner.lock().unwrap().streams.insert(number, stream);
                        guest.arrived.notify_waiters();
                    }
                    other => panic!("unexpected connection {other:?}"),
                }
            }
            drop(server);
        });
    }

    /// From now on it behaves like this.
    pub(super) fn turn(&self, manners: Manners) {
        *self.manners.lock().unwrap() = manners;
    }

    fn manners(&self) -> Manners {
        *self.manners.lock().unwrap()
    }

    /// Ends when the call is to be answered.
    async fn consider(&self, call: &str) {
        match self.manners() {
            Manners::Silent => std::future::pending().await,
            Manners::Deaf(deaf) if deaf == call => std::future::pending().await,
            Manners::HangsUp(at) if at == call => {
                for relay in self.relays.lock().unwrap().drain(..) {
                    relay.abort();
                }
                std::future::pending::<()>().await;
            }
            _ => {}
        }
    }

    /// The names of the calls so far, with their containers.
    pub(super) fn calls(&self) -> Vec<String> {
        self.inner.lock().unwrap().calls.clone()
    }

    /// The specs of the containers so far.
    pub(super) fn specs(&self) -> Vec<serde_json::Value> {
        self.inner.lock().unwrap().specs.clone()
    }

    /// The stream with this number, once it has connected; none for 0.
    async fn stream(&self, number: u64) -> Option<UnixStream> {
        if number == 0 {
            return None;
        }
        loop {
            let arrival = self.arrived.notified();
            if let Some(stream) = self.inner.lock().unwrap().streams.remove(&number) {
                return Some(stream);
            }
            arrival.await;
        }
    }

    fn note(&self, call: &str, container: &str) {
        self.inner.lock().unwrap().calls.push(format!("{call} {container}"));
    }

    fn make(
        &self,
        key: (String, String),
        process: &serde_json::Value,
        streams: Streams,
    ) -> ttrpc::Result<CreateResponse> {
        let arguments: Vec<String> = serde_json::from_value(process["args"].clone()).unwrap();
        if arguments[0] == "missing" {
            return refuse(Code::NOT_FOUND, "exec: \"missing\": executable file not found in $PATH");
        }
        let mut state = self.inner.lock().unwrap();
        state.next_pid += 1;
        let manners = self.manners();
        let pid = if let Manners::Pid(pid) = manners { pid } else { state.next_pid };
        let end = watch::Sender::new(None);
        state.processes.insert(key, FakeProcess { pid, arguments, streams, end });
        let unknown_fields = match manners {
            Manners::Verbose(bytes) => vec!["\n\x1b[2J".repeat(bytes / 5)],
            _ => Vec::new(),
        };
        Ok(CreateResponse { pid, unknown_fields, ..Default::default() })
    }

    /// Has a container's first process end by itself.
    pub(super) fn end(&self, container: &str, status: u32) {
        let name = ProcessRequest { container_id: container.to_owned(), ..Default::default() };
        let ended = WaitProcessResponse { exit_status: status, ..Default::default() };
        self.end_of(&name).unwrap().send_replace(Some(ended));
    }

    fn end_of(&self, request: &ProcessRequest) -> ttrpc::Result<watch::Sender<Option<WaitProcessResponse>>> {
        let state = self.inner.lock().unwrap();
        match state.processes.get(&(request.container_id.clone(), request.exec_id.clone())) {
            Some(process) => Ok(process.end.clone()),
            None => refuse(Code::NOT_FOUND, "no such process"),
        }
    }
}

/// Does what the arguments say until the end, and answers with status and bytes of output.
async fn act(
    guest: FakeGuest,
    arguments: &[String],
    stdin: Option<UnixStream>,
    mut stdout: Option<UnixStream>,
) -> (u32, u64) {
    match arguments[0].as_str() {
        "exit" => (arguments[1].parse().unwrap(), 0),
        "print" => {
            stdout.as_mut().unwrap().write_all(arguments[1].as_bytes()).await.unwrap();
            (0, arguments[1].len() as u64)
        }
        "cat" => {
            let copied = tokio::io::copy(&mut stdin.unwrap(), stdout.as_mut().unwrap()).await.unwrap();
            (0, copied)
        }
        // It has no use for its input, and sends some back until nobody takes it.
        "talk-back" => {
            let mut stdin = stdin.unwrap();
            while stdin.write_all(&[b'x'; 4096]).await.is_ok() {}
            (0, 0)
        }
        // It says that there is more output to come, and sends some of it each second until it is silent.
        "flood" => {
            let mut stdout = stdout.unwrap();
            tokio::spawn(async move {
                while guest.manners() != Manners::Silent && stdout.write_all(&[b'x'; 4096]).await.is_ok() {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            });
            (0, u64::MAX)
        }
        _ => std::future::pending().await,
    }
}

#[async_trait]
impl Agent for FakeGuest {
    async fn configure_sandbox(
        &self,
        _: &TtrpcContext,
        request: ConfigureSandboxRequest,
    ) -> ttrpc::Result<ConfigureSandboxResponse> {
        let Some(Holder { container_id, oci_spec, .. }) = request.holder.into_option() else {
            return Ok(ConfigureSandboxResponse::default());
        };
        let spec: serde_json::Value = serde_json::from_slice(&oci_spec).unwrap();
        let made = self.make((container_id, String::new()), &spec["process"], Streams::default())?;
        Ok(ConfigureSandboxResponse { holder_pid: made.pid, ..Default::default() })
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> ttrpc::Result<CreateResponse> {
        self.consider("create").await;
        self.note("create", &request.container_id);
        let spec: serde_json::Value = serde_json::from_slice(&request.oci_spec).unwrap();
        self.inner.lock().unwrap().specs.push(spec.clone());
        self.make((request.container_id, String::new()), &spec["process"], request.streams.unwrap())
    }

    async fn create_process(
        &self,
        _: &TtrpcContext,
        request: CreateProcessRequest,
    ) -> ttrpc::Result<CreateResponse> {
        self.consider("exec").await;
        let process: serde_json::Value = serde_json::from_slice(&request.oci_process).unwrap();
        self.make((request.container_id, request.exec_id), &process, request.streams.unwrap())
    }

    async fn start_process(&self, _: &TtrpcContext, request: ProcessRequest) -> ttrpc::Result<Empty> {
        self.consider("start").await;
        self.note("start", &request.container_id);
        let end = self.end_of(&request)?;
        let (arguments, streams) = {
            let state = self.inner.lock().unwrap();
            let process = &state.processes[&(request.container_id, request.exec_id)];
            (process.arguments.clone(), process.streams.clone())
        };
        let (stdin, stdout) = (self.stream(streams.stdin).await, self.stream(streams.stdout).await);
        let guest = self.clone();
        tokio::spawn(async move {
            let (exit_status, stdout_bytes) = act(guest, &arguments, stdin, stdout).await;
            end.send_replace(Some(WaitProcessResponse { exit_status, stdout_bytes, ..Default::default() }));
        });
        Ok(Empty::default())
    }

    async fn wait_process(
        &self,
        _: &TtrpcContext,
        request: ProcessRequest,
    ) -> ttrpc::Result<WaitProcessResponse> {
        let mut end = self.end_of(&request)?.subscribe();
        let end = end.wait_for(Option::is_some).await.unwrap();
        Ok(end.clone().unwrap())
    }

    async fn signal_process(&self, _: &TtrpcContext, request: SignalProcessRequest) -> ttrpc::Result<Empty> {
        self.consider("signal").await;
        match self.manners() {
            Manners::Immortal => return Ok(Empty::default()),
            Manners::Forgetful => return refuse(Code::NOT_FOUND, "no such process"),
            Manners::Refusing(bytes) => return refuse(Code::INTERNAL, &"\n\x1b[2J".repeat(bytes / 5)),
            _ => {}
        }
        let name = ProcessRequest {
            container_id: request.container_id,
            exec_id: request.exec_id,
            ..Default::default()
        };
        let end = self.end_of(&name)?;
        let killed = WaitProcessResponse { exit_status: 128 + request.signal, ..Default::default() };
        end.send_if_modified(|end| end.is_none() && end.replace(killed).is_none());
        Ok(Empty::default())
    }

    async fn delete_process(&self, _: &TtrpcContext, request: ProcessRequest) -> ttrpc::Result<Empty> {
        self.consider("delete").await;
        self.note("delete", &request.container_id);
        self.inner.lock().unwrap().processes.remove(&(request.container_id, request.exec_id));
        Ok(Empty::default())
    }

    async fn list_processes(
        &self,
        _: &TtrpcContext,
        request: ContainerRequest,
    ) -> ttrpc::Result<ListProcessesResponse> {
        self.consider("list").await;
        if let Manners::Crowded(number) = self.manners() {
            let process = GuestProcess { pid: 1, exec_id: "x".into(), ..Default::default() };
            return Ok(ListProcessesResponse { processes: vec![process; number], ..Default::default() });
        }
        let state = self.inner.lock().unwrap();
        let processes = state
            .processes
            .iter()
            .filter(|((container, _), _)| *container == request.container_id)
            .map(|((_, exec), process)| GuestProcess {
                pid: process.pid,
                exec_id: exec.clone(),
                ..Default::default()
            })
            .collect();
        Ok(ListProcessesResponse { processes, ..Default::default() })
    }

    async fn pause_container(&self, _: &TtrpcContext, request: ContainerRequest) -> ttrpc::Result<Empty> {
        self.consider("pause").await;
        self.note("pause", &request.container_id);
        Ok(Empty::default())
    }

    async fn resume_container(&self, _: &TtrpcContext, request: ContainerRequest) -> ttrpc::Result<Empty> {
        self.consider("resume").await;
        self.note("resume", &request.container_id);
        Ok(Empty::default())
    }

    async fn container_stats(
        &self,
        _: &TtrpcContext,
        _: ContainerRequest,
    ) -> ttrpc::Result<ContainerStatsResponse> {
        let files = [("memory.current", "4096\n"), ("cpu.stat", "usage_usec 7\nuser_usec 5\n")];
        let files = files.map(|(name, text)| (name.to_owned(), text.to_owned())).into();
        Ok(ContainerStatsResponse { files, ..Default::default() })
    }

    async fn wait_out_of_memory(
        &self,
        _: &TtrpcContext,
        request: WaitOutOfMemoryRequest,
    ) -> ttrpc::Result<WaitOutOfMemoryResponse> {
        // Time would never pass in a test whose shim asks without end.
        if self.manners() == Manners::OutOfMemory && request.seen < 10_000 {
            return Ok(WaitOutOfMemoryResponse { count: request.seen + 1, ..Default::default() });
        }
        std::future::pending().await
    }

    async fn release_share_path(
        &self,
        _: &TtrpcContext,
        request: ReleaseSharePathRequest,
    ) -> ttrpc::Result<Empty> {
        self.note("release", &request.path);
        Ok(Empty::default())
    }
}
