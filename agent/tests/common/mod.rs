//! An agent of the test's own, on this machine's kernel: no virtual machine, but real namespaces and cgroups.
//!
//! It needs root, a cgroup2 tree and a static busybox. Where these are missing, [`Machine::start`] says so and the
//! test passes without having run; the laboratory has them.

#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use saya_agent_api::agent::{
    ContainerRequest, CreateContainerRequest, CreateProcessRequest, ProcessRequest, SignalProcessRequest,
    Streams, WaitProcessResponse,
};
use saya_agent_api::service::AgentClient;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Long enough for anything that is not broken.
const NEVER: Duration = Duration::from_secs(120);

/// A machine, or the end of the test where one cannot be had.
macro_rules! machine {
    () => {
        match $crate::common::Machine::start().await {
            Some(machine) => machine,
            None => return,
        }
    };
}

static NEXT: AtomicU32 = AtomicU32::new(0);
static NEXT_STREAM: AtomicU64 = AtomicU64::new(1);

pub(crate) struct Machine {
    agent: Child,
    directory: TempDir,
    cgroup: PathBuf,
    pub(crate) client: AgentClient,
}

fn cgroup_tree() -> Option<PathBuf> {
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .into_iter()
        .map(PathBuf::from)
        .find(|path| path.join("cgroup.controllers").exists())
}

fn missing() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("root");
    }
    if cgroup_tree().is_none() {
        return Some("a cgroup2 tree");
    }
    if !Path::new("/bin/busybox").exists() {
        return Some("a static /bin/busybox");
    }
    None
}

impl Machine {
    pub(crate) async fn start() -> Option<Self> {
        if let Some(missing) = missing() {
            eprintln!("skipped: needs {missing}");
            return None;
        }
        let name = format!("saya-agent-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let cgroup = cgroup_tree()?.join(name);
        fs::create_dir(&cgroup).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let agent = Command::new(env!("CARGO_BIN_EXE_saya-agent"))
            .arg("serve")
            .arg(directory.path())
            .arg(&cgroup)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let control = directory.path().join("control");
        while UnixStream::connect(directory.path().join("streams")).is_err() {
            tokio::task::yield_now().await;
        }
        let client = ttrpc::r#async::Client::connect(&format!("unix://{}", control.display())).await.unwrap();
        Some(Self { agent, directory, cgroup, client: AgentClient::new(client) })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.agent.id()
    }

    pub(crate) fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// A root file system with busybox.
    pub(crate) fn rootfs(&self) -> PathBuf {
        let rootfs = self.directory.path().join(format!("rootfs-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        for directory in ["bin", "etc", "proc", "sys", "dev", "tmp", "root"] {
            fs::create_dir_all(rootfs.join(directory)).unwrap();
        }
        fs::copy("/bin/busybox", rootfs.join("bin/busybox")).unwrap();
        let names = Command::new("/bin/busybox").arg("--list").output().unwrap().stdout;
        for name in String::from_utf8(names).unwrap().lines().filter(|name| *name != "busybox") {
            let _ = std::os::unix::fs::symlink("/bin/busybox", rootfs.join("bin").join(name));
        }
        fs::write(
            rootfs.join("etc/passwd"),
            "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n",
        )
        .unwrap();
        rootfs
    }

    /// The spec of a container that runs `arguments`, much as `ctr run` makes it.
    pub(crate) fn spec(&self, arguments: &[&str]) -> Value {
        spec(&self.rootfs(), arguments)
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Opens stream connections: standard input, output and error.
    pub(crate) fn streams(&self) -> (Streams, Stdio3) {
        let numbers: Vec<u64> = (0..3).map(|_| NEXT_STREAM.fetch_add(1, Ordering::Relaxed)).collect();
        let request =
            Streams { stdin: numbers[0], stdout: numbers[1], stderr: numbers[2], ..Streams::default() };
        let [stdin, stdout, stderr] = [0, 1, 2].map(|index| self.connect(numbers[index]));
        (request, Stdio3 { stdin, stdout, stderr })
    }

    /// Opens the two connections of a terminal.
    pub(crate) fn terminal(&self, columns: u32, rows: u32) -> (Streams, UnixStream, UnixStream) {
        let numbers: Vec<u64> = (0..2).map(|_| NEXT_STREAM.fetch_add(1, Ordering::Relaxed)).collect();
        let request = Streams {
            stdin: numbers[0],
            stdout: numbers[1],
            terminal: true,
            terminal_columns: columns,
            terminal_rows: rows,
            ..Streams::default()
        };
        (request, self.connect(numbers[0]), self.connect(numbers[1]))
    }

    fn connect(&self, number: u64) -> UnixStream {
        let mut stream = UnixStream::connect(self.directory.path().join("streams")).unwrap();
        stream.write_all(&number.to_be_bytes()).unwrap();
        stream
    }

    pub(crate) async fn create(&self, id: &str, spec: &Value, streams: Streams) -> Result<u32, ttrpc::Error> {
        let request = CreateContainerRequest {
            container_id: id.to_owned(),
            oci_spec: spec.to_string().into_bytes(),
            streams: Some(streams).into(),
            ..CreateContainerRequest::default()
        };
        Ok(self.client.create_container(context(), &request).await?.pid)
    }

    pub(crate) async fn exec(
        &self,
        id: &str,
        exec: &str,
        process: &Value,
        streams: Streams,
    ) -> Result<u32, ttrpc::Error> {
        let request = CreateProcessRequest {
            container_id: id.to_owned(),
            exec_id: exec.to_owned(),
            oci_process: process.to_string().into_bytes(),
            streams: Some(streams).into(),
            ..CreateProcessRequest::default()
        };
        Ok(self.client.create_process(context(), &request).await?.pid)
    }

    pub(crate) async fn start_process(&self, id: &str, exec: &str) -> Result<(), ttrpc::Error> {
        self.client.start_process(context(), &process(id, exec)).await.map(drop)
    }

    pub(crate) async fn wait(&self, id: &str, exec: &str) -> WaitProcessResponse {
        self.client.wait_process(context(), &process(id, exec)).await.unwrap()
    }

    pub(crate) async fn delete(&self, id: &str, exec: &str) -> Result<(), ttrpc::Error> {
        self.client.delete_process(context(), &process(id, exec)).await.map(drop)
    }

    pub(crate) async fn close_stdin(&self, id: &str, exec: &str) {
        self.client.close_stdin(context(), &process(id, exec)).await.unwrap();
    }

    pub(crate) async fn signal(
        &self,
        id: &str,
        exec: &str,
        signal: i32,
        all: bool,
    ) -> Result<(), ttrpc::Error> {
        let request = SignalProcessRequest {
            container_id: id.to_owned(),
            exec_id: exec.to_owned(),
            signal: signal.cast_unsigned(),
            all,
            ..SignalProcessRequest::default()
        };
        self.client.signal_process(context(), &request).await.map(drop)
    }

    pub(crate) async fn pids(&self, id: &str) -> Vec<(u32, String)> {
        let request = ContainerRequest { container_id: id.to_owned(), ..ContainerRequest::default() };
        let response = self.client.list_processes(context(), &request).await.unwrap();
        response.processes.into_iter().map(|process| (process.pid, process.exec_id)).collect()
    }

    /// Runs a container from its creation to its removal.
    pub(crate) async fn run(&self, id: &str, spec: &Value) -> Outcome {
        let (streams, stdio) = self.streams();
        self.create(id, spec, streams).await.unwrap();
        self.start_process(id, "").await.unwrap();
        let outcome = self.finish(id, "", stdio).await;
        self.delete(id, "").await.unwrap();
        outcome
    }

    /// Closes the input of a process, reads its output to the end and waits for its exit.
    pub(crate) async fn finish(&self, id: &str, exec: &str, stdio: Stdio3) -> Outcome {
        stdio.stdin.shutdown(Shutdown::Write).unwrap();
        let (output, errors) = (read_to_end(stdio.stdout), read_to_end(stdio.stderr));
        let exit = self.wait(id, exec).await;
        let (stdout, stderr) = (output.await.unwrap(), errors.await.unwrap());
        Outcome {
            status: exit.exit_status,
            stdout: String::from_utf8_lossy(&stdout).into_owned(),
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
            exit,
        }
    }
}

pub(crate) struct Stdio3 {
    pub(crate) stdin: UnixStream,
    pub(crate) stdout: UnixStream,
    pub(crate) stderr: UnixStream,
}

#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) status: u32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) exit: WaitProcessResponse,
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.agent.kill();
        let _ = self.agent.wait();
        let _ = fs::write(self.cgroup.join("cgroup.kill"), "1");
        // What was killed leaves the tree when it is reaped, by whoever inherits it.
        for _ in 0..1000 {
            if remove_tree(&self.cgroup).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        eprintln!("left behind: {}", self.cgroup.display());
    }
}

fn remove_tree(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            remove_tree(&path)?;
        }
    }
    fs::remove_dir(directory)
}

pub(crate) fn read_to_end(mut stream: UnixStream) -> tokio::task::JoinHandle<Vec<u8>> {
    tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        // The agent that has gone away is the end as well.
        let _ = stream.read_to_end(&mut bytes);
        bytes
    })
}

pub(crate) fn context() -> ttrpc::context::Context {
    ttrpc::context::with_duration(NEVER)
}

pub(crate) fn process(id: &str, exec: &str) -> ProcessRequest {
    ProcessRequest { container_id: id.to_owned(), exec_id: exec.to_owned(), ..ProcessRequest::default() }
}

pub(crate) fn message(error: &ttrpc::Error) -> (ttrpc::Code, String) {
    match error {
        ttrpc::Error::RpcStatus(status) => (status.code(), status.message.clone()),
        other => panic!("not a status: {other}"),
    }
}

pub(crate) const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

pub(crate) fn process_spec(arguments: &[&str]) -> Value {
    json!({
        "user": {"uid": 0, "gid": 0, "additionalGids": [0, 10]},
        "args": arguments,
        "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        "cwd": "/",
        "capabilities": {"bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES},
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
        "noNewPrivileges": true
    })
}

pub(crate) fn spec(rootfs: &Path, arguments: &[&str]) -> Value {
    json!({
        "ociVersion": "1.1.0",
        "process": process_spec(arguments),
        "root": {"path": rootfs},
        "hostname": "inside",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs",
             "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/run", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}
        ],
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "cgroupsPath": format!("/default/{}", rootfs.file_name().unwrap().to_string_lossy()),
            "namespaces": [
                {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"},
                {"type": "cgroup"}
            ],
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
        }
    })
}
