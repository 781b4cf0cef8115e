//! `linux.cgroupsPath` in its two forms: a path, or `slice:prefix:name` as systemd's driver writes it.

use std::path::{Component, Path, PathBuf};

use crate::error::SpecError;

const FIELD: &str = "linux.cgroupsPath";

/// The place of a container's cgroup below the root of the tree.
pub(super) fn relative(cgroups_path: Option<&Path>, id: &str) -> Result<PathBuf, SpecError> {
    let path = match cgroups_path.filter(|path| !path.as_os_str().is_empty()) {
        None => PathBuf::from(id),
        Some(path) => match systemd_parts(path) {
            Some([slice, prefix, name]) => systemd_path(slice, prefix, name)?,
            None => path.to_owned(),
        },
    };
    let mut relative = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => relative.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(SpecError::invalid(
                    FIELD,
                    format!("is {path:?}, which leaves the tree by \"..\""),
                ));
            }
        }
    }
    if relative.as_os_str().is_empty() {
        return Err(SpecError::invalid(FIELD, format!("is {path:?}; a container needs a cgroup of its own")));
    }
    Ok(relative)
}

fn systemd_parts(path: &Path) -> Option<[&str; 3]> {
    let text = path.to_str().filter(|text| !text.starts_with('/'))?;
    let parts: Vec<&str> = text.split(':').collect();
    parts.try_into().ok()
}

/// `a-b.slice` lies in `a.slice` (systemd.slice(5)); the scope is `prefix-name.scope`, and a name that is a slice
/// already stays as it is.
fn systemd_path(slice: &str, prefix: &str, name: &str) -> Result<PathBuf, SpecError> {
    let mut path = PathBuf::new();
    if !slice.is_empty() && slice != "-.slice" {
        let Some(stem) = slice.strip_suffix(".slice").filter(|stem| !stem.contains('/')) else {
            let problem = format!("names the slice {slice:?}, which does not end in \".slice\"");
            return Err(SpecError::invalid(FIELD, problem));
        };
        let mut so_far = String::new();
        for part in stem.split('-') {
            if part.is_empty() {
                return Err(SpecError::invalid(
                    FIELD,
                    format!("names the slice {slice:?}, with an empty part"),
                ));
            }
            if !so_far.is_empty() {
                so_far.push('-');
            }
            so_far.push_str(part);
            path.push(format!("{so_far}.slice"));
        }
    }
    if name.ends_with(".slice") {
        path.push(name);
    } else if prefix.is_empty() {
        path.push(format!("{name}.scope"));
    } else {
        path.push(format!("{prefix}-{name}.scope"));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(given: &str) -> Result<String, String> {
        relative(Some(Path::new(given)), "id")
            .map(|path| path.display().to_string())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn both_forms_of_the_path_lead_below_the_root() {
        assert_eq!(path("/default/hello").as_deref(), Ok("default/hello"));
        assert_eq!(path("a/./b").as_deref(), Ok("a/b"));
        assert_eq!(path("").as_deref(), Ok("id"));
        assert_eq!(
            path("kubepods-burstable-pod1.slice:cri-containerd:abc").as_deref(),
            Ok(
                "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-abc.scope"
            )
        );
        assert_eq!(path("system.slice::abc").as_deref(), Ok("system.slice/abc.scope"));
        assert_eq!(path("-.slice:p:abc").as_deref(), Ok("p-abc.scope"));
    }

    #[test]
    fn a_path_that_leaves_the_tree_is_refused() {
        for given in ["../x", "/a/../../x", "/", "a--b.slice:p:n", "system:p:n", "../x.slice:p:n"] {
            let message = path(given).unwrap_err();
            assert!(message.starts_with("linux.cgroupsPath: "), "{given}: {message}");
        }
    }
}
