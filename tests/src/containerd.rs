//! containerd's own services, as far as `ctr` does not reach: a task that is created and not started.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::Context;
use prost::Message;
use rustix::process::Pid;

use crate::cri::grpc::Connection;
use crate::lab::containerd::usual_places;

/// The namespace of `ctr`.
const NAMESPACE: &str = "default";
/// The snapshotter of `ctr`.
const SNAPSHOTTER: &str = "overlayfs";

/// Where its socket is.
fn address() -> String {
    std::env::var("CONTAINERD_ADDRESS").unwrap_or_else(|_| "/run/containerd/containerd.sock".to_owned())
}

/// The log of a containerd that the lab has started, here or in its machine: its shims' records are in it.
pub fn log() -> PathBuf {
    match std::env::var("CONTAINERD_ADDRESS") {
        Ok(socket) => Path::new(&socket).with_file_name("containerd.log"),
        Err(_) => usual_places().log,
    }
}

/// The process behind its socket.
///
/// # Errors
/// Nobody answers.
pub fn process() -> anyhow::Result<Pid> {
    let socket = UnixStream::connect(address()).context("containerd does not answer")?;
    Ok(rustix::net::sockopt::socket_peercred(&socket)?.pid)
}

/// Has our shim started for a container or sandbox, as containerd does it, and waits for its answer.
///
/// # Errors
/// There is no shim on `PATH`.
pub fn start_shim(bundle: &Path, id: &str) -> io::Result<Output> {
    Command::new("containerd-shim-kata-v2")
        .args(["-namespace", NAMESPACE, "-address", &address(), "-id", id, "start"])
        .current_dir(bundle)
        .output()
}

/// containerd's `types.Mount`.
#[derive(Clone, PartialEq, Message)]
struct Mount {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(string, tag = "2")]
    source: String,
    #[prost(string, tag = "3")]
    target: String,
    #[prost(string, repeated, tag = "4")]
    options: Vec<String>,
}

/// `services.snapshots.v1.MountsRequest`.
#[derive(Clone, PartialEq, Message)]
struct MountsRequest {
    #[prost(string, tag = "1")]
    snapshotter: String,
    #[prost(string, tag = "2")]
    key: String,
}

/// `services.snapshots.v1.MountsResponse`.
#[derive(Clone, PartialEq, Message)]
struct MountsResponse {
    #[prost(message, repeated, tag = "1")]
    mounts: Vec<Mount>,
}

/// `services.tasks.v1.CreateTaskRequest`, without streams.
#[derive(Clone, PartialEq, Message)]
struct CreateTaskRequest {
    #[prost(string, tag = "1")]
    container_id: String,
    #[prost(message, repeated, tag = "3")]
    rootfs: Vec<Mount>,
}

/// `services.tasks.v1.CreateTaskResponse`.
#[derive(Clone, PartialEq, Message)]
struct CreateTaskResponse {
    #[prost(string, tag = "1")]
    container_id: String,
    #[prost(uint32, tag = "2")]
    pid: u32,
}

/// Creates the task of a container that `ctr container create` has made, and does not start it. Answers its pid.
///
/// # Errors
/// containerd refuses.
pub fn create_task(container: &str) -> anyhow::Result<u32> {
    let socket = address();
    let connection = Connection::open(Path::new(&socket), Some(NAMESPACE))
        .with_context(|| format!("connecting to {socket}"))?;
    let snapshot = MountsRequest { snapshotter: SNAPSHOTTER.to_owned(), key: container.to_owned() };
    let mounts: MountsResponse =
        connection.call("/containerd.services.snapshots.v1.Snapshots/Mounts", &snapshot)?;
    let request = CreateTaskRequest { container_id: container.to_owned(), rootfs: mounts.mounts };
    let created: CreateTaskResponse =
        connection.call("/containerd.services.tasks.v1.Tasks/Create", &request)?;
    Ok(created.pid)
}
