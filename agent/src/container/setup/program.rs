//! The program: found as the container's user in the container's root, with the messages that users of other runtimes
//! know, and executed.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, FileType, accessat, stat};
use rustix::io::Errno;

use super::error::{Context, Result, SetupError, reason};
use crate::container::plan::ProcessPlan;

/// A program ready to be executed: nothing more is allocated or looked up.
#[derive(Debug)]
pub(super) struct Program {
    path: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
}

impl Program {
    /// Finds the program that the plan names.
    pub(super) fn find(plan: &ProcessPlan) -> Result<Self> {
        let name = plan.program();
        let found = if name.as_os_str().as_bytes().contains(&b'/') {
            check(name).map_err(|error| direct_failure(name, error))?;
            name.to_owned()
        } else {
            search(name, plan.variable("PATH").unwrap_or_default())
                .map_err(|error| SetupError::new(format!("exec: {name:?}: {error}")))?
        };
        let path = CString::new(found.into_os_string().into_encoded_bytes());
        Ok(Self {
            path: path.map_err(io::Error::other).context(|| "the program's path")?,
            arguments: plan.arguments.clone(),
            environment: environment(plan),
        })
    }

    /// Becomes the program. Returns only the failure.
    pub(super) fn execute(&self) -> SetupError {
        let arguments = pointers(&self.arguments);
        let environment = pointers(&self.environment);
        // SAFETY: all three are C strings or null-terminated arrays of them, which `self` keeps alive.
        unsafe { libc::execve(self.path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
        let error = io::Error::last_os_error();
        SetupError::new(format!("exec {}: {}", self.path.to_string_lossy(), reason(&error)))
    }
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
}

fn direct_failure(name: &Path, error: Errno) -> SetupError {
    let reason = reason(&error.into());
    if error == Errno::NOENT || error == Errno::NOTDIR {
        return SetupError::new(format!("exec: {name:?}: stat {}: {reason}", name.display()));
    }
    SetupError::new(format!("exec: {name:?}: {reason}"))
}

/// Whether `path` is a file that this process may execute.
fn check(path: &Path) -> std::result::Result<(), Errno> {
    let status = stat(path)?;
    match FileType::from_raw_mode(status.st_mode) {
        FileType::Directory => Err(Errno::ISDIR),
        FileType::RegularFile => match accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS) {
            Err(Errno::NOSYS) => accessat(CWD, path, Access::EXEC_OK, AtFlags::empty()),
            result => result,
        },
        _ => Err(Errno::ACCESS),
    }
}

fn search(name: &Path, directories: &[u8]) -> std::result::Result<PathBuf, String> {
    let mut failure = "executable file not found in $PATH".to_owned();
    for directory in directories.split(|byte| *byte == b':') {
        // An empty entry is the working directory.
        let directory = if directory.is_empty() { b"." } else { directory };
        let candidate = Path::new(OsStr::from_bytes(directory)).join(name);
        match check(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(Errno::ACCESS) => failure = reason(&Errno::ACCESS.into()),
            Err(_) => {}
        }
    }
    Err(failure)
}

/// The plan's environment, and a HOME if it has none.
fn environment(plan: &ProcessPlan) -> Vec<CString> {
    let mut environment = plan.environment.clone();
    if plan.variable("HOME").is_none_or(<[u8]>::is_empty) {
        let passwd = std::fs::read("/etc/passwd").unwrap_or_default();
        let home = home_of(plan.user.uid, &passwd).unwrap_or(b"/");
        environment.extend(CString::new([b"HOME=", home].concat()));
    }
    environment
}

/// The home directory of a user by passwd(5).
fn home_of(uid: u32, passwd: &[u8]) -> Option<&[u8]> {
    let uid = uid.to_string();
    passwd.split(|byte| *byte == b'\n').find_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let matches = fields.nth(2) == Some(uid.as_bytes());
        let home = fields.nth(2)?;
        (matches && !home.is_empty()).then_some(home)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn find(arguments: &str, path: &str) -> Result<Program> {
        let json = format!(r#"{{"cwd":"/","user":{{}},"args":["{arguments}"],"env":["PATH={path}"]}}"#);
        Program::find(&ProcessPlan::from_json(json.as_bytes(), None).unwrap())
    }

    #[test]
    fn a_program_that_is_not_there_is_named_with_the_reason() {
        let directory = tempfile::tempdir().unwrap();
        let plain = directory.path().join("plain");
        fs::write(&plain, "x").unwrap();
        let here = directory.path().display().to_string();
        let table = [
            ("nothing", "exec: \"nothing\": executable file not found in $PATH".to_owned()),
            ("/no/thing", "exec: \"/no/thing\": stat /no/thing: no such file or directory".to_owned()),
            (here.as_str(), format!("exec: {here:?}: is a directory")),
            ("plain", "exec: \"plain\": permission denied".to_owned()),
        ];
        for (name, message) in table {
            assert_eq!(find(name, &here).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn the_first_match_in_the_path_is_taken() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["a", "b"] {
            let file = directory.path().join(name).join("tool");
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, "").unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let here = directory.path().display();
        let program = find("tool", &format!("{here}/none:{here}/b:{here}/a")).unwrap();
        assert_eq!(program.path.to_str().unwrap(), format!("{here}/b/tool"));
    }

    #[test]
    fn the_home_directory_is_that_of_the_user_id() {
        let passwd = b"root:x:0:0:root:/root:/bin/sh\nbroken\nredis:x:999:999::/data:/bin/sh\n";
        assert_eq!(home_of(999, passwd), Some(b"/data".as_slice()));
        assert_eq!(home_of(0, passwd), Some(b"/root".as_slice()));
        assert_eq!(home_of(5, passwd), None);
    }
}
