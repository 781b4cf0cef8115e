//! The spec's hooks: some run on the host, some in the guest.

use serde::Deserialize;
use serde_json::{Map, Value};

/// A program that the spec wants run.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Hook {
    /// The program's absolute path.
    pub(crate) path: String,
    /// Its arguments, the program's name first; empty means the path alone.
    #[serde(default)]
    pub(crate) args: Vec<String>,
    /// Its environment, `KEY=value`.
    #[serde(default)]
    pub(crate) env: Vec<String>,
    /// Seconds after which it is killed and has failed.
    #[serde(default)]
    pub(crate) timeout: Option<u64>,
}

/// The hooks that run on the host.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct HostHooks {
    /// Before the container's process exists: `prestart` (the deprecated name) and `createRuntime`, in this order.
    pub(crate) create: Vec<Hook>,
    /// After the container's process has started.
    pub(crate) poststart: Vec<Hook>,
    /// After the container has been deleted.
    pub(crate) poststop: Vec<Hook>,
}

/// A hook that is not of the spec's form.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HookError {
    /// Not a list of hooks.
    #[error("hooks.{phase}: {source}")]
    Malformed {
        /// The list.
        phase: &'static str,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A relative path.
    #[error("hooks.{phase}: path {path:?} is not absolute")]
    RelativePath {
        /// The list.
        phase: &'static str,
        /// The path.
        path: String,
    },
    /// A timeout of zero.
    #[error("hooks.{phase}: the timeout of {path:?} is 0, it must be greater")]
    ZeroTimeout {
        /// The list.
        phase: &'static str,
        /// The hook's path.
        path: String,
    },
}

/// Takes the host's hooks out of `spec` and leaves those that run in the guest: createContainer and startContainer.
///
/// # Errors
/// Hooks that are not of the spec's form.
pub(crate) fn split(spec: &mut Map<String, Value>) -> Result<HostHooks, HookError> {
    let Some(Value::Object(hooks)) = spec.get_mut("hooks") else {
        return Ok(HostHooks::default());
    };
    let mut take = |phase| parse(phase, hooks.remove(phase));
    let mut create = take("prestart")?;
    create.extend(take("createRuntime")?);
    let host = HostHooks { create, poststart: take("poststart")?, poststop: take("poststop")? };
    if hooks.is_empty() {
        spec.remove("hooks");
    }
    Ok(host)
}

fn parse(phase: &'static str, list: Option<Value>) -> Result<Vec<Hook>, HookError> {
    let hooks: Vec<Hook> = match list {
        None | Some(Value::Null) => Vec::new(),
        Some(list) => {
            serde_json::from_value(list).map_err(|source| HookError::Malformed { phase, source })?
        }
    };
    for hook in &hooks {
        if !hook.path.starts_with('/') {
            return Err(HookError::RelativePath { phase, path: hook.path.clone() });
        }
        if hook.timeout == Some(0) {
            return Err(HookError::ZeroTimeout { phase, path: hook.path.clone() });
        }
    }
    Ok(hooks)
}

#[cfg(test)]
#[allow(clippy::needless_pass_by_value, reason = "json!() is handed over")]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn host_hooks_leave_the_spec_and_guest_hooks_stay() {
        let mut spec = object(json!({"hooks": {
            "prestart": [{"path": "/a"}],
            "createRuntime": [{"path": "/b", "args": ["b", "1"], "env": ["X=1"], "timeout": 5}],
            "createContainer": [{"path": "/c"}],
            "startContainer": [{"path": "/d"}],
            "poststart": [{"path": "/e"}],
            "poststop": [{"path": "/f"}],
        }}));
        let host = split(&mut spec).unwrap();
        assert_eq!(host.create.iter().map(|hook| hook.path.as_str()).collect::<Vec<_>>(), ["/a", "/b"]);
        assert_eq!(host.create[1].timeout, Some(5));
        assert_eq!(host.poststart[0].path, "/e");
        assert_eq!(host.poststop[0].path, "/f");
        assert_eq!(
            Value::Object(spec),
            json!({"hooks": {"createContainer": [{"path": "/c"}], "startContainer": [{"path": "/d"}]}})
        );
    }

    #[test]
    fn hooks_that_are_not_of_the_specs_form_are_refused() {
        for hooks in [
            json!({"prestart": 1}),
            json!({"poststop": [{"path": "x"}]}),
            json!({"poststart": [{"path": "/x", "timeout": 0}]}),
        ] {
            assert!(split(&mut object(json!({"hooks": hooks}))).is_err());
        }
    }
}
