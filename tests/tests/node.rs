//! Promises of `deploy/node/node.sh`, which the DaemonSet runs on each node.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use saya_tests::leaks;
use tempfile::TempDir;

/// An API server that knows one node and one DaemonSet, and notes what it is asked.
struct ApiServer {
    address: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl ApiServer {
    /// `daemonset` is the status and the body of the answer to who asks for it.
    fn start(daemonset: (u16, &'static str)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&asked);
        // Ends with the process.
        thread::spawn(move || {
            for connection in listener.incoming() {
                noted.lock().unwrap().push(answer(connection.unwrap(), daemonset));
            }
        });
        Self { address, asked }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

/// Answers one request and gives its method, path, authorization and body.
fn answer(connection: TcpStream, daemonset: (u16, &str)) -> String {
    let mut reader = BufReader::new(connection);
    let mut first = String::new();
    reader.read_line(&mut first).unwrap();
    let (mut length, mut token) = (0, String::new());
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).unwrap();
        let header = header.trim();
        if header.is_empty() {
            break;
        }
        let (name, value) = header.split_once(": ").unwrap();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().unwrap(),
            "authorization" => value.clone_into(&mut token),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let words: Vec<&str> = first.split_whitespace().collect();
    let (status, text) = match (words[0], words[1]) {
        ("PATCH", "/api/v1/nodes/n1") => (200, "{}"),
        ("GET", "/apis/apps/v1/namespaces/saya/daemonsets/saya-node") => daemonset,
        _ => (403, "{}"),
    };
    let reply =
        format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}", text.len());
    reader.get_mut().write_all(reply.as_bytes()).unwrap();
    format!("{token} {} {} {}", words[0], words[1], String::from_utf8(body).unwrap()).trim().to_owned()
}

/// A node's root, a service account, and a stand-in for what runs commands on the node.
struct Node {
    directory: TempDir,
}

impl Node {
    fn new() -> Self {
        let node = Self { directory: TempDir::new().unwrap() };
        for directory in ["root", "account", "image"] {
            fs::create_dir(node.path(directory)).unwrap();
        }
        fs::write(node.path("account/token"), "secret").unwrap();
        for file in ["containerd-shim-kata-v2", "vmlinux", "initramfs.cpio"] {
            fs::write(node.path("image").join(file), file).unwrap();
        }
        let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
        let copied =
            Command::new("cp").arg("-r").arg(deploy).arg(node.path("image/deploy")).status().unwrap();
        assert!(copied.success());
        node.runs_commands("exit 0");
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What running a command on the node does besides being noted.
    fn runs_commands(&self, script: &str) {
        let note = self.path("commands");
        let program = self.path("on-node");
        fs::write(&program, format!("#!/bin/sh\necho \"$*\" >>{}\n{script}\n", note.display())).unwrap();
        fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }

    fn commands(&self) -> String {
        fs::read_to_string(self.path("commands")).unwrap_or_default()
    }

    fn start(&self, server: &ApiServer) -> Child {
        Command::new(self.path("image/deploy/node/node.sh"))
            .envs([("NODE", "n1"), ("NAMESPACE", "saya"), ("API", &server.address)])
            .env("ACCOUNT", self.path("account"))
            .env("ROOT", self.path("root"))
            .env("ON_NODE", self.path("on-node"))
            .env("READY", self.path("ready"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// Runs the script until it has done all that it does by itself.
    fn run(&self, server: &ApiServer) -> Running {
        let mut process = self.start(server);
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let by_itself = lines.by_ref().map(Result::unwrap);
        let said: Vec<String> = by_itself.take_while(|line| !line.ends_with("ready")).collect();
        assert!(process.try_wait().unwrap().is_none(), "it has ended: {said:?}");
        Running { process, said, _output: lines }
    }

    /// Runs the script until it is ready, and then to the end that follows SIGTERM.
    fn install_and_end(&self, server: &ApiServer) {
        let running = self.run(server);
        assert!(self.is_ready());
        assert!(self.is_installed());
        running.end();
        assert!(!self.is_ready());
    }

    fn is_ready(&self) -> bool {
        self.path("ready").exists()
    }

    fn is_installed(&self) -> bool {
        self.path("root/usr/local/bin/containerd-shim-kata-v2").exists()
            && self.path("root/etc/containerd/config.toml").exists()
    }

    /// The files that the script has left on the node.
    fn left(&self) -> Vec<PathBuf> {
        leaks::walk(&self.path("root"), &|path| !path.is_dir())
    }
}

/// The script, waiting for the end of its pod.
struct Running {
    process: Child,
    /// What it has printed.
    said: Vec<String>,
    /// Open, so that it can print more.
    _output: std::io::Lines<BufReader<ChildStdout>>,
}

impl Running {
    /// Ends it as a kubelet does, and gives what it has complained of.
    fn end(self) -> String {
        kill_process(Pid::from_child(&self.process), Signal::TERM).unwrap();
        let output = self.process.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    }
}

const LABEL: &str = r#"Bearer secret PATCH /api/v1/nodes/n1 {"metadata":{"labels":{"saya-runtime":"true"}}}"#;
const UNLABEL: &str = r#"Bearer secret PATCH /api/v1/nodes/n1 {"metadata":{"labels":{"saya-runtime":null}}}"#;
const ASK: &str = "Bearer secret GET /apis/apps/v1/namespaces/saya/daemonsets/saya-node";

const RESTART: &str = "systemctl restart containerd\n";
const CHECK: &str = "/usr/local/bin/saya check\n";
const GONE: (u16, &str) = (404, "{}");
const STAYS: (u16, &str) = (200, r#"{"metadata":{}}"#);

#[test]
fn a_node_is_labelled_once_it_can_run_saya_and_cleared_when_the_daemonset_is_deleted() {
    for gone in [GONE, (200, r#"{"metadata":{"deletionTimestamp":"2026-01-01T00:00:00Z"}}"#)] {
        let (node, server) = (Node::new(), ApiServer::start(gone));
        node.install_and_end(&server);
        assert_eq!(server.asked(), [LABEL, ASK, UNLABEL]);
        assert_eq!(node.left(), [] as [PathBuf; 0]);
        assert_eq!(node.commands(), format!("{RESTART}{CHECK}{RESTART}"));
    }
}

#[test]
fn a_pod_that_ends_while_its_daemonset_stays_leaves_the_node_as_it_is() {
    for stays in [STAYS, (403, "{}")] {
        let (node, server) = (Node::new(), ApiServer::start(stays));
        node.install_and_end(&server);
        assert_eq!(server.asked(), [LABEL, ASK]);
        assert!(node.is_installed());
        // The next pod finds everything in place, and disturbs nobody.
        node.install_and_end(&server);
        assert_eq!(node.commands().matches("restart").count(), 1, "{}", node.commands());
    }
}

#[test]
fn a_node_that_cannot_run_saya_has_no_label_and_nothing_is_left_on_it_when_the_daemonset_is_deleted() {
    let (node, server) = (Node::new(), ApiServer::start(GONE));
    let original = "version = 2\n[debug]\n  level = \"info\"\n";
    let configuration = node.path("root/etc/containerd/config.toml");
    fs::create_dir_all(configuration.parent().unwrap()).unwrap();
    fs::write(&configuration, original).unwrap();
    node.runs_commands("case $1 in */saya) echo no KVM; exit 1 ;; esac");
    let running = node.run(&server);
    assert!(running.said.iter().any(|line| line == "no KVM"), "{:?}", running.said);
    assert!(!node.is_ready());
    assert_eq!(server.asked(), [UNLABEL], "it may have had the label from before");
    let complaint = running.end();
    assert!(complaint.contains("n1 cannot run Saya"), "{complaint}");
    assert_eq!(server.asked(), [UNLABEL, ASK, UNLABEL]);
    assert_eq!(node.left(), std::slice::from_ref(&configuration));
    assert_eq!(fs::read_to_string(configuration).unwrap(), original);
    assert_eq!(node.commands(), format!("{RESTART}{CHECK}{RESTART}"), "containerd has forgotten the handler");
}

#[test]
fn an_installation_that_fails_is_no_end_of_the_pod_and_leaves_nothing() {
    let (node, server) = (Node::new(), ApiServer::start(GONE));
    let configuration = node.path("root/etc/containerd/config.toml");
    fs::create_dir_all(configuration.parent().unwrap()).unwrap();
    fs::write(&configuration, "version = 2\n[plugins.\"x\".containerd.runtimes.kata]\n").unwrap();
    let running = node.run(&server);
    assert!(!node.is_ready() && !node.left().is_empty());
    let complaint = running.end();
    assert!(complaint.contains("names a runtime kata already"), "{complaint}");
    assert_eq!(server.asked(), [UNLABEL, ASK, UNLABEL]);
    assert_eq!(node.left(), [configuration]);
}

#[test]
fn a_restart_of_containerd_that_did_not_happen_is_made_up_for_by_the_next_pod() {
    let (node, server) = (Node::new(), ApiServer::start(STAYS));
    node.runs_commands("case $1 in systemctl) exit 1 ;; esac");
    node.run(&server).end();
    assert_eq!(node.commands(), RESTART, "a node whose containerd does not start is not checked");
    assert!(!server.asked().contains(&LABEL.to_owned()));

    node.runs_commands("exit 0");
    node.install_and_end(&server);
    assert_eq!(node.commands(), format!("{RESTART}{RESTART}{CHECK}"));
    node.install_and_end(&server);
    assert_eq!(node.commands(), format!("{RESTART}{RESTART}{CHECK}{CHECK}"), "once is enough");
}

#[test]
fn a_pod_that_is_ended_while_it_installs_leaves_the_restart_to_the_next() {
    let (node, server) = (Node::new(), ApiServer::start(STAYS));
    // As if the kubelet sent SIGTERM while the installer ran: the shell heeds it once that has ended.
    let installer = node.path("image/deploy/install.sh");
    let script = fs::read_to_string(&installer).unwrap();
    fs::write(&installer, format!("{script}\nkill -TERM $PPID\n")).unwrap();
    let output = node.start(&server).wait_with_output().unwrap();
    assert!(output.status.success() && node.is_installed(), "{output:?}");
    assert_eq!(node.commands(), "", "containerd does not know the handler yet");

    fs::write(&installer, script).unwrap();
    node.install_and_end(&server);
    assert_eq!(node.commands(), format!("{RESTART}{CHECK}"));
}

#[test]
fn manifests_name_what_the_script_names() {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    let read = |name: &str| fs::read_to_string(deploy.join(name)).unwrap();
    let script = read("node/node.sh");
    let value = |name: &str| {
        let prefix = format!("{name}=");
        script.lines().find_map(|line| line.strip_prefix(&prefix)).unwrap().to_owned()
    };
    let daemonset = value("daemonset");
    assert!(
        read("kubernetes/node.yaml").contains(&format!("kind: DaemonSet\nmetadata:\n  name: {daemonset}\n"))
    );
    assert!(read("kubernetes/node.yaml").contains("\"test\", \"-e\", \"/run/saya-node.ready\""));
    assert!(script.contains("ready=${READY:-/run/saya-node.ready}\n"));
    assert!(read("kubernetes/node-access.yaml").contains(&format!("resourceNames: [\"{daemonset}\"]")));
    assert!(read("kubernetes/runtimeclass.yaml").contains(&format!("{}: \"true\"", value("label"))));
}
