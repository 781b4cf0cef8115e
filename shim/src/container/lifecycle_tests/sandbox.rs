//! Pods that the Sandbox API makes.

use containerd_shim_protos::sandbox_api::{
    CreateSandboxRequest, PingRequest, SandboxMetricsRequest, SandboxStatusRequest, ShutdownSandboxRequest,
    StartSandboxRequest, StopSandboxRequest, WaitSandboxRequest,
};
use containerd_shim_protos::sandbox_async::Sandbox;
use containerd_shim_protos::shim::shim::ShutdownRequest;
use protobuf::well_known_types::any::Any;

use super::fake_guest::Manners;
use super::*;
use crate::pod::files::Names;
use crate::sandbox_service::SandboxService;

const PATIENCE: Duration = Duration::from_secs(3600);

struct Pods {
    fixture: Fixture,
    service: SandboxService,
    ending: Arc<Ending>,
    bundle: tempfile::TempDir,
}

/// CRI's configuration of a pod with the host name "web", and with `more` fields.
fn request(bundle: &tempfile::TempDir, more: &[u8]) -> CreateSandboxRequest {
    let value = [b"\x12\x03web".as_slice(), more].concat();
    let options = Any { type_url: "runtime.v1.PodSandboxConfig".into(), value, ..Default::default() };
    CreateSandboxRequest {
        sandbox_id: "p1".into(),
        bundle_path: bundle.path().to_str().unwrap().into(),
        options: Some(options).into(),
        netns_path: "/run/netns/p1".into(),
        ..Default::default()
    }
}

/// The pod p1, whose virtual machine is there, with a container to be that joins its namespaces.
async fn pods() -> Pods {
    let bundle = tempfile::tempdir().unwrap();
    let files = PodFiles::write(bundle.path(), &Names::default()).unwrap();
    let fixture = Fixture::of_pod("p1", json!(["exit", "7"]), PATIENCE, Some(files)).await;
    let path = fixture.bundle.join("config.json");
    let mut spec: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    spec["annotations"] =
        json!({"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "p1"});
    let of_pod = |kind: &str| format!("/proc/{}/ns/{kind}", fixture.pod.host_pid());
    spec["linux"]["namespaces"] = json!([{"type": "pid"}, {"type": "ipc", "path": of_pod("ipc")},
        {"type": "network", "path": of_pod("net")}]);
    spec["mounts"] = json!([{"destination": "/dev/shm", "type": "tmpfs", "source": "shm"}]);
    fs::write(&path, spec.to_string()).unwrap();
    let ending = Arc::new(Ending::new(fixture.pod.clone(), None));
    let service = SandboxService::new(fixture.tasks.clone(), ending.clone());
    Pods { fixture, service, ending, bundle }
}

impl Pods {
    async fn start(&self) -> ttrpc::Result<u32> {
        let request = StartSandboxRequest { sandbox_id: "p1".into(), ..Default::default() };
        self.service.start_sandbox(&TtrpcContext::default(), request).await.map(|answer| answer.pid)
    }

    async fn state(&self) -> String {
        let request = SandboxStatusRequest { sandbox_id: "p1".into(), ..Default::default() };
        self.service.sandbox_status(&TtrpcContext::default(), request).await.unwrap().state
    }

    async fn wait(&self) -> u32 {
        let request = WaitSandboxRequest { sandbox_id: "p1".into(), ..Default::default() };
        self.service.wait_sandbox(&TtrpcContext::default(), request).await.unwrap().exit_status
    }

    async fn ping(&self) -> ttrpc::Result<()> {
        let request = PingRequest { sandbox_id: "p1".into(), ..Default::default() };
        self.service.ping_sandbox(&TtrpcContext::default(), request).await.map(drop)
    }
}

fn code<T>(answer: ttrpc::Result<T>) -> Code {
    match answer {
        Err(ttrpc::Error::RpcStatus(status)) => status.code(),
        _ => Code::OK,
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_sandbox_lives_from_its_start_to_its_stop_and_its_containers_join_its_process() {
    let pods = pods().await;
    pods.service.created(request(&pods.bundle, b"")).await;
    assert_eq!(pods.state().await, "SANDBOX_NOTREADY");
    assert_eq!(pods.start().await.unwrap(), pods.fixture.pod.host_pid());
    assert_eq!(code(pods.start().await), Code::FAILED_PRECONDITION);
    assert_eq!(pods.state().await, "SANDBOX_READY");
    pods.ping().await.unwrap();

    pods.fixture.create(Stdio::default()).await.unwrap();
    let [spec] = &pods.fixture.guest.specs()[..] else { panic!("other containers were made") };
    assert_eq!(
        spec["linux"]["namespaces"][1]["path"], "/proc/1/ns/ipc",
        "it is the first process of the guest"
    );
    let destinations: Vec<_> =
        spec["mounts"].as_array().unwrap().iter().map(|mount| &mount["destination"]).collect();
    assert_eq!(destinations, ["/dev/shm", "/etc/hostname", "/etc/hosts", "/etc/resolv.conf"]);
    assert_eq!(spec["mounts"][0]["source"], "/dev/shm");

    let stop = StopSandboxRequest { sandbox_id: "p1".into(), ..Default::default() };
    pods.service.stop_sandbox(&TtrpcContext::default(), stop.clone()).await.unwrap();
    assert_eq!(pods.wait().await, 0);
    assert_eq!(pods.state().await, "SANDBOX_NOTREADY");
    assert_eq!(code(pods.ping().await), Code::FAILED_PRECONDITION);
    pods.service.stop_sandbox(&TtrpcContext::default(), stop).await.unwrap();
    assert_eq!(pods.fixture.tasks.delete("c1", "").await.unwrap().status, 137);
    let shutdown = ShutdownSandboxRequest { sandbox_id: "p1".into(), ..Default::default() };
    pods.service.shutdown_sandbox(&TtrpcContext::default(), shutdown).await.unwrap();
    pods.ending.begun().await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_sandbox_whose_virtual_machine_or_process_ends_is_over_as_killed() {
    for process in [false, true] {
        let pods = pods().await;
        pods.service.created(request(&pods.bundle, b"")).await;
        pods.start().await.unwrap();
        if process {
            pods.fixture.guest.end("p1", 0);
        } else {
            pods.fixture.pod.stop("a test ends it");
        }
        assert_eq!(pods.wait().await, 137);
        assert_eq!(pods.state().await, "SANDBOX_NOTREADY");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn containers_have_the_time_that_a_stop_gives_them_and_no_more() {
    // Told to end they do, or go on.
    for (manners, timeout_secs, status) in
        [(Manners::Honest, 3600, 143), (Manners::Immortal, 1, 137), (Manners::Honest, 0, 137)]
    {
        let pods = pods().await;
        pods.service.created(request(&pods.bundle, b"")).await;
        pods.start().await.unwrap();
        pods.fixture.create(Stdio::default()).await.unwrap();
        pods.fixture.guest.turn(manners);
        let stop = StopSandboxRequest { sandbox_id: "p1".into(), timeout_secs, ..Default::default() };
        pods.service.stop_sandbox(&TtrpcContext::default(), stop).await.unwrap();
        assert_eq!(pods.wait().await, 0);
        assert_eq!(pods.fixture.tasks.delete("c1", "").await.unwrap().status, status);
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_sandbox_that_could_not_be_created_is_none_that_could_be_waited_for() {
    let root = tempfile::tempdir().unwrap();
    let directory = PodDirectory::below(root.path(), "default", "p1");
    let pod = Arc::new(Pod::new("default", "p1", directory, Arc::new(Recorder::default())));
    let tasks = Tasks::new("default", pod.clone(), Publisher::start_with(Collected::default(), "default"));
    let service = SandboxService::new(tasks, Arc::new(Ending::new(pod, None)));
    let mut impossible = request(&root, b"");
    impossible.annotations.insert("io.saya.config.kernel".into(), "/tmp/kernel".into());
    let refused = service.create_sandbox(&TtrpcContext::default(), impossible).await;
    assert_eq!(code(refused), Code::INVALID_ARGUMENT);

    let wait = WaitSandboxRequest { sandbox_id: "p1".into(), ..Default::default() };
    let call = TtrpcContext::default();
    let waited = service.wait_sandbox(&call, wait);
    let answer = tokio::time::timeout(Duration::from_secs(600), waited).await.expect("it waits for ever");
    let Err(ttrpc::Error::RpcStatus(status)) = answer else { panic!("{answer:?}") };
    assert_eq!(status.code(), Code::NOT_FOUND);
    assert!(status.message.contains("io.saya.config.kernel"), "{}", status.message);
    let stop = StopSandboxRequest { sandbox_id: "p1".into(), ..Default::default() };
    assert_eq!(code(service.stop_sandbox(&TtrpcContext::default(), stop).await), Code::NOT_FOUND);
}

#[tokio::test(flavor = "current_thread")]
async fn a_sandbox_outlives_its_containers_and_uses_what_they_use() {
    let pods = pods().await;
    pods.service.created(request(&pods.bundle, b"")).await;
    pods.start().await.unwrap();
    pods.fixture.create(Stdio::default()).await.unwrap();
    let request = SandboxMetricsRequest { sandbox_id: "p1".into(), ..Default::default() };
    let answer = pods.service.sandbox_metrics(&TtrpcContext::default(), request).await.unwrap();
    assert_eq!(answer.metrics.id, "p1");
    assert!(answer.metrics.data.type_url.contains("Metrics"), "{:?}", answer.metrics);
    pods.fixture.tasks.delete("c1", "").await.unwrap();
    assert!(pods.fixture.tasks.is_empty());

    // containerd asks for this after a container that could not be created.
    let tasks = TaskService::new(pods.fixture.tasks.clone(), pods.ending.clone());
    assert_eq!(connected(&tasks, "p1").await.unwrap(), 0, "a containerd that starts leaves it in peace");
    assert_not_found(&connected(&tasks, "c1").await);
    tasks.shutdown(&TtrpcContext::default(), ShutdownRequest::default()).await.unwrap();
    assert_eq!(pods.state().await, "SANDBOX_READY");
    let ended = tokio::time::timeout(Duration::ZERO, pods.ending.begun()).await;
    assert!(ended.is_err(), "the shim would have ended with its last container");
}

#[tokio::test(flavor = "current_thread")]
async fn what_a_sandbox_cannot_have_is_refused_by_name() {
    let pods = pods().await;
    // 8: {2: {1: {field: 2}}}, for network, pid and ipc of the host; 5: {1: 0} is a user namespace.
    let namespaces = |option: &[u8]| {
        let length = |more: usize| u8::try_from(option.len() + more).unwrap();
        [&[0x42, length(4), 0x12, length(2), 0x0a, length(0)][..], option].concat()
    };
    let table: [(&[u8], &str); 4] = [
        (b"\x08\x02", "the host's network namespace"),
        (b"\x10\x02", "the host's pid namespace"),
        (b"\x18\x02", "the host's ipc namespace"),
        (b"\x2a\x02\x08\x00", "user namespace"),
    ];
    for (option, words) in table {
        let error = pods.service.planned(request(&pods.bundle, &namespaces(option))).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    let mut annotated = request(&pods.bundle, b"");
    annotated.annotations.insert("io.saya.colour".into(), "red".into());
    let error = pods.service.planned(annotated).unwrap_err().to_string();
    assert!(error.contains("io.saya.colour"), "{error}");

    let other = StartSandboxRequest { sandbox_id: "p2".into(), ..Default::default() };
    assert_eq!(code(pods.service.start_sandbox(&TtrpcContext::default(), other).await), Code::NOT_FOUND);
    let twice = pods.service.create_sandbox(&TtrpcContext::default(), request(&pods.bundle, b"")).await;
    assert_eq!(code(twice), Code::ALREADY_EXISTS);
}

#[tokio::test(flavor = "current_thread")]
async fn a_pods_limits_and_network_become_its_virtual_machines() {
    let pods = pods().await;
    // 8: {1: "/kubepods/x", 5: {1: 100000, 2: 200000, 4: 67108864}}
    let linux = b"\x42\x1c\x0a\x0b/kubepods/x\x2a\x0d\x08\xa0\x8d\x06\x10\xc0\x9a\x0c\x20\x80\x80\x80\x20";
    let (spec, _) = pods.service.planned(request(&pods.bundle, linux)).unwrap();
    assert_eq!(spec.text("/linux/cgroupsPath"), Some("/kubepods/x/p1"));
    assert_eq!(spec.value()["linux"]["resources"]["memory"]["limit"], 64 << 20);
    assert_eq!(spec.value()["linux"]["resources"]["cpu"], json!({"quota": 200_000, "period": 100_000}));
    assert_eq!(crate::spec::namespaces::network_path(&spec).as_deref(), Some(Path::new("/run/netns/p1")));
}
