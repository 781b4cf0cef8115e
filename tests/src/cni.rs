//! A CNI runtime, as small as one can be: network namespaces, and chains of plugins that put interfaces into them
//! (CNI specification 1.0.0).

use std::fs::File;
use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, bail};
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};

use crate::ctr::finish;

/// Where the plugins are: Debian's place, and the one in which containerd looks.
const PLUGINS: &str = "/usr/lib/cni:/opt/cni/bin";
const VERSION: &str = "1.0.0";

/// A network namespace below /run/netns, which goes with this.
pub struct Netns {
    name: String,
}

impl Netns {
    /// Makes one whose loopback is up, as containerd does for a pod.
    ///
    /// # Errors
    /// There is one of this name.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        finish(Command::new("ip").args(["netns", "add", name]))?;
        let namespace = Self { name: name.to_owned() };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Its file.
    pub fn path(&self) -> PathBuf {
        ["/run/netns", &self.name].iter().collect()
    }

    /// `ctr`'s flag that puts a container into it.
    pub fn flag(&self) -> String {
        format!("--with-ns=network:{}", self.path().display())
    }

    /// Runs ip(8) in it, arguments separated by spaces, and gives what it printed.
    ///
    /// # Errors
    /// ip refuses.
    pub fn ip(&self, arguments: &str) -> anyhow::Result<String> {
        finish(Command::new("ip").args(["-n", &self.name]).args(arguments.split(' ')))
    }

    /// A command to be run in it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]).stdin(Stdio::null());
        command
    }

    /// Does `work` on a thread that is in it. Sockets made there stay in it.
    ///
    /// # Errors
    /// It cannot be entered, or those of `work`.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
        let enter = || -> anyhow::Result<()> {
            let namespace = File::open(self.path())?;
            Ok(setns(namespace, CloneFlags::CLONE_NEWNET)?)
        };
        thread::scope(|scope| {
            let working = scope.spawn(|| {
                enter().with_context(|| format!("entering the network namespace {}", self.name))?;
                work()
            });
            working.join().map_err(|_| anyhow::anyhow!("what was done in {} panicked", self.name))?
        })
    }

    /// Interfaces, queueing disciplines and filters in it, as text to be compared.
    ///
    /// # Errors
    /// ip or tc refuses.
    pub fn contents(&self) -> anyhow::Result<String> {
        let links = self.ip("-br link")?;
        let disciplines = finish(self.command("tc").args(["qdisc", "show"]))?;
        Ok(links + &disciplines)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if let Err(error) = finish(Command::new("ip").args(["netns", "delete", &self.name])) {
            eprintln!("network namespace {}: {error:#}", self.name);
        }
    }
}

/// An interface that a chain of plugins has put into a network namespace. It has to be [deleted](Self::delete).
pub struct Attachment<'a> {
    namespace: &'a Netns,
    interface: String,
    plugins: Vec<Value>,
    result: Value,
}

impl<'a> Attachment<'a> {
    /// Has each of `plugins` do its part of adding `interface`.
    ///
    /// # Errors
    /// A plugin refuses. What those before have done is undone.
    pub fn add(
        namespace: &'a Netns,
        interface: &str,
        plugins: impl IntoIterator<Item = Value>,
    ) -> anyhow::Result<Self> {
        let plugins: Vec<Value> = plugins.into_iter().collect();
        let mut attachment =
            Self { namespace, interface: interface.to_owned(), plugins, result: Value::Null };
        match attachment.add_all() {
            Ok(()) => Ok(attachment),
            Err(error) => {
                attachment.delete().context("undoing what a failed plugin had done")?;
                Err(error)
            }
        }
    }

    fn add_all(&mut self) -> anyhow::Result<()> {
        for plugin in &self.plugins {
            let output = self.call("ADD", plugin)?;
            self.result = serde_json::from_str(&output).context("a plugin's result")?;
        }
        Ok(())
    }

    /// The addresses that the plugins have given, without prefix lengths.
    ///
    /// # Errors
    /// The plugins gave something else.
    pub fn addresses(&self) -> anyhow::Result<Vec<IpAddr>> {
        let listed = self.result.get("ips").and_then(Value::as_array).context("no addresses")?;
        let address = |entry: &Value| Some(entry.get("address")?.as_str()?.split('/').next()?.to_owned());
        listed.iter().map(|entry| Ok(address(entry).context("an address")?.parse()?)).collect()
    }

    /// Has the plugins undo their parts, the last first.
    ///
    /// # Errors
    /// A plugin refuses.
    pub fn delete(self) -> anyhow::Result<()> {
        for plugin in self.plugins.iter().rev() {
            self.call("DEL", plugin)?;
        }
        Ok(())
    }

    fn call(&self, command: &str, plugin: &Value) -> anyhow::Result<String> {
        let kind = plugin.get("type").and_then(Value::as_str).context("a plugin without type")?;
        let program =
            PLUGINS.split(':').map(|place| PathBuf::from(place).join(kind)).find(|path| path.exists());
        let program = program.with_context(|| format!("the CNI plugin {kind} is not in {PLUGINS}"))?;
        let mut configuration = plugin.clone();
        if let Some(object) = configuration.as_object_mut() {
            object.insert("cniVersion".into(), json!(VERSION));
            object.insert("name".into(), json!("saya-test"));
            if !self.result.is_null() {
                object.insert("prevResult".into(), self.result.clone());
            }
        }
        let mut child = Command::new(program)
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &self.namespace.name)
            .env("CNI_NETNS", self.namespace.path())
            .env("CNI_IFNAME", &self.interface)
            .env("CNI_PATH", PLUGINS)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting the CNI plugin {kind}"))?;
        let mut input = child.stdin.take().context("no standard input")?;
        input.write_all(configuration.to_string().as_bytes())?;
        drop(input);
        let output = child.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            bail!("{kind} {command}: {text} {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(text)
    }
}
