//! The sysctls that somebody has set in a pod's network namespace, the CNI plugin `tuning` for one: those that are not as
//! in a namespace that is new.
//!
//! Against a new namespace and not against the kernel's own defaults, since much of what a namespace begins with is taken
//! over from the host's.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::os::fd::OwnedFd;

use rustix::fs::{Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use saya_agent_api::agent::NetworkSysctl;

use super::error::NetworkError;
use super::namespace::{self, NetworkNamespace};

/// Where the kernel shows those of the network namespace of who looks.
const ROOT: &str = "/proc/sys/net";

/// The directories, in that of a protocol, that have one directory for each interface.
const OF_INTERFACES: [&str; 2] = ["conf", "neigh"];

/// What they have beside: what counts for all interfaces, what a new one begins with, and loopback.
const ALL: &str = "all";
const DEFAULT: &str = "default";
const LOOPBACK: &str = "lo";

/// More than nearly every sysctl has; the kernel takes and clears as much memory for each reading.
const USUAL_LENGTH: usize = 4096;
/// More than the longest has: `ip_local_reserved_ports`, with every second port.
const LONGEST: usize = 1 << 20;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// The names below [`ROOT`] that lead to a sysctl's file.
type Path = Vec<String>;

/// What the kernel says of each: its text, or why it does not tell. Of some it does not before they are set
/// (`stable_secret`).
type Sysctls = BTreeMap<Path, Result<String, Errno>>;

/// Reads what has been set in `namespace`, for it as a whole and for these interfaces.
///
/// # Errors
/// The kernel refuses.
pub(super) fn read(
    namespace: &NetworkNamespace,
    interfaces: &[String],
) -> Result<Vec<NetworkSysctl>, NetworkError> {
    let present = namespace.run(|| read_all(interfaces))?;
    // Afterwards: what a module adds that is loaded meanwhile is not in the former alone.
    let new = namespace::in_new(|| read_all(&[]))?;
    set_since(&present, &new)
}

/// What of `present` is not as in the `new` namespace. An interface takes over what is set for all, or for those to come,
/// or does not, depending on what it has then: where there is such a thing, each interface's own is told as well.
fn set_since(present: &Sysctls, new: &Sysctls) -> Result<Vec<NetworkSysctl>, NetworkError> {
    let differs = |path: &Path| match (present.get(path), usual(new, path)) {
        (Some(value), Some(usual)) => value != usual,
        // There is no telling.
        _ => false,
    };
    let mut set = Vec::new();
    for (path, value) in present.iter().filter(|(path, _)| !follows_link(path)) {
        match value {
            Ok(value) if differs(path) || taken_over_from(path).iter().any(differs) => {
                set.push(NetworkSysctl { path: path.clone(), value: value.clone(), ..Default::default() });
            }
            Err(error) if differs(path) => return Err(refused(path, *error)),
            _ => {}
        }
    }
    Ok(set)
}

/// What a sysctl is in a new namespace; for an interface, what one begins with. The kernel shows `neigh/default` in the
/// host's namespace alone, but loopback has begun with it, too.
fn usual<'a>(new: &'a Sysctls, path: &Path) -> Option<&'a Result<String, Errno>> {
    new.get(path).or_else(|| {
        let (protocol, kind, _, key) = of_interface(path)?;
        let of = |name| new.get(&interfaces_path(protocol, kind, name, key));
        of(DEFAULT).or_else(|| of(LOOPBACK))
    })
}

/// Those whose values that of an interface may have taken over.
fn taken_over_from(path: &Path) -> Vec<Path> {
    match of_interface(path) {
        Some((protocol, kind, name, key)) if name != ALL => {
            [ALL, DEFAULT].map(|name| interfaces_path(protocol, kind, name, key)).into()
        }
        _ => Vec::new(),
    }
}

/// Whether it is as the link has it, of which the guest is told.
fn follows_link(path: &Path) -> bool {
    matches!(of_interface(path), Some(("ipv6", "conf", _, "mtu")))
}

/// Protocol, kind, name of the interface and key.
fn of_interface(path: &Path) -> Option<(&str, &str, &str, &str)> {
    match path.as_slice() {
        [protocol, kind, name, key] if OF_INTERFACES.contains(&kind.as_str()) => {
            Some((protocol, kind, name, key))
        }
        _ => None,
    }
}

fn interfaces_path(protocol: &str, kind: &str, name: &str, key: &str) -> Path {
    [protocol, kind, name, key].map(str::to_owned).into()
}

/// Reads all that can be set in the thread's namespace; of single interfaces those of these.
fn read_all(interfaces: &[String]) -> Result<Sysctls, NetworkError> {
    let mut path = Path::new();
    let root = rustix::fs::open(ROOT, DIRECTORY, Mode::empty()).map_err(|error| refused(&path, error))?;
    let mut reader = Reader { interfaces, buffer: vec![0; USUAL_LENGTH], found: Sysctls::new() };
    reader.read_directory(&root, &mut path)?;
    Ok(reader.found)
}

struct Reader<'a> {
    interfaces: &'a [String],
    buffer: Vec<u8>,
    found: Sysctls,
}

impl Reader<'_> {
    /// Goes through the directory to which `path` leads.
    fn read_directory(&mut self, directory: &OwnedFd, path: &mut Path) -> Result<(), NetworkError> {
        let entries = Dir::read_from(directory).map_err(|error| refused(path, error))?;
        for entry in entries {
            let entry = entry.map_err(|error| refused(path, error))?;
            // An interface whose name is no text is none that is asked for.
            let Some(name) = entry.file_name().to_str().ok().filter(|name| !matches!(*name, "." | ".."))
            else {
                continue;
            };
            path.push(name.to_owned());
            if entry.file_type() != FileType::Directory {
                if let Some(value) = self.read_file(directory, entry.file_name()) {
                    self.found.insert(path.clone(), value);
                }
            } else if self.is_asked_for(path) {
                match rustix::fs::openat(directory, entry.file_name(), DIRECTORY, Mode::empty()) {
                    Ok(below) => self.read_directory(&below, path)?,
                    // It has gone since.
                    Err(Errno::NOENT) => {}
                    Err(error) => return Err(refused(path, error)),
                }
            }
            path.pop();
        }
        Ok(())
    }

    fn is_asked_for(&self, path: &Path) -> bool {
        match path.as_slice() {
            [_, kind, name] if OF_INTERFACES.contains(&kind.as_str()) => {
                [ALL, DEFAULT, LOOPBACK].contains(&name.as_str()) || self.interfaces.contains(name)
            }
            _ => true,
        }
    }

    /// `None` for what is not there to be both read and set.
    fn read_file(&mut self, directory: &OwnedFd, name: &CStr) -> Option<Result<String, Errno>> {
        match open_settable(directory, name) {
            Ok(file) => file.map(|file| self.read(&file)),
            Err(Errno::ACCESS | Errno::PERM | Errno::NOENT) => None,
            Err(error) => Some(Err(error)),
        }
    }

    /// Reads a file by one system call: another, from where the first has ended, gets nothing of most sysctls.
    fn read(&mut self, file: &OwnedFd) -> Result<String, Errno> {
        let length = rustix::io::pread(file, &mut *self.buffer, 0)?;
        if length < self.buffer.len() {
            return text(&self.buffer, length);
        }
        let mut longer = vec![0; LONGEST];
        let length = rustix::io::pread(file, &mut *longer, 0)?;
        if length < LONGEST { text(&longer, length) } else { Err(Errno::OVERFLOW) }
    }
}

/// Opens a file that may be read and written by its mode; `None` for another.
fn open_settable(directory: &OwnedFd, name: &CStr) -> Result<Option<OwnedFd>, Errno> {
    let file = rustix::fs::openat(directory, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mode = Mode::from_raw_mode(rustix::fs::fstat(&file)?.st_mode);
    Ok(mode.contains(Mode::RUSR | Mode::WUSR).then_some(file))
}

fn text(buffer: &[u8], length: usize) -> Result<String, Errno> {
    let bytes = buffer.get(..length).unwrap_or_default();
    str::from_utf8(bytes).map(str::to_owned).map_err(|_| Errno::ILSEQ)
}

fn refused(path: &Path, error: Errno) -> NetworkError {
    NetworkError::host(format!("reading the sysctls, {ROOT}/{}", path.join("/")))(error.into())
}

#[cfg(test)]
mod tests;
