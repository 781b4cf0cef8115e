//! `process`: what is executed, as whom and with which rights.

use std::ffi::{CString, OsString};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Process, User as SpecUser};

use super::scheduling::{self, IoPriority, SchedulerPlan};
use super::{Capabilities, ResourceLimit, absolute, limits};
use crate::container::seccomp::Filter;
use crate::error::SpecError;

/// The size of a terminal's window in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WindowSize {
    /// Its width.
    pub(crate) columns: u16,
    /// Its height.
    pub(crate) rows: u16,
}

/// Whom a process runs as; ids as the container sees them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct User {
    /// The user.
    pub(crate) uid: u32,
    /// Its group.
    pub(crate) gid: u32,
    /// Its other groups.
    pub(crate) additional_gids: Vec<u32>,
    /// Which permission bits new files do not get.
    pub(crate) umask: Option<u32>,
}

/// A process to be.
#[derive(Clone, Debug)]
pub(crate) struct ProcessPlan {
    /// The program and its arguments; there is at least one.
    pub(crate) arguments: Vec<CString>,
    /// `NAME=value` each.
    pub(crate) environment: Vec<CString>,
    /// The directory to start in.
    pub(crate) working_directory: PathBuf,
    /// Whom it runs as.
    pub(crate) user: User,
    /// Its capabilities; `None` leaves none.
    pub(crate) capabilities: Capabilities,
    /// Its resource limits.
    pub(crate) limits: Vec<ResourceLimit>,
    /// Whether exec can give it more rights than it has.
    pub(crate) no_new_privileges: bool,
    /// How readily the kernel kills it when memory is short.
    pub(crate) oom_score_adjustment: Option<i32>,
    /// How it is scheduled.
    pub(crate) scheduler: Option<SchedulerPlan>,
    /// How its I/O is scheduled.
    pub(crate) io_priority: Option<IoPriority>,
    /// The argument of personality(2).
    pub(crate) personality: Option<libc::c_ulong>,
    /// Which system calls it may make.
    pub(crate) seccomp: Option<Filter>,
    /// The terminal it gets.
    pub(crate) terminal: Option<WindowSize>,
}

impl ProcessPlan {
    /// Checks the object at `field`. `terminal` is what the request says about one.
    pub(crate) fn from_spec(
        process: &Process,
        field: &str,
        terminal: Option<WindowSize>,
    ) -> Result<Self, SpecError> {
        refuse_missing_features(process, field)?;
        check_terminal(process, field, terminal)?;
        let arguments = process.args().as_deref().unwrap_or_default();
        if arguments.is_empty() {
            return Err(SpecError::invalid(format!("{field}.args"), "is empty; name the program to run"));
        }
        let environment = process.env().as_deref().unwrap_or_default();
        let limits = process.rlimits().as_deref().unwrap_or_default();
        Ok(Self {
            arguments: c_strings(arguments, &format!("{field}.args"))?,
            environment: c_strings(environment, &format!("{field}.env"))?,
            working_directory: absolute(process.cwd(), &format!("{field}.cwd"))?.to_owned(),
            user: user(process.user()),
            capabilities: Capabilities::from_spec(process.capabilities().as_ref()),
            limits: limits::from_spec(limits, &format!("{field}.rlimits"))?,
            no_new_privileges: process.no_new_privileges().unwrap_or(false),
            oom_score_adjustment: oom_score_adjustment(process.oom_score_adj(), field)?,
            scheduler: scheduling::scheduler(process.scheduler().as_ref(), &format!("{field}.scheduler"))?,
            io_priority: scheduling::io_priority(
                process.io_priority().as_ref(),
                &format!("{field}.ioPriority"),
            )?,
            personality: None,
            seccomp: None,
            terminal: terminal.map(|size| window_size(process, size)),
        })
    }

    /// The value of a variable in the process's environment; the last one counts.
    pub(crate) fn variable(&self, name: &str) -> Option<&[u8]> {
        self.environment.iter().rev().find_map(|entry| {
            let rest = entry.as_bytes().strip_prefix(name.as_bytes())?;
            rest.strip_prefix(b"=")
        })
    }

    /// The program as the spec names it.
    pub(crate) fn program(&self) -> &Path {
        self.arguments.first().map_or(Path::new(""), |program| as_path(program))
    }
}

/// A C string as a path.
pub(crate) fn as_path(string: &CString) -> &Path {
    use std::os::unix::ffi::OsStrExt;
    Path::new(std::ffi::OsStr::from_bytes(string.as_bytes()))
}

fn refuse_missing_features(process: &Process, field: &str) -> Result<(), SpecError> {
    let set = |value: &Option<String>| value.as_deref().is_some_and(|value| !value.is_empty());
    if set(process.apparmor_profile()) {
        let problem = "the guest's kernel has no AppArmor; the virtual machine confines the container";
        return Err(SpecError::not_supported(format!("{field}.apparmorProfile"), problem));
    }
    if set(process.selinux_label()) {
        let problem = "the guest's kernel has no SELinux; the virtual machine confines the container";
        return Err(SpecError::not_supported(format!("{field}.selinuxLabel"), problem));
    }
    if process.exec_cpu_affinity().is_some() {
        let problem = "use linux.resources.cpu.cpus, which holds for every process of the container";
        return Err(SpecError::not_supported(format!("{field}.execCPUAffinity"), problem));
    }
    Ok(())
}

fn check_terminal(process: &Process, field: &str, asked: Option<WindowSize>) -> Result<(), SpecError> {
    let in_spec = process.terminal().unwrap_or(false);
    if in_spec == asked.is_some() {
        return Ok(());
    }
    let problem = format!("is {in_spec}, but the request's streams say {}", asked.is_some());
    Err(SpecError::invalid(format!("{field}.terminal"), problem))
}

/// What the request says counts; where it says nothing, the spec may.
fn window_size(process: &Process, asked: WindowSize) -> WindowSize {
    match process.console_size() {
        Some(size) if asked == (WindowSize { columns: 0, rows: 0 }) => {
            let narrow = |value: u64| u16::try_from(value).unwrap_or(u16::MAX);
            WindowSize { columns: narrow(size.width()), rows: narrow(size.height()) }
        }
        _ => asked,
    }
}

fn user(user: &SpecUser) -> User {
    User {
        uid: user.uid(),
        gid: user.gid(),
        additional_gids: user.additional_gids().clone().unwrap_or_default(),
        umask: user.umask(),
    }
}

fn oom_score_adjustment(value: Option<i32>, field: &str) -> Result<Option<i32>, SpecError> {
    match value {
        Some(value) if !(-1000..=1000).contains(&value) => Err(SpecError::invalid(
            format!("{field}.oomScoreAdj"),
            format!("is {value}; it is -1000 to 1000"),
        )),
        value => Ok(value),
    }
}

/// Strings for exec, which cannot hold a NUL.
pub(super) fn c_strings(strings: &[String], field: &str) -> Result<Vec<CString>, SpecError> {
    let convert = |(index, string): (usize, &String)| {
        CString::new(OsString::from(string).into_vec())
            .map_err(|_| SpecError::invalid(format!("{field}[{index}]"), "has a NUL byte"))
    };
    strings.iter().enumerate().map(convert).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<ProcessPlan, SpecError> {
        ProcessPlan::from_json(json.as_bytes(), None)
    }

    #[test]
    fn what_is_wrong_with_a_process_is_named() {
        let table = [
            (r#"{"cwd":"/","user":{},"args":[]}"#, "process.args: is empty"),
            (r#"{"cwd":"tmp","user":{},"args":["a"]}"#, "process.cwd: is \"tmp\""),
            (r#"{"cwd":"/","user":{},"args":["a\u0000"]}"#, "process.args[0]: has a NUL"),
            (r#"{"cwd":"/","user":{},"args":["a"],"terminal":true}"#, "process.terminal: is true, but"),
            (
                r#"{"cwd":"/","user":{},"args":["a"],"apparmorProfile":"x"}"#,
                "process.apparmorProfile: not sup",
            ),
            (r#"{"cwd":"/","user":{},"args":["a"],"oomScoreAdj":1001}"#, "process.oomScoreAdj: is 1001"),
            (r#"{"cwd":"/","user":{"uid":-1},"args":["a"]}"#, "user.uid: "),
            (
                r#"{"cwd":"/","user":{},"args":["a"],"rlimits":[{"type":"RLIMIT_CPU","hard":1,"soft":2}]}"#,
                "process.rlimits[0]: RLIMIT_CPU has",
            ),
            (
                r#"{"cwd":"/","user":{},"args":["a"],"ioPriority":{"class":"IOPRIO_CLASS_BE","priority":8}}"#,
                "process.ioPriority.priority: is 8",
            ),
        ];
        for (json, start) in table {
            let message = read(json).unwrap_err().to_string();
            assert!(message.starts_with(start), "{json}: {message}");
        }
    }

    #[test]
    fn the_specs_window_size_counts_where_the_request_has_none() {
        let json =
            br#"{"cwd":"/","user":{},"args":["a"],"terminal":true,"consoleSize":{"width":70,"height":20}}"#;
        let size = |columns, rows| {
            ProcessPlan::from_json(json, Some(WindowSize { columns, rows })).unwrap().terminal.unwrap()
        };
        assert_eq!(size(0, 0), WindowSize { columns: 70, rows: 20 });
        assert_eq!(size(80, 24), WindowSize { columns: 80, rows: 24 });
    }

    #[test]
    fn the_last_value_of_a_variable_counts() {
        let plan =
            read(r#"{"cwd":"/","user":{},"args":["a"],"env":["PATH=/a","PATHS=/x","PATH=/b"]}"#).unwrap();
        assert_eq!(plan.variable("PATH"), Some(b"/b".as_slice()));
        assert_eq!(plan.variable("PAT"), None);
    }
}
