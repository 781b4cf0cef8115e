//! Containers from a spec of one's own, over an image that is mounted on the host.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::Context as _;
use serde_json::{Value, json};

use super::context::{Context, Ended, Running, ctr};

/// An image's files, mounted writable on the host as long as this lives.
pub(super) struct ImageRoot {
    path: PathBuf,
}

impl ImageRoot {
    pub(super) fn mount(image: &str, path: PathBuf) -> anyhow::Result<Self> {
        fs::create_dir_all(&path)?;
        ctr(["image", "mount", "--rw", image, &path.display().to_string()])?;
        Ok(Self { path })
    }

    /// Runs `command` in a container with this root and `user` as its spec's `process.user`.
    pub(super) fn run_as(
        &self,
        context: &Context,
        id: &str,
        user: &Value,
        command: &[&str],
    ) -> anyhow::Result<Ended> {
        self.run(context, id, |spec| {
            merge(spec, &json!({"process": {"user": user, "args": command, "terminal": false}}));
        })
    }

    /// Runs a container with this root, by containerd's default spec and what `change` does to it, to its end.
    pub(super) fn run(
        &self,
        context: &Context,
        id: &str,
        change: impl FnOnce(&mut Value),
    ) -> anyhow::Result<Ended> {
        let mut run = self.command(context, id, &["--rm"], change)?;
        Ok(run.stdin(Stdio::null()).output().context("cannot start ctr")?.into())
    }

    /// The same in the background, with `command`.
    pub(super) fn start(
        &self,
        context: &Context,
        id: &str,
        command: &[&str],
        change: impl FnOnce(&mut Value),
    ) -> anyhow::Result<Running> {
        let mut run = self.command(context, id, &["--detach"], |spec| {
            merge(spec, &json!({"process": {"args": command, "terminal": false}}));
            change(spec);
        })?;
        let ended: Ended = run.stdin(Stdio::null()).output().context("cannot start ctr")?.into();
        ended.expect_status(0)?;
        Ok(Running { id: id.to_owned() })
    }

    /// The same, not started, and with flags of `ctr run`.
    pub(super) fn command(
        &self,
        context: &Context,
        id: &str,
        flags: &[&str],
        change: impl FnOnce(&mut Value),
    ) -> anyhow::Result<Command> {
        let mut spec: Value =
            serde_json::from_str(&ctr(["oci", "spec"])?).context("`ctr oci spec` gave no JSON")?;
        let environment = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"];
        let root = json!({"path": self.path, "readonly": false});
        // `ctr oci spec` knows no name of a container, and gives it the cgroup of them all.
        let linux = json!({"cgroupsPath": format!("/default/{id}")});
        merge(&mut spec, &json!({"root": root, "linux": linux, "process": {"env": environment}}));
        change(&mut spec);
        let file = context.scratch.join(format!("{id}.json"));
        fs::write(&file, spec.to_string())?;
        let mut run = Command::new("ctr");
        run.args(["run", "--runtime", &context.runtime]).args(flags).arg("--config").arg(file).arg(id);
        Ok(run)
    }
}

impl Drop for ImageRoot {
    fn drop(&mut self) {
        let path = self.path.display().to_string();
        if let Err(error) = ctr(["image", "unmount", "--rm", &path]) {
            eprintln!("cannot unmount {path}: {error:#}");
        }
    }
}

/// Sets in `target` what `changes` holds, objects merged and everything else replaced.
pub(super) fn merge(target: &mut Value, changes: &Value) {
    match (target, changes) {
        (Value::Object(target), Value::Object(changes)) => {
            for (key, value) in changes {
                merge(target.entry(key.as_str()).or_insert(Value::Null), value);
            }
        }
        (target, changes) => *target = changes.clone(),
    }
}
