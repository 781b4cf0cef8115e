//! `delete`: takes away what a shim that was killed has left. Whatever is missing has been taken away already.
//!
//! containerd calls this too after a shim has ended as it should, while that may still be doing the same.

use std::env;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_shim_protos::api::DeleteResponse;
use protobuf::Message;

use super::flags::Flags;
use super::socket;
use crate::cgroup;
use crate::clock;
use crate::identifier;
use crate::network;
use crate::pod::directory::PodDirectory;
use crate::pod::record::Record;
use crate::spec::Document;

/// The status of a process that nobody followed to its end: as if SIGKILL had ended it.
const KILLED: u32 = 137;

/// How long a shim whose connection is closed may take to end. containerd gives `delete` five seconds.
const SHIM_PATIENCE: Duration = Duration::from_secs(1);
/// How long a shim that is taking its pod away may take for it before `delete` returns. It is not killed: it is doing
/// what `delete` would do, and would not have done within those five seconds on a machine that slow.
const ENDING_PATIENCE: Duration = Duration::from_secs(3);

/// Cleans up after the shim of the container that the flags name, and writes a `DeleteResponse` to standard output.
///
/// # Errors
/// An id that is none, or something on the host that would not go away.
pub(super) fn run(flags: &Flags) -> io::Result<()> {
    identifier::validate("namespace", &flags.namespace).map_err(io::Error::other)?;
    identifier::validate("container id", &flags.id).map_err(io::Error::other)?;
    let pid = clean_up(flags)?;
    let response = DeleteResponse {
        pid,
        exit_status: KILLED,
        exited_at: Some(clock::timestamp(clock::wall_ns())).into(),
        ..Default::default()
    };
    io::stdout().write_all(&response.write_to_bytes()?)
}

/// Answers the pid by which containerd knew the container; 0 where nobody knows any more.
fn clean_up(flags: &Flags) -> io::Result<u32> {
    let pod = pod_of(flags);
    let directory = PodDirectory::new(&flags.namespace, &pod);
    let Some(record) = Record::read(&directory.record()) else {
        // No VM was started, or all is gone already, but for the socket of a shim that was killed at its very beginning.
        directory.remove()?;
        if pod == flags.id {
            socket::remove_abandoned(&socket_of(flags, &pod));
        }
        return Ok(0);
    };
    let pid = record.vmm.map_or(0, |vmm| vmm.pid);
    let member = pod != flags.id;
    if member && record.shim.is_some_and(|shim| shim.is_alive()) {
        // One container of a pod that goes on.
        directory.container(&flags.id).remove()?;
        return Ok(pid);
    }
    if record.ending {
        let ended = record.shim.is_none_or(|shim| shim.ends_within(ENDING_PATIENCE));
        // Only a shim that was killed at it leaves its record. Another record is of another pod of the same name.
        if !ended || Record::read(&directory.record()).as_ref() != Some(&record) {
            return Ok(pid);
        }
    }
    if record.shim.is_some_and(|shim| !shim.end(SHIM_PATIENCE)) {
        return Err(io::Error::other(format!("the shim of pod {pod} does not end")));
    }
    if record.vmm.is_some_and(|vmm| !vmm.end(Duration::ZERO)) {
        return Err(io::Error::other(format!("the VMM of pod {pod} does not end")));
    }
    // One that fails keeps no other from being done. The directory, which has the record of them all, goes last.
    let namespace = record.network_namespace.as_deref();
    let network = namespace.map_or(Ok(()), |path| network::clean_up(path, &record.interfaces));
    let cgroups: Vec<_> = record.cgroups.iter().map(|cgroup| cgroup::remove(cgroup)).collect();
    network.map_err(io::Error::other)?;
    cgroups.into_iter().collect::<io::Result<()>>()?;
    directory.remove()?;
    socket::remove(&socket_of(flags, &pod));
    Ok(pid)
}

/// The pod that the container belongs to. A bundle that is gone leaves the container's own id.
fn pod_of(flags: &Flags) -> String {
    let spec = Document::read(&bundle_of(flags)).ok();
    let sandbox = spec.as_ref().and_then(|spec| spec.sandbox_id(&flags.id).ok());
    sandbox.unwrap_or(&flags.id).to_owned()
}

fn bundle_of(flags: &Flags) -> PathBuf {
    flags.bundle.clone().or_else(|| env::current_dir().ok()).unwrap_or_else(|| PathBuf::from("."))
}

/// The shim's socket: where the bundle says, or, if that is gone, where sockets are by default.
fn socket_of(flags: &Flags, pod: &str) -> PathBuf {
    let usual = || socket::path(Path::new(socket::DIRECTORY), &flags.address, &flags.namespace, pod);
    socket::noted(&bundle_of(flags)).unwrap_or_else(usual)
}
