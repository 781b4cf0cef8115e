//! Promises of `deploy/node/node.sh`, which the DaemonSet runs on each node.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
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
        std::os::unix::fs::symlink(deploy.canonicalize().unwrap(), node.path("image/deploy")).unwrap();
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
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// Runs the script until it is ready, and then to the end that follows SIGTERM.
    fn install_and_end(&self, server: &ApiServer) {
        let mut script = self.start(server);
        let mut lines = BufReader::new(script.stdout.take().unwrap()).lines();
        let ready = lines.by_ref().map_while(Result::ok).any(|line| line == "ready");
        if !ready {
            let output = script.wait_with_output().unwrap();
            assert!(ready, "{}", String::from_utf8_lossy(&output.stderr));
            return;
        }
        assert!(self.is_installed());
        kill_process(Pid::from_child(&script), Signal::TERM).unwrap();
        lines.for_each(drop);
        assert!(script.wait().unwrap().success());
    }

    fn is_installed(&self) -> bool {
        self.path("root/usr/local/bin/containerd-shim-kata-v2").exists()
            && self.path("root/etc/containerd/config.toml").exists()
    }
}

const LABEL: &str = r#"Bearer secret PATCH /api/v1/nodes/n1 {"metadata":{"labels":{"saya-runtime":"true"}}}"#;
const UNLABEL: &str = r#"Bearer secret PATCH /api/v1/nodes/n1 {"metadata":{"labels":{"saya-runtime":null}}}"#;
const ASK: &str = "Bearer secret GET /apis/apps/v1/namespaces/saya/daemonsets/saya-node";

#[test]
fn a_node_is_labelled_once_it_can_run_saya_and_cleared_when_the_daemonset_is_deleted() {
    for gone in [(404, "{}"), (200, r#"{"metadata":{"deletionTimestamp":"2026-01-01T00:00:00Z"}}"#)] {
        let (node, server) = (Node::new(), ApiServer::start(gone));
        node.install_and_end(&server);
        assert_eq!(server.asked(), [LABEL, ASK, UNLABEL]);
        assert!(!node.is_installed());
        let restart = "systemctl restart containerd\n";
        assert_eq!(node.commands(), format!("{restart}/usr/local/bin/saya check\n{restart}"));
    }
}

#[test]
fn a_pod_that_ends_while_its_daemonset_stays_leaves_the_node_as_it_is() {
    for stays in [(200, r#"{"metadata":{}}"#), (403, "{}")] {
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
fn a_node_that_cannot_run_saya_gets_no_label() {
    let (node, server) = (Node::new(), ApiServer::start((404, "{}")));
    node.runs_commands("case $1 in */saya) echo no KVM; exit 1 ;; esac");
    let output = node.start(&server).wait_with_output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).contains("no KVM"), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("n1 cannot run Saya"), "{output:?}");
    assert_eq!(server.asked(), [] as [&str; 0]);
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
    assert!(read("kubernetes/node-access.yaml").contains(&format!("resourceNames: [\"{daemonset}\"]")));
    assert!(read("kubernetes/runtimeclass.yaml").contains(&format!("{}: \"true\"", value("label"))));
}
