//! The two forms of `linux.cgroupsPath`.

use std::path::{Component, Path, PathBuf};

/// A cgroup below the hierarchies' roots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CgroupPath {
    relative: PathBuf,
}

/// A path that names no cgroup.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("linux.cgroupsPath: {0:?} must be a path without \"..\", or slice:prefix:name")]
pub(crate) struct PathError(String);

impl CgroupPath {
    /// Understands a path, as container managers with cgroupfs write it, or `slice:prefix:name`, as those with systemd
    /// do: there it is the scope `prefix-name.scope` below the slice.
    ///
    /// # Errors
    /// Neither.
    pub(crate) fn parse(text: &str) -> Result<Self, PathError> {
        let invalid = || PathError(text.chars().take(200).collect());
        let relative = match text.split(':').collect::<Vec<_>>().as_slice() {
            [path] => PathBuf::from(path.trim_matches('/')),
            [slice, prefix, name] if !name.is_empty() && !name.contains('/') && !prefix.contains('/') => {
                let unit = match (name.strip_suffix(".slice"), prefix.is_empty()) {
                    (Some(_), _) => (*name).to_owned(),
                    (None, true) => format!("{name}.scope"),
                    (None, false) => format!("{prefix}-{name}.scope"),
                };
                slice_directory(slice).ok_or_else(invalid)?.join(unit)
            }
            _ => return Err(invalid()),
        };
        let plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
        if !plain || relative.as_os_str().is_empty() {
            return Err(invalid());
        }
        Ok(Self { relative })
    }

    /// The path below a hierarchy's root.
    pub(crate) fn relative(&self) -> &Path {
        &self.relative
    }
}

/// A slice's directory: `a-b.slice` is in `a.slice` (systemd.slice(5)). An empty name is systemd's default.
fn slice_directory(slice: &str) -> Option<PathBuf> {
    let slice = if slice.is_empty() { "system.slice" } else { slice };
    if slice == "-.slice" {
        return Some(PathBuf::new());
    }
    let name = slice.strip_suffix(".slice").filter(|name| !name.contains('/'))?;
    let mut directory = PathBuf::new();
    let mut prefix = String::new();
    for part in name.split('-') {
        if part.is_empty() {
            return None;
        }
        prefix.push_str(part);
        directory.push(format!("{prefix}.slice"));
        prefix.push('-');
    }
    Some(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relative(text: &str) -> Option<String> {
        CgroupPath::parse(text).ok().map(|path| path.relative().display().to_string())
    }

    #[test]
    fn both_forms_are_understood() {
        assert_eq!(relative("/default/t1").as_deref(), Some("default/t1"));
        assert_eq!(relative("kubepods/pod1/c1").as_deref(), Some("kubepods/pod1/c1"));
        assert_eq!(relative("system.slice:cri:c1").as_deref(), Some("system.slice/cri-c1.scope"));
        assert_eq!(
            relative("kubepods-besteffort-pod1.slice:cri-containerd:c1").as_deref(),
            Some(
                "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1.slice/cri-containerd-c1.scope"
            )
        );
        assert_eq!(relative(":p:c1").as_deref(), Some("system.slice/p-c1.scope"));
    }

    #[test]
    fn what_could_leave_the_hierarchy_or_is_neither_is_refused() {
        for text in ["", "/", "/a/../../b", "a:b", "a:b:c:d", "x:p:c", "a--b.slice:p:c", "a.slice:p:../c"] {
            assert_eq!(relative(text), None, "{text}");
        }
    }
}
