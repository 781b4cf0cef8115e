//! A pod's virtual machine: its VMM process, the control socket to it, and the agent inside once it is ready.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::thread::CapabilitySet;
use saya_agent_api::agent::ConfigureSandboxRequest;
use saya_agent_api::{LIVE_SHARE, PRIVATE_SHARE, READY_LINE_LIMIT, READY_PORT};
use saya_vmm::control::{
    self, Boot, CONSOLE_TAIL, ControlError, Event, FileRole, Interface, Request, Share, ShimEnd, StopReason,
    Writers,
};
use serde::Deserialize;
use tokio::io::AsyncReadExt;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::process::Child;
use tokio::sync::{mpsc, watch};

use super::agent::{Agent, VsockAddress, no_timeout, read_line};
use super::directory::PodDirectory;
use super::hot_plug::HotPlug;
use super::process::{self, Diagnostics};
use super::timeline::Recorder;
use crate::cgroup;
use crate::config::Config;
use crate::foreign_text::clean;
use crate::network::{Configuration, NetworkError, PodInterface, PodNetwork};
use crate::readiness::{register, take_turns};
use crate::rights;
use crate::sizing::Size;

/// The guest's vsock address. Every VM has a vsock of its own, so all can have the same.
const GUEST_CID: u32 = 3;

/// How long a VM whose agent is gone may take to say why, before it is stopped. A guest that goes down takes its agent's
/// connections along no sooner than the VMM has said why: it is the connections of a machine that goes on that wait for this.
pub(super) const LAST_WORDS: Duration = Duration::from_millis(500);

/// The most of a reason that is passed on, in bytes: more than the end of what the VMM has written to its standard error.
const REASON_MAX: usize = 8192;

/// How long a VMM may take to hand over the console of a guest that is given up.
const CONSOLE_PATIENCE: Duration = Duration::from_secs(5);

/// What a VM is doing.
#[derive(Clone)]
pub(crate) enum VmState {
    /// The guest boots.
    Booting,
    /// The agent is ready.
    Ready(Agent),
    /// The VM is no more.
    Stopped(Arc<StopReport>),
}

/// Why a VM stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StopReport {
    /// In words.
    pub(crate) reason: String,
    /// The end of the guest's console. It is what the guest wrote: hostile.
    pub(crate) console: String,
}

impl StopReport {
    /// As it may be passed on: what is in it may be the guest's or the VMM's words.
    fn clean(self) -> Self {
        Self { reason: clean(&self.reason, REASON_MAX), console: clean(&self.console, CONSOLE_TAIL) }
    }
}

impl std::fmt::Display for StopReport {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}", self.reason)?;
        let console = self.console.trim();
        if console.is_empty() {
            Ok(())
        } else {
            write!(formatter, "; end of the guest's console:\n{console}")
        }
    }
}

/// Why a VM could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VmError {
    /// A file that the configuration names.
    #[error("configuration key {key}: {path}: {source}")]
    File {
        /// The key.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The pod's directory.
    #[error("the pod's directory: {0}")]
    Directory(io::Error),
    /// The VMM's process.
    #[error("starting the VMM: {0}")]
    Spawn(io::Error),
    /// The control socket.
    #[error("starting the VMM: {0}")]
    Control(#[from] ControlError),
}

/// A running VM. Clones share it.
#[derive(Clone)]
pub(crate) struct Vm {
    pid: u32,
    size: Size,
    state: watch::Receiver<VmState>,
    hot_plug: HotPlug,
    holder: Arc<Mutex<Option<u32>>>,
    stop: mpsc::Sender<String>,
}

/// The directories of the pod's share and who writes below them.
fn shares() -> Vec<Share> {
    let regions = [(PRIVATE_SHARE, Writers::Guest), (LIVE_SHARE, Writers::GuestAndHost)];
    regions.map(|(name, writers)| Share { name: name.into(), writers }).into()
}

/// What a VM is made of.
pub(crate) struct Plan<'a> {
    /// Kernel, initramfs and kernel parameters.
    pub(crate) config: &'a Config,
    /// CPUs and memory.
    pub(crate) size: Size,
    /// Where the share and the sockets are; it exists.
    pub(crate) directory: &'a PodDirectory,
    /// The network whose taps it gets.
    pub(crate) network: Option<&'a mut PodNetwork>,
    /// What the agent is told first.
    pub(crate) sandbox: ConfigureSandboxRequest,
    /// Where points in time are noted.
    pub(crate) timeline: Arc<Recorder>,
}

impl Vm {
    /// Starts the VMM and lets it boot. Must be called on the thread that lives as long as the shim: the VMM ends
    /// with it.
    ///
    /// # Errors
    /// A missing file, or a VMM that cannot be started. What goes wrong later is the VM's [`StopReport`].
    pub(crate) fn start(plan: Plan<'_>) -> Result<Self, VmError> {
        let Plan { config, size, directory, network, sandbox, timeline } = plan;
        let kernel = open("kernel", &config.kernel)?;
        let initramfs = open("initramfs", &config.initramfs)?;
        let share = directory.open_share().map_err(VmError::Directory)?;
        let listener = directory.listen_vsock().map_err(VmError::Directory)?;
        let agent_timeout = Duration::from_secs(config.agent_timeout.into());
        let vsock = VsockAddress::new(directory.open().map_err(VmError::Directory)?, agent_timeout);

        let (control, vmm_end) = control::pair().map_err(VmError::Spawn)?;
        timeline.mark(|timeline| &mut timeline.vmm_spawned_ns);
        let mut child = process::spawn_vmm(&OwnedFd::from(vmm_end)).map_err(VmError::Spawn)?;
        let pid = child.id().unwrap_or_default();
        let diagnostics = Diagnostics::collect(child.stderr.take());

        let interfaces = network.as_ref().map_or(&[][..], |network| &network.interfaces);
        let mut files = vec![
            (FileRole::Kernel, kernel.as_fd()),
            (FileRole::Initramfs, initramfs.as_fd()),
            (FileRole::Share, share.as_fd()),
            (FileRole::Vsock, listener.as_fd()),
        ];
        files.extend(taps(interfaces));
        let boot = Boot {
            vcpus: size.vcpus,
            memory_mib: size.memory_mib,
            guest_cid: GUEST_CID,
            kernel_parameters: [size.kernel_parameters(), config.kernel_parameters.clone()]
                .concat()
                .join(" "),
            console_verbose: config.console_verbose,
            shares: shares(),
            interfaces: interfaces.iter().map(described).collect(),
            later_queue_pairs: size.queue_pairs(),
            files: files.iter().map(|(role, _)| *role).collect(),
        };
        let descriptors: Vec<_> = files.iter().map(|(_, descriptor)| *descriptor).collect();
        control.send(&Request::Boot(boot), &descriptors)?;
        let network = network.map(|network| {
            network.close_queues();
            network.configuration()
        });
        control.set_nonblocking(true).map_err(VmError::Spawn)?;
        let control = Arc::new(register(control).map_err(VmError::Spawn)?);
        let hot_plug = HotPlug::new(Arc::clone(&control));

        let (state_sender, state) = watch::channel(VmState::Booting);
        let (stop, stop_receiver) = mpsc::channel(4);
        let holder = Arc::default();
        let supervisor = Supervisor {
            control,
            hot_plug: hot_plug.clone(),
            diagnostics,
            state: state_sender,
            stop: stop.clone(),
            vsock,
            greeting: Some(Greeting { sandbox, network, holder: Arc::clone(&holder) }),
            boot_timeout: Duration::from_secs(config.boot_timeout.into()),
            timeline,
        };
        tokio::spawn(supervisor.run(child, stop_receiver));
        Ok(Self { pid, size, state, hot_plug, holder, stop })
    }

    /// A VM without a VMM whose agent is ready, once it is told of its sandbox; it has stopped once it is told to.
    #[cfg(test)]
    pub(crate) async fn ready_with(agent: Agent, sandbox: ConfigureSandboxRequest) -> Self {
        let holder = Arc::default();
        Greeting { sandbox, network: None, holder: Arc::clone(&holder) }
            .tell(&agent, &Recorder::default())
            .await
            .unwrap();
        let (sender, state) = watch::channel(VmState::Ready(agent));
        let (stop, mut stopped) = mpsc::channel(4);
        tokio::spawn(async move {
            if let Some(reason) = stopped.recv().await {
                let report = StopReport { reason, console: String::new() };
                sender.send_replace(VmState::Stopped(Arc::new(report)));
            }
        });
        let (control, _) = control::pair().unwrap();
        let hot_plug = HotPlug::new(Arc::new(register(control).unwrap()));
        let size = Size { vcpus: 1, memory_mib: 256, pages_2m: 0, pages_1g: 0 };
        Self { pid: std::process::id(), size, state, hot_plug, holder, stop }
    }

    /// The VMM's pid.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Its CPUs and memory.
    pub(crate) fn size(&self) -> Size {
        self.size
    }

    /// Gives the VMM this OOM score (`/proc/<pid>/oom_score_adj`, proc_pid_oom_score_adj(5)).
    ///
    /// # Errors
    /// The VMM is no more, or the kernel refuses.
    pub(crate) fn set_oom_score(&self, score: i32) -> io::Result<()> {
        let path = format!("/proc/{}/oom_score_adj", self.pid);
        // Below the lowest score that it has had, none but who has this capability sets one.
        rights::with(CapabilitySet::SYS_RESOURCE, || std::fs::write(path, score.to_string()))
    }

    /// The guest's pid of the process that holds the pod's namespaces, which is known once the agent is ready: for the first
    /// who asks.
    pub(crate) fn take_holder(&self) -> Option<u32> {
        self.holder.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// What gives the guest devices while it runs.
    pub(crate) fn hot_plug(&self) -> &HotPlug {
        &self.hot_plug
    }

    /// Waits until the agent is ready.
    ///
    /// # Errors
    /// The VM stopped before.
    pub(crate) async fn ready(&self) -> Result<Agent, Arc<StopReport>> {
        let mut state = self.state.clone();
        let settled = state.wait_for(|state| !matches!(state, VmState::Booting)).await;
        match settled.as_deref() {
            Ok(VmState::Ready(agent)) => Ok(agent.clone()),
            Ok(VmState::Stopped(report)) => Err(report.clone()),
            Ok(VmState::Booting) | Err(_) => Err(supervisor_gone()),
        }
    }

    /// Waits until the VM is no more.
    pub(crate) async fn stopped(&self) -> Arc<StopReport> {
        let mut state = self.state.clone();
        let settled = state.wait_for(|state| matches!(state, VmState::Stopped(_))).await;
        match settled.as_deref() {
            Ok(VmState::Stopped(report)) => report.clone(),
            Ok(_) | Err(_) => supervisor_gone(),
        }
    }

    /// Ends the VM at once, if it has not ended yet.
    pub(crate) fn stop(&self, reason: &str) {
        // A full channel holds a reason already, a closed one means that the VM has ended.
        let _ = self.stop.try_send(reason.to_owned());
    }
}

fn supervisor_gone() -> Arc<StopReport> {
    Arc::new(StopReport { reason: "the VM's supervisor is gone".into(), console: String::new() })
}

fn open(key: &'static str, path: &Path) -> Result<File, VmError> {
    File::open(path).map_err(|source| VmError::File { key, path: path.to_owned(), source })
}

/// What the VMM is told of an interface.
pub(crate) fn described(interface: &PodInterface) -> Interface {
    let queue_pairs = u16::try_from(interface.queues.len()).unwrap_or(u16::MAX);
    Interface { mac: interface.mac, mtu: interface.mtu, queue_pairs }
}

/// The queues of all interfaces, with what they are for.
fn taps(interfaces: &[PodInterface]) -> impl Iterator<Item = (FileRole, BorrowedFd<'_>)> {
    (0..).zip(interfaces).flat_map(|(interface, described)| {
        let role = move |queue_pair| FileRole::Tap { interface, queue_pair };
        (0..).zip(&described.queues).map(move |(queue_pair, queue)| (role(queue_pair), queue.as_fd()))
    })
}

/// Follows a VM from its boot to its end.
struct Supervisor {
    control: Arc<AsyncFd<ShimEnd>>,
    hot_plug: HotPlug,
    diagnostics: Diagnostics,
    state: watch::Sender<VmState>,
    stop: mpsc::Sender<String>,
    vsock: VsockAddress,
    greeting: Option<Greeting>,
    boot_timeout: Duration,
    timeline: Arc<Recorder>,
}

/// What the agent is told first.
struct Greeting {
    sandbox: ConfigureSandboxRequest,
    network: Option<Configuration>,
    /// Where the holder's pid is put.
    holder: Arc<Mutex<Option<u32>>>,
}

impl Supervisor {
    async fn run(mut self, mut child: Child, mut stop: mpsc::Receiver<String>) {
        let overdue = overdue(self.state.subscribe(), self.boot_timeout);
        let told = tokio::select! {
            told = self.follow() => told,
            Some(reason) = stop.recv() => Some(StopReport { reason, console: String::new() }),
            () = overdue => Some(self.give_up_boot().await),
        };
        // The VM is over: what the process may still want to do is of no interest.
        let _ = child.start_kill();
        let status = child.wait().await;
        let report = match told {
            Some(report) => report,
            None => StopReport {
                reason: match status {
                    Ok(status) if cgroup::has_run_out_of_memory() => {
                        format!("the VMM ended ({status}) because the pod's cgroup ran out of memory")
                    }
                    Ok(status) => format!("the VMM ended without a report ({status}){}", self.diagnostics),
                    Err(error) => format!("the VMM ended without a report: {error}"),
                },
                console: String::new(),
            },
        };
        let report = report.clean();
        self.hot_plug.stopped();
        tracing::info!(reason = %report.reason, "the virtual machine has stopped");
        self.state.send_replace(VmState::Stopped(Arc::new(report)));
    }

    /// What is to be said of a guest that is not ready in time, with its console where the VMM still gives it.
    async fn give_up_boot(&mut self) -> StopReport {
        let asked = self.control.get_ref().send(&Request::Stop, &[]);
        let told = if asked.is_ok() {
            tokio::time::timeout(CONSOLE_PATIENCE, self.follow()).await.ok().flatten()
        } else {
            None
        };
        StopReport {
            reason: format!(
                "the agent in the guest was not ready within {} s (configuration key boot_timeout)",
                self.boot_timeout.as_secs()
            ),
            console: told.map(|report| report.console).unwrap_or_default(),
        }
    }

    /// Handles the VMM's messages until its last; `None` when it closed the socket without one.
    async fn follow(&mut self) -> Option<StopReport> {
        loop {
            let (event, descriptors) = match receive(&self.control).await {
                Ok(Some(received)) => received,
                Ok(None) => return None,
                Err(error) => {
                    return Some(StopReport { reason: format!("the VMM: {error}"), console: String::new() });
                }
            };
            match event {
                Event::Started(vmm) => self.timeline.change(|timeline| {
                    timeline.vmm_entered_ns = Some(vmm.process_start_ns);
                    timeline.vmm_configured_ns = Some(vmm.config_received_ns);
                    timeline.memory_ready_ns = Some(vmm.memory_ready_ns);
                    timeline.kernel_loaded_ns = Some(vmm.kernel_loaded_ns);
                    timeline.first_instruction_ns = Some(vmm.first_instruction_ns);
                }),
                Event::GuestConnected { port: READY_PORT } => self.greet(descriptors),
                Event::GuestConnected { port } => {
                    tracing::debug!(port, "the guest connected to an unused port");
                }
                Event::Stopped { reason, console } => {
                    return Some(StopReport { reason: in_words(reason), console });
                }
                answer @ (Event::Attached(_) | Event::Detached | Event::Refused { .. }) => {
                    self.hot_plug.answered(answer);
                }
                Event::Counters(_) => {}
            }
        }
    }

    /// The agent's first connection begins the conversation with it; there is no second.
    fn greet(&mut self, descriptors: Vec<OwnedFd>) {
        let (Some(greeting), Some(connection)) = (self.greeting.take(), descriptors.into_iter().next())
        else {
            return;
        };
        let (state, stop) = (self.state.clone(), self.stop.clone());
        let (vsock, timeline) = (self.vsock.clone(), self.timeline.clone());
        tokio::spawn(async move {
            let reason = match converse(connection, vsock, greeting, &timeline).await {
                Ok((agent, mut connection)) => {
                    state.send_if_modified(|state| become_ready(state, agent));
                    // The agent says nothing more; the connection ends when it does.
                    let _ = connection.read(&mut [0]).await;
                    tokio::time::sleep(LAST_WORDS).await;
                    "the agent in the guest is gone".to_owned()
                }
                Err(error) => error.to_string(),
            };
            // Where the VM has ended meanwhile nobody listens any more.
            let _ = stop.try_send(reason);
        });
    }
}

/// The VMM's next message with its descriptors; `None` when it has closed the socket.
async fn receive(control: &AsyncFd<ShimEnd>) -> Result<Option<(Event, Vec<OwnedFd>)>, ControlError> {
    loop {
        take_turns().await;
        let mut ready = control.readable().await.map_err(ControlError::Socket)?;
        match ready.get_inner().receive() {
            Err(error) if error.would_block() => ready.clear_ready(),
            received => return received,
        }
    }
}

/// Ends when the VM has been booting for longer than `limit`; never once it is ready.
async fn overdue(mut state: watch::Receiver<VmState>, limit: Duration) {
    let ready = state.wait_for(|state| !matches!(state, VmState::Booting));
    if tokio::time::timeout(limit, ready).await.is_ok() {
        std::future::pending::<()>().await;
    }
}

/// A VM that has stopped already does not become ready.
fn become_ready(state: &mut VmState, agent: Agent) -> bool {
    let booting = matches!(state, VmState::Booting);
    if booting {
        *state = VmState::Ready(agent);
    }
    booting
}

/// Why the conversation with the agent has not begun.
#[derive(Debug, thiserror::Error)]
enum GreetingError {
    /// The way to it.
    #[error("the agent in the guest: {0}")]
    Connection(#[from] io::Error),
    /// What it answers.
    #[error("the agent in the guest: {0}")]
    Agent(String),
    /// What it is to be told.
    #[error(transparent)]
    Network(#[from] NetworkError),
}

impl From<ttrpc::Error> for GreetingError {
    fn from(error: ttrpc::Error) -> Self {
        Self::Agent(match error {
            ttrpc::Error::RpcStatus(status) => status.message,
            error => error.to_string(),
        })
    }
}

/// The line with which the agent reports itself, both in microseconds of the guest's `CLOCK_BOOTTIME`.
#[derive(Debug, Default, Deserialize)]
struct ReadyLine {
    entered_user_space_us: u64,
    listening_us: u64,
}

/// Reads the agent's ready line, connects to it and tells it of its sandbox.
async fn converse(
    connection: OwnedFd,
    vsock: VsockAddress,
    greeting: Greeting,
    timeline: &Recorder,
) -> Result<(Agent, UnixStream), GreetingError> {
    timeline.mark(|timeline| &mut timeline.agent_listening_ns);
    let connection = std::os::unix::net::UnixStream::from(connection);
    connection.set_nonblocking(true)?;
    let mut connection = UnixStream::from_std(connection)?;
    let line = read_line(&mut connection, READY_LINE_LIMIT).await?;
    let ready: ReadyLine = serde_json::from_slice(&line).map_err(io::Error::from)?;
    timeline.change(|timeline| {
        let in_user_space =
            ready.listening_us.saturating_sub(ready.entered_user_space_us).saturating_mul(1000);
        timeline.agent_entered_ns = timeline.agent_listening_ns.map(|at| at.saturating_sub(in_user_space));
    });

    let agent = Agent::connect(vsock).await?;
    greeting.tell(&agent, timeline).await?;
    timeline.mark(|timeline| &mut timeline.sandbox_configured_ns);
    Ok((agent, connection))
}

impl Greeting {
    async fn tell(self, agent: &Agent, timeline: &Recorder) -> Result<(), GreetingError> {
        let configured = agent.ask(agent.calls().configure_sandbox(no_timeout(), &self.sandbox)).await?;
        if self.sandbox.holder.is_some() {
            *self.holder.lock().unwrap_or_else(PoisonError::into_inner) = Some(configured.holder_pid);
            let took = configured.holder_microseconds.saturating_mul(1000);
            timeline.change(|timeline| timeline.holder_took_ns = Some(took));
        }
        if let Some(network) = self.network {
            let network = network.complete().await?;
            agent.ask(agent.calls().configure_network(no_timeout(), &network)).await?;
        }
        Ok(())
    }
}

fn in_words(reason: StopReason) -> String {
    match reason {
        StopReason::PoweredOff => "the guest powered off".into(),
        StopReason::Rebooted => "the guest asked for a reboot".into(),
        StopReason::Panicked { message } => format!("the guest's kernel panicked: {message}"),
        StopReason::Stopped => "the VMM was told to stop".into(),
        StopReason::Failed { message } => message,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn a_vmm_that_sends_without_end_leaves_the_other_tasks_their_turns() {
        let (shim, vmm) = control::pair().unwrap();
        shim.set_nonblocking(true).unwrap();
        let shim = register(shim).unwrap();
        // It does end, but long after what is waited for, so that whoever gives no turns fails instead of going on for ever.
        let vmm = std::thread::spawn(move || {
            (0..64 * 256).all(|_| vmm.send(&Event::Detached, &[]).is_ok());
        });
        let received = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&received);
        let task = tokio::spawn(async move {
            while let Ok(Some(_)) = receive(&shim).await {
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        // A task's share is 128 rounds, and it may have one before and one after the thread has looked what is ready.
        while received.load(Ordering::Relaxed) < 16 * 256 {
            let before = received.load(Ordering::Relaxed);
            tokio::task::yield_now().await;
            let messages = received.load(Ordering::Relaxed) - before;
            assert!(messages <= 256, "{messages} messages while the others waited");
        }
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        vmm.join().unwrap();
    }

    #[test]
    fn a_report_takes_the_vmms_words_neither_raw_nor_at_any_length() {
        let words = "\x1b]0;title\x07".repeat(10_000);
        let report =
            StopReport { reason: in_words(StopReason::Failed { message: words.clone() }), console: words };
        let text = report.clean().to_string();
        assert!(text.len() < REASON_MAX + CONSOLE_TAIL + 200, "{}", text.len());
        assert!(text.contains("bytes left out") && !text.contains(['\x1b', '\x07']), "{text}");
    }
}
