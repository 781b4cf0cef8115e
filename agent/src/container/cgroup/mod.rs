//! A container's cgroup (cgroup v2).

mod devices;
pub(crate) mod events;
mod freezer;
mod limits;
mod path;
mod statistics;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxResources;
use rustix::fs::{Mode, OFlags, open};
use rustix::process::Pid;

use self::limits::{Setting, WithoutFile};
use crate::error::{Action, Error, Result, SpecError};

/// Where the guest has its cgroup tree.
pub(crate) const ROOT: &str = "/sys/fs/cgroup";

/// The cgroup of one container.
#[derive(Debug)]
pub(crate) struct Cgroup {
    root: PathBuf,
    directory: PathBuf,
}

impl Cgroup {
    /// Makes the cgroup that `cgroups_path` of the spec names, or one by the container's id, below `root`; with the
    /// controllers that the kernel has, on the way down too.
    pub(crate) fn create(root: &Path, cgroups_path: Option<&Path>, id: &str) -> Result<Self> {
        let relative = path::relative(cgroups_path, id)?;
        let mut directory = root.to_owned();
        for component in relative.components() {
            enable_controllers(&directory)?;
            directory.push(component);
            match fs::create_dir(&directory) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                result => result.action(|| format!("make the cgroup {}", directory.display()))?,
            }
        }
        let cgroup = Self { root: root.to_owned(), directory };
        if !cgroup.processes()?.is_empty() {
            let problem = format!("{} has processes of another container", relative.display());
            return Err(SpecError::invalid("linux.cgroupsPath", problem).into());
        }
        Ok(cgroup)
    }

    /// Sets the limits of a new container, and which devices it may use.
    pub(crate) fn limit(&self, resources: &LinuxResources) -> Result<()> {
        self.apply(&limits::settings(resources)?)?;
        devices::confine(self.open()?, resources.devices().as_deref().unwrap_or_default())
    }

    /// Changes what `resources` names and leaves the rest, and with it the devices that the container may use: containerd sends
    /// the rules for them with every change, with the host's numbers, which are other devices' here.
    pub(crate) fn update(&self, resources: &LinuxResources) -> Result<()> {
        let settings = limits::settings(resources)?;
        self.check_before_update(resources)?;
        self.apply(&settings)
    }

    fn apply(&self, settings: &[Setting]) -> Result<()> {
        for Setting { field, file, value, without_file } in settings {
            match write_file(&self.file(file), value) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => match without_file {
                    WithoutFile::Pass => {}
                    WithoutFile::Refuse => {
                        let problem = format!("the guest's kernel has no {file}");
                        return Err(SpecError::not_supported(field, problem).into());
                    }
                },
                result => result.action(|| format!("set {field}: write {value:?} to {file}"))?,
            }
        }
        Ok(())
    }

    /// The kernel would end processes to get below a new limit; `checkBeforeUpdate` asks for an error instead.
    fn check_before_update(&self, resources: &LinuxResources) -> Result<()> {
        let memory = resources.memory().unwrap_or_default();
        let (Some(true), Some(limit)) = (memory.check_before_update(), memory.limit()) else {
            return Ok(());
        };
        let used = self.read("memory.current")?.and_then(|text| text.trim().parse::<i64>().ok()).unwrap_or(0);
        if limit > 0 && used > limit {
            let problem = format!("is {limit}, but {used} bytes are in use");
            return Err(SpecError::invalid("linux.resources.memory.limit", problem).into());
        }
        Ok(())
    }

    /// Its directory, for a clone into it.
    pub(crate) fn open(&self) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        open(&self.directory, flags, Mode::empty()).action(|| format!("open {}", self.directory.display()))
    }

    /// The processes in it and in those below it.
    pub(crate) fn processes(&self) -> Result<Vec<Pid>> {
        let mut pids = Vec::new();
        collect_processes(&self.directory, &mut pids)
            .action(|| format!("list the processes of {}", self.directory.display()))?;
        Ok(pids)
    }

    /// Kills every process in it and below.
    pub(crate) fn kill(&self) -> Result<()> {
        self.write("cgroup.kill", "1")
    }

    /// Answers when no process is left in it and below.
    pub(crate) async fn emptied(&self) -> Result<()> {
        events::wait_for(&self.file("cgroup.events"), |text| events::value(text, "populated") == Some(0))
            .await
    }

    /// Removes it and those below it, when no process is left, and those above it that are empty now.
    pub(crate) fn remove(&self) -> Result<()> {
        remove_tree(&self.directory).action(|| format!("remove the cgroup {}", self.directory.display()))?;
        let above = self.directory.ancestors().skip(1).take_while(|parent| *parent != self.root);
        for parent in above {
            // Others may be in it.
            if fs::remove_dir(parent).is_err() {
                break;
            }
        }
        Ok(())
    }

    /// Writes one of its files.
    pub(crate) fn write(&self, file: &str, value: &str) -> Result<()> {
        write_file(&self.directory.join(file), value)
            .action(|| format!("write {value:?} to {}/{file}", self.directory.display()))
    }

    /// Reads one of its files; `None` when the kernel has none by that name.
    pub(crate) fn read(&self, file: &str) -> Result<Option<String>> {
        match fs::read_to_string(self.directory.join(file)) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => {
                Err(Error::System { action: format!("read {}/{file}", self.directory.display()), source })
            }
        }
    }

    /// Whether the kernel has killed one of its processes for want of memory.
    pub(crate) fn ran_out_of_memory(&self) -> bool {
        let events = self.read("memory.events").ok().flatten().unwrap_or_default();
        events::value(&events, "oom_kill").is_some_and(|count| count > 0)
    }

    /// The path of one of its files.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

/// All that is set for `resources`, as text.
#[cfg(test)]
pub(crate) fn outcome(resources: &LinuxResources) -> std::result::Result<String, SpecError> {
    let rules = resources.devices().as_deref().unwrap_or_default();
    Ok(format!("{:?} {:?}", limits::settings(resources)?, devices::instructions(rules)?))
}

/// Lets the cgroups below `directory` use every controller that it can pass on.
fn enable_controllers(directory: &Path) -> Result<()> {
    let available = fs::read_to_string(directory.join("cgroup.controllers"))
        .action(|| format!("read {}/cgroup.controllers", directory.display()))?;
    let enable: Vec<String> = available.split_whitespace().map(|name| format!("+{name}")).collect();
    let file = directory.join("cgroup.subtree_control");
    write_file(&file, &enable.join(" ")).action(|| format!("write {:?} to {}", enable, file.display()))
}

fn write_file(path: &Path, value: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path).and_then(|file: File| (&file).write_all(value.as_bytes()))
}

fn collect_processes(directory: &Path, pids: &mut Vec<Pid>) -> io::Result<()> {
    let listed = fs::read_to_string(directory.join("cgroup.procs"))?;
    pids.extend(listed.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)));
    for child in children(directory)? {
        collect_processes(&child, pids)?;
    }
    Ok(())
}

fn remove_tree(directory: &Path) -> io::Result<()> {
    for child in children(directory)? {
        remove_tree(&child)?;
    }
    match fs::remove_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn children(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut children = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            children.push(entry.path());
        }
    }
    Ok(children)
}
