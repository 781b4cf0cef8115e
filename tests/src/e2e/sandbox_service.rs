//! The shim's Sandbox service, spoken to as containerd 2 speaks to it where `sandboxer = "shim"`, under any containerd.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use containerd_shim_protos::api::{CreateTaskRequest, CreateTaskResponse, DeleteResponse, StartResponse};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::sandbox_api::{
    CreateSandboxRequest, PingRequest, PlatformRequest, SandboxMetricsRequest, SandboxStatusRequest,
    ShutdownSandboxRequest, StartSandboxRequest, StopSandboxRequest, WaitSandboxRequest,
};
use containerd_shim_protos::sandbox_sync::SandboxClient;
use containerd_shim_protos::ttrpc::context::Context as Call;
use containerd_shim_protos::ttrpc::{self, Client, Code};
use prost::Message as _;
use serde_json::{Value, json};

use super::Test;
use super::context::{BUSYBOX, Context, ImageRoot, eventually};
use super::task_api::Task;
use crate::containerd;
use crate::cri::messages::{DnsConfig, PodSandboxConfig};

pub(super) const TESTS: &[Test] =
    &[Test { name: "the_shim_makes_a_pod_itself_when_it_is_asked_to", check: makes_pods }];

const POD: &str = "sandboxed";
const RESOLVER: &str = "nameserver 192.0.2.7\n";

/// A request that has nothing but the pod's id.
macro_rules! request {
    ($kind:ident) => {
        $kind { sandbox_id: POD.to_owned(), ..Default::default() }
    };
}
fn makes_pods(context: &Context) -> anyhow::Result<()> {
    context.for_ours_alone("runc's shim has no sandbox of its own")?;
    let bundle = context.scratch.join("pod");
    fs::create_dir_all(bundle.join("rootfs"))?;
    cannot_be_created(&bundle)?;
    let pod = Sandbox::start_shim(&bundle)?;
    let refused = pod.create(&bundle, "runtimeoptions.v1.Options", &[]);
    ensure!(is(&refused, Code::INVALID_ARGUMENT, "PodSandboxConfig"), "{refused:?}");
    pod.create(&bundle, "runtime.v1.PodSandboxConfig", &[])?;
    let pid = pod.client.start_sandbox(Call::default(), &request!(StartSandboxRequest))?.pid;
    let platform = pod.client.platform(Call::default(), &request!(PlatformRequest))?.platform;
    ensure!((platform.os.as_str(), platform.architecture.as_str()) == ("linux", "amd64"), "{platform:?}");
    pod.client.ping_sandbox(Call::default(), &request!(PingRequest))?;
    ensure!(pod.state()? == "SANDBOX_READY");

    // Two containers, one of which cannot be.
    let image = ImageRoot::mount(BUSYBOX, context.scratch.join("image"))?;
    let output = context.scratch.join("output");
    let script = "hostname; cat /etc/resolv.conf; echo shared > /dev/shm/word; readlink /proc/self/ns/ipc";
    let main = pod.container(context, "main", pid, &["sh", "-c", script])?;
    let _: CreateTaskResponse = main.expect("Create", &create_request(&main, "main", &output))?;
    let _: StartResponse = main.expect("Start", &main.start_request(""))?;
    ensure!(main.wait("")?.exit_status == 0);
    let printed = fs::read_to_string(&output)?;
    ensure!(printed.starts_with(&format!("{POD}\n{RESOLVER}ipc:[")), "{printed:?}");
    let _: DeleteResponse = main.expect("Delete", &main.delete_request(""))?;

    let other = pod.container(
        context,
        "other",
        pid,
        &["sh", "-c", "trap 'exit 5' TERM; cat /dev/shm/word; readlink /proc/self/ns/ipc; sleep 3600 & wait"],
    )?;
    let _: CreateTaskResponse = other.expect("Create", &create_request(&other, "other", &output))?;
    let _: StartResponse = other.expect("Start", &other.start_request(""))?;
    let metrics = pod.client.sandbox_metrics(Call::default(), &request!(SandboxMetricsRequest))?;
    ensure!(metrics.metrics.data.type_url.contains("Metrics"), "{metrics:?}");

    let ipc = printed.lines().last().context("nothing was printed")?;
    eventually("the other container sees what the first one left", || {
        Ok(fs::read_to_string(&output)?.ends_with(&format!("shared\n{ipc}\n")))
    })?;

    // Stopped with what runs in it, which has time to end by itself; it still answers for that.
    let stop = StopSandboxRequest { timeout_secs: 300, ..request!(StopSandboxRequest) };
    pod.client.stop_sandbox(Call::default(), &stop)?;
    ensure!(other.wait("")?.exit_status == 5);
    let _: DeleteResponse = other.expect("Delete", &other.delete_request(""))?;
    let ended = pod.client.wait_sandbox(Call::default(), &request!(WaitSandboxRequest))?;
    ensure!(ended.exit_status == 0 && ended.exited_at.is_some(), "{ended:?}");
    ensure!(pod.state()? == "SANDBOX_NOTREADY");
    drop((pod, image));
    Ok(())
}

/// A pod that cannot be is none that could be waited for. Its shim ends as any does, and leaves nothing.
fn cannot_be_created(bundle: &Path) -> anyhow::Result<()> {
    const ANNOTATION: &str = "io.saya.config.kernel";
    let pod = Sandbox::start_shim(bundle)?;
    let refused = pod.create(bundle, "runtime.v1.PodSandboxConfig", &[(ANNOTATION, "/tmp/kernel")]);
    ensure!(is(&refused, Code::INVALID_ARGUMENT, ANNOTATION), "{refused:?}");
    let waited = pod.client.wait_sandbox(Call::default(), &request!(WaitSandboxRequest));
    ensure!(is(&waited, Code::NOT_FOUND, ANNOTATION), "{waited:?}");
    let started = pod.client.start_sandbox(Call::default(), &request!(StartSandboxRequest));
    ensure!(is(&started, Code::NOT_FOUND, ANNOTATION), "{started:?}");
    Ok(())
}

/// Whether it is a refusal with this code and these words.
fn is<T>(answer: &ttrpc::Result<T>, code: Code, words: &str) -> bool {
    matches!(answer, Err(ttrpc::Error::RpcStatus(status))
        if status.code() == code && status.message.contains(words))
}

/// A pod's shim.
struct Sandbox {
    client: SandboxClient,
    address: String,
}

impl Sandbox {
    /// Has a shim started as containerd does it.
    fn start_shim(bundle: &Path) -> anyhow::Result<Self> {
        let output = containerd::start_shim(bundle, POD).context("cannot start the shim")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let address = fs::read_to_string(bundle.join("address"))?;
        let client = Client::connect(&address).with_context(|| format!("no shim answers at {address}"))?;
        Ok(Self { client: SandboxClient::new(client), address })
    }

    fn create(&self, bundle: &Path, kind: &str, annotations: &[(&str, &str)]) -> ttrpc::Result<()> {
        let text = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let config = PodSandboxConfig {
            annotations: annotations.iter().map(text).collect(),
            hostname: POD.to_owned(),
            dns_config: Some(DnsConfig { servers: vec!["192.0.2.7".to_owned()], ..DnsConfig::default() }),
            ..PodSandboxConfig::default()
        };
        let options = Any { type_url: kind.to_owned(), value: config.encode_to_vec(), ..Default::default() };
        let request = CreateSandboxRequest {
            sandbox_id: POD.to_owned(),
            bundle_path: bundle.display().to_string(),
            options: Some(options).into(),
            ..Default::default()
        };
        self.client.create_sandbox(Call::default(), &request).map(drop)
    }

    fn state(&self) -> anyhow::Result<String> {
        let request = request!(SandboxStatusRequest);
        Ok(self.client.sandbox_status(Call::default(), &request)?.state)
    }

    /// A container of the pod, as CRI's plugin writes its spec.
    fn container(&self, context: &Context, id: &str, pod_pid: u32, command: &[&str]) -> anyhow::Result<Task> {
        let bundle: PathBuf = context.scratch.join(id);
        fs::create_dir(&bundle)?;
        let of_pod =
            |kind: &str, file: &str| json!({"type": kind, "path": format!("/proc/{pod_pid}/ns/{file}")});
        let spec: Value = json!({
            "ociVersion": "1.1.0",
            "process": {"args": command, "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["PATH=/bin"]},
            "root": {"path": context.scratch.join("image")},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev/shm", "type": "tmpfs", "source": "shm"},
            ],
            "annotations": {
                "io.kubernetes.cri.container-type": "container",
                "io.kubernetes.cri.sandbox-id": POD,
            },
            "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}, of_pod("network", "net"),
                of_pod("ipc", "ipc"), of_pod("uts", "uts")]},
        });
        fs::write(bundle.join("config.json"), spec.to_string())?;
        Task::at(&self.address, id, &bundle)
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // containerd knows nothing of this shim: nobody else ends it. What is left of it, the runner finds.
        let ended = self.client.shutdown_sandbox(Call::default(), &request!(ShutdownSandboxRequest));
        if let Err(error) = ended {
            eprintln!("{POD}: {error}");
        }
    }
}

fn create_request(task: &Task, id: &str, output: &Path) -> CreateTaskRequest {
    CreateTaskRequest {
        id: id.to_owned(),
        bundle: task.bundle().display().to_string(),
        stdout: format!("file://{}", output.display()),
        ..Default::default()
    }
}
