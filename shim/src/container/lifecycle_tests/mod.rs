//! The life of containers with a guest that has no virtual machine: what containerd sees, and in which order.

mod fake_guest;
mod hostile_guest;
mod sandbox;

use std::ffi::CString;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use containerd_shim_protos::api::ConnectRequest;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim_async::Task;
use protobuf::Message;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use saya_agent_api::agent::ConfigureSandboxRequest;
use serde_json::json;
use ttrpc::Code;
use ttrpc::r#async::TtrpcContext;

use super::create::CreateRequest;
use super::tasks::Tasks;
use crate::daemon::Ending;
use crate::events::{ForwardError, Forwarder, Publisher};
use crate::io::Stdio;
use crate::pod::agent::{Agent, VsockAddress};
use crate::pod::directory::PodDirectory;
use crate::pod::files::PodFiles;
use crate::pod::timeline::Recorder;
use crate::pod::vm::Vm;
use crate::pod::{Pod, holder_of};
use crate::task_service::TaskService;
use fake_guest::FakeGuest;

/// Keeps events instead of handing them to containerd.
#[derive(Clone, Default)]
struct Collected(Arc<Mutex<Vec<Envelope>>>);

#[async_trait]
impl Forwarder for Collected {
    async fn forward(&mut self, envelope: &Envelope) -> Result<(), ForwardError> {
        self.0.lock().unwrap().push(envelope.clone());
        Ok(())
    }
}

struct Fixture {
    _root: tempfile::TempDir,
    bundle: PathBuf,
    tasks: Tasks,
    pod: Arc<Pod>,
    guest: FakeGuest,
    events: Collected,
}

impl Fixture {
    async fn new(arguments: serde_json::Value) -> Self {
        Self::with_patience(arguments, Duration::from_secs(3600)).await
    }

    /// One whose shim waits for the guest as long as `patience`.
    async fn with_patience(arguments: serde_json::Value, patience: Duration) -> Self {
        Self::of_pod("c1", arguments, patience, None).await
    }

    /// One of the pod `id`, with these files where the Sandbox API has made it.
    async fn of_pod(
        id: &str,
        arguments: serde_json::Value,
        patience: Duration,
        files: Option<PodFiles>,
    ) -> Self {
        let root = tempfile::tempdir().unwrap();
        let bundle = root.path().join("bundle");
        fs::create_dir_all(bundle.join("rootfs/bin")).unwrap();
        let spec = json!({
            "ociVersion": "1.0.2",
            "process": {"args": arguments, "cwd": "/"},
            "root": {"path": "rootfs"},
            "mounts": [{"destination": "/data", "type": "bind", "source": root.path(), "options": ["rbind", "ro"]}],
            "linux": {"namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "network"}]},
        });
        fs::write(bundle.join("config.json"), spec.to_string()).unwrap();

        let directory = PodDirectory::below(&root.path().join("state"), "default", id);
        directory.create().unwrap();
        let guest = FakeGuest::default();
        guest.serve(directory.listen_vsock().unwrap(), &root.path().join("calls")).await;
        let agent = Agent::connect(VsockAddress::new(directory.open().unwrap(), patience)).await.unwrap();
        let recorder = Arc::new(Recorder::default());
        let holder = || holder_of(id, &json!({"process": {"args": ["/pod", "hold-pod"]}}));
        let held = files.is_some() || spec["process"]["args"] == json!(["/pause"]);
        let holder = held.then(holder).into();
        let sandbox = ConfigureSandboxRequest { holder, ..Default::default() };
        let vm = Vm::ready_with(agent, sandbox).await;
        let pod = Arc::new(Pod::with_vm(id, directory, vm, recorder, files));
        let events = Collected::default();
        let publisher = Publisher::start_with(events.clone(), "default");
        let tasks = Tasks::new("default", pod.clone(), publisher);
        Self { _root: root, bundle, tasks, pod, guest, events }
    }

    /// The bundle of another container, which has `source` as its volume.
    fn another_bundle(&self, source: &Path) -> PathBuf {
        let bundle = self.bundle.with_file_name("another");
        fs::create_dir_all(bundle.join("rootfs")).unwrap();
        let mut spec: serde_json::Value =
            serde_json::from_slice(&fs::read(self.bundle.join("config.json")).unwrap()).unwrap();
        spec["mounts"][0]["source"] = source.to_str().unwrap().into();
        fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
        bundle
    }

    async fn create(&self, stdio: Stdio) -> Result<u32, super::TaskError> {
        let request =
            CreateRequest { id: "c1".into(), bundle: self.bundle.clone(), stdio, ..CreateRequest::default() };
        self.tasks.create(request).await
    }

    /// Why the guest has stopped.
    async fn stop_report(&self) -> String {
        self.pod.vm().unwrap().stopped().await.to_string()
    }

    async fn topics(&self) -> Vec<String> {
        self.tasks.publisher().flush().await;
        self.events.0.lock().unwrap().iter().map(|event| event.topic.clone()).collect()
    }

    /// What a client reads from a fifo of this name.
    fn fifo(&self, name: &str) -> (String, PathBuf) {
        let path = self.bundle.join(name);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        (path.to_str().unwrap().to_owned(), path)
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.pod.directory().remove().unwrap();
    }
}

/// The pid with which the shim answers a containerd that starts, and has found it.
async fn connected(service: &TaskService, id: &str) -> ttrpc::Result<u32> {
    let request = ConnectRequest { id: id.into(), ..Default::default() };
    service.connect(&TtrpcContext::default(), request).await.map(|answer| answer.task_pid)
}

fn assert_not_found(answer: &ttrpc::Result<u32>) {
    let Err(ttrpc::Error::RpcStatus(status)) = answer else { panic!("{answer:?}") };
    assert_eq!(status.code(), Code::NOT_FOUND);
}

#[tokio::test(flavor = "current_thread")]
async fn a_shim_without_the_container_that_it_was_started_for_says_so_to_a_containerd_that_starts() {
    let fixture = Fixture::new(json!(["sleep"])).await;
    let ending = Arc::new(Ending::new(fixture.pod.clone(), None));
    let service = TaskService::new(fixture.tasks.clone(), ending);
    assert_not_found(&connected(&service, "c1").await);
    let being_created = fixture.tasks.reserve("c1").unwrap();
    let mut connecting = std::pin::pin!(connected(&service, "c1"));
    tokio::time::timeout(Duration::ZERO, &mut connecting).await.expect_err("nobody knows yet");
    drop(being_created);
    assert_not_found(&connecting.await);
    let pid = fixture.create(Stdio::default()).await.unwrap();
    assert_eq!(connected(&service, "c1").await.unwrap(), pid);
}

#[tokio::test(flavor = "current_thread")]
async fn a_pause_container_is_the_process_with_which_its_guest_has_begun_and_is_made_only_once_it_is_no_more()
{
    let fixture = Fixture::new(json!(["/pause"])).await;
    let path = fixture.bundle.join("config.json");
    let mut spec: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    spec["annotations"] = json!({"io.kubernetes.cri.container-type": "sandbox"});
    fs::write(&path, spec.to_string()).unwrap();
    let (stdout, path) = fixture.fifo("stdout");
    let mut reader = fs::File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).unwrap();
    fixture.create(Stdio { stdout, ..Stdio::default() }).await.unwrap();
    assert_eq!(
        std::io::copy(&mut reader, &mut std::io::sink()).unwrap(),
        0,
        "it has no output, and nobody waits for any"
    );
    fixture.tasks.start("c1", "").await.unwrap();
    assert_eq!(fixture.guest.calls(), [""; 0], "neither create nor start");

    fixture.tasks.kill("c1", "", 9, false).await.unwrap();
    assert_eq!(fixture.tasks.container("c1").unwrap().init.wait().await.status, 137);
    fixture.tasks.delete("c1", "").await.unwrap();
    fixture.create(Stdio::default()).await.unwrap();
    fixture.tasks.start("c1", "").await.unwrap();
    let calls = fixture.guest.calls();
    assert!(["create c1", "start c1"].iter().all(|call| calls.iter().any(|made| made == call)), "{calls:?}");
}

#[tokio::test(flavor = "current_thread")]
async fn a_container_lives_from_create_to_delete_and_its_events_come_in_order() {
    let fixture = Fixture::new(json!(["exit", "7"])).await;
    fixture.create(Stdio::default()).await.unwrap();
    fixture.tasks.start("c1", "").await.unwrap();
    let init = fixture.tasks.container("c1").unwrap().init.clone();
    assert_eq!(init.wait().await.status, 7);
    assert_eq!(fixture.tasks.delete("c1", "").await.unwrap().status, 7);
    assert!(fixture.tasks.is_empty());
    assert_eq!(fixture.topics().await, ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]);

    let events = fixture.events.0.lock().unwrap();
    let exit =
        containerd_shim_protos::events::task::TaskExit::parse_from_bytes(&events[2].event.value).unwrap();
    assert_eq!((exit.container_id.as_str(), exit.id.as_str(), exit.exit_status), ("c1", "c1", 7));
}

#[tokio::test(flavor = "current_thread")]
async fn the_guest_sees_root_file_system_and_volumes_and_the_host_is_clean_afterwards() {
    let fixture = Fixture::new(json!(["exit", "0"])).await;
    fixture.create(Stdio::default()).await.unwrap();
    let share = fixture.pod.directory().container("c1");
    let spec = fixture.guest.specs().remove(0);
    assert_eq!(spec["root"]["path"], "/run/saya/share/private/c1/rootfs");
    assert_eq!(spec["mounts"][0]["source"], "/run/saya/share/live/0");
    let root = fixture.bundle.parent().unwrap().join("state/default/c1/share");
    assert!(root.join("private/c1/rootfs/bin").is_dir());
    let volume = root.join("live/0");
    assert!(volume.join("bundle").is_dir());
    assert_eq!(fs::write(volume.join("new"), "").unwrap_err().kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    assert_eq!(
        fs::write(root.join("private/new"), "").unwrap_err().kind(),
        std::io::ErrorKind::ReadOnlyFilesystem
    );

    fixture.tasks.delete("c1", "").await.unwrap();
    assert!(!root.join("private/c1").exists() && !root.join("live/0").exists());
    assert!(fixture.guest.calls().contains(&"delete c1".to_owned()));
    assert!(fixture.bundle.join("rootfs/bin").is_dir(), "what was mounted is still there");
    share.remove().unwrap();
}

#[tokio::test(flavor = "current_thread")]
async fn input_reaches_the_process_and_its_output_is_complete_before_its_exit_is_told() {
    let fixture = Fixture::new(json!(["cat"])).await;
    let (stdin, stdin_path) = fixture.fifo("stdin");
    let (stdout, stdout_path) = fixture.fifo("stdout");
    fixture.create(Stdio { stdin, stdout, ..Stdio::default() }).await.unwrap();
    fixture.tasks.start("c1", "").await.unwrap();

    let reading = tokio::task::spawn_blocking(move || fs::read(stdout_path).unwrap());
    let sent = vec![7; 200_000];
    let copy = sent.clone();
    let writing = tokio::task::spawn_blocking(move || fs::write(stdin_path, copy).unwrap());
    writing.await.unwrap();
    let container = fixture.tasks.container("c1").unwrap();
    container.init.close_stdin();
    assert_eq!(container.init.wait().await.status, 0);
    fixture.tasks.delete("c1", "").await.unwrap();
    assert!(reading.await.unwrap() == sent);
}

#[tokio::test(flavor = "current_thread")]
async fn an_additional_process_has_its_own_life_and_the_first_process_ends_last() {
    let fixture = Fixture::new(json!(["sleep"])).await;
    fixture.create(Stdio::default()).await.unwrap();
    fixture.tasks.start("c1", "").await.unwrap();
    fixture.tasks.exec("c1", "e1", br#"{"args":["exit","3"],"cwd":"/"}"#, Stdio::default()).unwrap();
    let twice = fixture.tasks.exec("c1", "e1", br#"{"args":["x"]}"#, Stdio::default());
    assert_eq!(twice.unwrap_err().code(), Code::ALREADY_EXISTS);
    fixture.tasks.start("c1", "e1").await.unwrap();
    let exec = fixture.tasks.container("c1").unwrap().process("e1").unwrap();
    assert_eq!(exec.wait().await.status, 3);
    assert_eq!(fixture.tasks.delete("c1", "e1").await.unwrap().status, 3);
    assert_eq!(fixture.tasks.delete("c1", "e1").await.unwrap_err().code(), Code::NOT_FOUND);

    // One that still runs when the first process ends is told of before it.
    fixture.tasks.exec("c1", "e2", br#"{"args":["sleep"]}"#, Stdio::default()).unwrap();
    fixture.tasks.start("c1", "e2").await.unwrap();
    fixture.tasks.kill("c1", "", 15, false).await.unwrap();
    let container = fixture.tasks.container("c1").unwrap();
    fixture.tasks.kill("c1", "e2", 9, false).await.unwrap();
    assert_eq!(container.init.wait().await.status, 143);
    fixture.tasks.delete("c1", "").await.unwrap();
    assert_eq!(
        fixture.topics().await,
        [
            "/tasks/create",
            "/tasks/start",
            "/tasks/exec-added",
            "/tasks/exec-started",
            "/tasks/exit",
            "/tasks/exec-added",
            "/tasks/exec-started",
            "/tasks/exit",
            "/tasks/exit",
            "/tasks/delete",
        ]
    );
    let events = fixture.events.0.lock().unwrap();
    let last =
        containerd_shim_protos::events::task::TaskExit::parse_from_bytes(&events[8].event.value).unwrap();
    assert_eq!(last.id, "c1");
}

#[tokio::test(flavor = "current_thread")]
async fn calls_that_do_not_fit_the_state_get_the_codes_that_containerd_knows() {
    let fixture = Fixture::new(json!(["sleep"])).await;
    assert_eq!(fixture.tasks.start("c1", "").await.unwrap_err().code(), Code::NOT_FOUND);
    fixture.create(Stdio::default()).await.unwrap();
    assert_eq!(fixture.create(Stdio::default()).await.unwrap_err().code(), Code::ALREADY_EXISTS);
    fixture.tasks.start("c1", "").await.unwrap();
    assert_eq!(fixture.tasks.start("c1", "").await.unwrap_err().code(), Code::FAILED_PRECONDITION);
    assert_eq!(fixture.tasks.delete("c1", "").await.unwrap_err().code(), Code::FAILED_PRECONDITION);
    assert_eq!(fixture.tasks.resume("c1").await.unwrap_err().code(), Code::FAILED_PRECONDITION);

    fixture.tasks.pause("c1").await.unwrap();
    assert_eq!(fixture.tasks.pause("c1").await.unwrap_err().code(), Code::FAILED_PRECONDITION);
    let refused = fixture.tasks.exec("c1", "e1", br#"{"args":["x"]}"#, Stdio::default());
    assert_eq!(refused.unwrap_err().code(), Code::FAILED_PRECONDITION);
    fixture.tasks.resume("c1").await.unwrap();

    fixture.tasks.kill("c1", "", 9, false).await.unwrap();
    assert_eq!(fixture.tasks.container("c1").unwrap().init.wait().await.status, 137);
    assert_eq!(fixture.tasks.kill("c1", "", 9, false).await.unwrap_err().code(), Code::NOT_FOUND);
    fixture.tasks.delete("c1", "").await.unwrap();
    assert_eq!(fixture.tasks.kill("c1", "", 9, false).await.unwrap_err().code(), Code::NOT_FOUND);
}

#[tokio::test(flavor = "current_thread")]
async fn a_container_that_cannot_be_created_leaves_nothing_and_its_id_is_free() {
    let fixture = Fixture::new(json!(["missing"])).await;
    let error = fixture.create(Stdio::default()).await.unwrap_err();
    assert!(error.to_string().contains("\"missing\": executable file not found"), "{error}");
    assert!(fixture.tasks.is_empty());
    let share = fixture.bundle.parent().unwrap().join("state/default/c1/share");
    assert!(!share.join("private/c1").exists());
    assert!(fixture.topics().await.is_empty());
    assert_eq!(fixture.create(Stdio::default()).await.unwrap_err().code(), error.code());
}

#[tokio::test(flavor = "current_thread")]
async fn the_id_of_a_container_that_cannot_be_created_is_free_once_its_files_are_gone() {
    let fixture = Fixture::new(json!(["missing"])).await;
    let share = fixture.bundle.parent().unwrap().join("state/default/c1/share");
    let id_is_free = async {
        fixture.tasks.settle("c1").await;
        assert!(!share.join("private/c1").exists() && !share.join("live/0").exists());
    };
    let (created, ()) = tokio::join!(fixture.create(Stdio::default()), id_is_free);
    created.unwrap_err();
}

#[tokio::test(flavor = "current_thread")]
async fn a_container_that_is_being_created_is_deleted_once_it_is_there() {
    let fixture = Fixture::new(json!(["sleep"])).await;
    let tasks = fixture.tasks.clone();
    let (created, deleted) = tokio::join!(fixture.create(Stdio::default()), tasks.delete("c1", ""));
    created.unwrap();
    assert_eq!(deleted.unwrap().status, 137);
    assert!(fixture.tasks.is_empty());
}

#[tokio::test(flavor = "current_thread")]
async fn a_container_that_was_never_started_is_ended_and_deleted() {
    let fixture = Fixture::new(json!(["sleep"])).await;
    fixture.create(Stdio::default()).await.unwrap();
    assert_eq!(fixture.tasks.delete("c1", "").await.unwrap().status, 137);
    assert_eq!(fixture.topics().await, ["/tasks/create", "/tasks/exit", "/tasks/delete"]);
}

#[tokio::test(flavor = "current_thread")]
async fn processes_of_a_virtual_machine_that_is_gone_end_as_killed() {
    let fixture = Fixture::new(json!(["sleep"])).await;
    fixture.create(Stdio::default()).await.unwrap();
    fixture.tasks.start("c1", "").await.unwrap();
    fixture.pod.vm().unwrap().stop("a test ends it");
    let container = fixture.tasks.container("c1").unwrap();
    assert_eq!(container.init.wait().await.status, 137);
    assert_eq!(fixture.tasks.delete("c1", "").await.unwrap().status, 137);
    assert_eq!(fixture.topics().await, ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]);
}

#[tokio::test(flavor = "current_thread")]
async fn hooks_of_the_host_run_around_the_container() {
    let fixture = Fixture::new(json!(["exit", "0"])).await;
    let log = fixture.bundle.join("hooks");
    let hook = |name: &str| json!([{"path": "/bin/sh", "args": ["sh", "-c", format!("echo {name} >> {}", log.display())]}]);
    let mut spec: serde_json::Value =
        serde_json::from_slice(&fs::read(fixture.bundle.join("config.json")).unwrap()).unwrap();
    spec["hooks"] = json!({"prestart": hook("prestart"), "createRuntime": hook("createRuntime"),
        "poststart": hook("poststart"), "poststop": hook("poststop")});
    fs::write(fixture.bundle.join("config.json"), spec.to_string()).unwrap();

    fixture.create(Stdio::default()).await.unwrap();
    fixture.tasks.start("c1", "").await.unwrap();
    fixture.tasks.container("c1").unwrap().init.wait().await;
    fixture.tasks.delete("c1", "").await.unwrap();
    assert_eq!(fs::read_to_string(&log).unwrap(), "prestart\ncreateRuntime\npoststart\npoststop\n");
}

/// A file system that answers nothing, as a network's whose server is gone, until this ends.
struct Mute {
    place: PathBuf,
    _server: fs::File,
}

impl Mute {
    fn mount(place: PathBuf) -> Self {
        fs::create_dir(&place).unwrap();
        let server = fs::File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
        let options = CString::new(options).unwrap();
        mount("mute", &place, "fuse", MountFlags::NOSUID | MountFlags::NODEV, options.as_c_str()).unwrap();
        Self { place, _server: server }
    }
}

impl Drop for Mute {
    fn drop(&mut self) {
        unmount(&self.place, UnmountFlags::DETACH).unwrap();
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_volume_whose_file_system_never_answers_holds_up_its_own_container_alone() {
    let fixture = Fixture::new(json!(["exit", "0"])).await;
    let mute = Mute::mount(fixture.bundle.with_file_name("mute"));
    let bundle = fixture.another_bundle(&mute.place);
    let (tasks, request) =
        (fixture.tasks.clone(), CreateRequest { id: "c2".into(), bundle, ..CreateRequest::default() });
    let stuck = tokio::spawn(async move { tasks.create(request).await });

    // It has its turn with the first thing that this one waits for.
    fixture.create(Stdio::default()).await.unwrap();
    fixture.tasks.start("c1", "").await.unwrap();
    let init = fixture.tasks.container("c1").unwrap().init.clone();
    assert_eq!(init.wait().await.status, 0);
    fixture.tasks.delete("c1", "").await.unwrap();
    assert!(!stuck.is_finished() && !fixture.tasks.is_empty());

    let place = mute.place.display().to_string();
    drop(mute);
    let error = stuck.await.unwrap().unwrap_err().to_string();
    assert!(error.contains(&place), "{error}");
    assert!(fixture.tasks.is_empty());
}
