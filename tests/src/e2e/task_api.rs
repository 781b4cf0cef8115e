//! The Task service of a container's shim, spoken to as containerd speaks to it: for what `ctr` cannot ask, and for the
//! codes that it does not show.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use containerd_shim_protos::api::{
    DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest, PauseRequest, ResumeRequest,
    StartRequest, StartResponse, UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::ttrpc::{self, Client, Code};
use rustix::process::Pid;
use serde_json::{Value, json};

use super::image_root::merge;

/// The service's name in containerd 1.x, which every shim answers to.
const SERVICE: &str = "containerd.task.v2.Task";
/// The names that containerd gives the OCI spec's types.
const SPEC_TYPES: &str = "types.containerd.io/opencontainers/runtime-spec/1";

/// A container's task.
#[derive(Clone)]
pub(crate) struct Task {
    client: Client,
    id: String,
    bundle: PathBuf,
}

/// A call that the shim refused.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(super) code: Code,
    pub(super) message: String,
}

impl Task {
    /// The task of a container that runs.
    pub(crate) fn of(container: &str) -> anyhow::Result<Self> {
        // A shim's working directory is its bundle, whichever containerd made it.
        let shim = shim_of(container)?;
        let bundle = fs::read_link(format!("/proc/{}/cwd", shim.as_raw_nonzero()))?;
        Self::at(&fs::read_to_string(bundle.join("address"))?, container, &bundle)
    }

    /// The task `id` behind a shim's address.
    pub(super) fn at(address: &str, id: &str, bundle: &Path) -> anyhow::Result<Self> {
        let client =
            Client::connect(address.trim()).with_context(|| format!("no shim answers at {address}"))?;
        Ok(Self { client, id: id.to_owned(), bundle: bundle.to_owned() })
    }

    /// Another task of the same shim.
    pub(super) fn beside(&self, id: &str) -> Self {
        Self { id: id.to_owned(), ..self.clone() }
    }

    /// The bundle's directory.
    pub(super) fn bundle(&self) -> &Path {
        &self.bundle
    }

    /// Calls a method; the outer error is that of the connection.
    pub(super) fn call<Answer: Message>(
        &self,
        method: &str,
        request: &impl Message,
    ) -> anyhow::Result<Result<Answer, Refusal>> {
        let request = ttrpc::Request {
            service: SERVICE.to_owned(),
            method: method.to_owned(),
            payload: request.write_to_bytes()?,
            ..Default::default()
        };
        match self.client.request(request) {
            Ok(answer) => Ok(Ok(Answer::parse_from_bytes(&answer.payload)?)),
            Err(ttrpc::Error::RpcStatus(status)) => {
                Ok(Err(Refusal { code: status.code(), message: status.message }))
            }
            Err(error) => bail!("{method}: {error}"),
        }
    }

    /// Calls a method that must not be refused.
    pub(super) fn expect<Answer: Message>(
        &self,
        method: &str,
        request: &impl Message,
    ) -> anyhow::Result<Answer> {
        match self.call(method, request)? {
            Ok(answer) => Ok(answer),
            Err(refusal) => bail!("{method} was refused: {refusal:?}"),
        }
    }

    /// The `process` object of an additional process: the container's own, with `changes`.
    pub(super) fn process(&self, changes: &Value) -> anyhow::Result<Value> {
        let spec: Value = serde_json::from_slice(&fs::read(self.bundle.join("config.json"))?)?;
        let mut process = spec.get("process").context("the bundle's spec has no process")?.clone();
        merge(&mut process, &json!({"terminal": false}));
        merge(&mut process, changes);
        Ok(process)
    }

    /// Makes and starts an additional process, whose output goes to `output`.
    pub(super) fn start_exec(
        &self,
        exec: &str,
        changes: &Value,
        output: Option<&Path>,
    ) -> anyhow::Result<()> {
        let output = output.map(|path| format!("file://{}", path.display())).unwrap_or_default();
        let request = ExecProcessRequest {
            stdout: output.clone(),
            stderr: output,
            ..self.exec_request(exec, &self.process(changes)?)
        };
        let _: Empty = self.expect("Exec", &request)?;
        let _: StartResponse = self.expect("Start", &self.start_request(exec))?;
        Ok(())
    }

    /// Runs an additional process to its end; gives its status and what it wrote to both of its outputs.
    pub(super) fn exec(&self, exec: &str, scratch: &Path, changes: &Value) -> anyhow::Result<(u32, String)> {
        let output = scratch.join(format!("{}-{exec}", self.id));
        self.start_exec(exec, changes, Some(&output))?;
        let ended = self.wait(exec)?;
        let deleted: DeleteResponse = self.expect("Delete", &self.delete_request(exec))?;
        ensure!(deleted.exit_status == ended.exit_status, "Wait gave {ended:?}, Delete {deleted:?}");
        let text = String::from_utf8_lossy(&fs::read(&output)?).into_owned();
        fs::remove_file(output)?;
        Ok((ended.exit_status, text))
    }

    /// Runs a shell script, which must end with 0, and gives what it printed.
    pub(super) fn shell(&self, exec: &str, scratch: &Path, script: &str) -> anyhow::Result<String> {
        let (status, text) = self.exec(exec, scratch, &json!({"args": ["sh", "-c", script]}))?;
        ensure!(status == 0, "{script:?} ended with {status}: {text}");
        Ok(text)
    }

    /// Waits for the end of a process; an empty name is the container's first.
    pub(super) fn wait(&self, exec: &str) -> anyhow::Result<WaitResponse> {
        let request = WaitRequest { id: self.id.clone(), exec_id: exec.to_owned(), ..Default::default() };
        self.expect("Wait", &request)
    }

    /// Changes the container's limits.
    pub(crate) fn update(&self, resources: &Value) -> anyhow::Result<Result<Empty, Refusal>> {
        let request = UpdateTaskRequest {
            id: self.id.clone(),
            resources: Some(spec_type("LinuxResources", resources)).into(),
            ..Default::default()
        };
        self.call("Update", &request)
    }

    pub(super) fn exec_request(&self, exec: &str, process: &Value) -> ExecProcessRequest {
        ExecProcessRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            spec: Some(spec_type("Process", process)).into(),
            ..Default::default()
        }
    }

    pub(super) fn kill_request(&self, exec: &str, signal: u32) -> KillRequest {
        KillRequest { id: self.id.clone(), exec_id: exec.to_owned(), signal, ..Default::default() }
    }

    pub(super) fn pause_request(&self) -> PauseRequest {
        PauseRequest { id: self.id.clone(), ..Default::default() }
    }

    pub(super) fn resume_request(&self) -> ResumeRequest {
        ResumeRequest { id: self.id.clone(), ..Default::default() }
    }

    pub(super) fn start_request(&self, exec: &str) -> StartRequest {
        StartRequest { id: self.id.clone(), exec_id: exec.to_owned(), ..Default::default() }
    }

    pub(super) fn delete_request(&self, exec: &str) -> DeleteRequest {
        DeleteRequest { id: self.id.clone(), exec_id: exec.to_owned(), ..Default::default() }
    }
}

/// A part of an OCI spec as containerd wraps it.
pub(super) fn spec_type(name: &str, value: &Value) -> Any {
    Any {
        type_url: format!("{SPEC_TYPES}/{name}"),
        value: value.to_string().into_bytes(),
        ..Default::default()
    }
}

/// The shim that containerd started for a container: its command line has `-id <container>`, and no action: that is how
/// containerd has one started, and cleaned up after.
pub(super) fn shim_of(container: &str) -> anyhow::Result<Pid> {
    let wanted = format!("\0-id\0{container}\0");
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let Some(id) = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let command_line = fs::read(path.join("cmdline")).unwrap_or_default();
        let command_line = String::from_utf8_lossy(&command_line);
        let acts = ["start", "delete"].iter().any(|action| command_line.ends_with(&format!("\0{action}\0")));
        if command_line.contains(&wanted) && !acts {
            return Pid::from_raw(id).context("process 0");
        }
    }
    bail!("no process has -id {container} in its command line")
}
