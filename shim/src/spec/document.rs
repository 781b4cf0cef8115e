//! `config.json` of a bundle, as it was written: what the shim does not know passes through.

use std::path::{Path, PathBuf};
use std::{fs, io};

use serde_json::Value;

use super::annotations;
use crate::identifier;

/// The largest `config.json` that is read, in bytes. A ttrpc message holds 4 MiB, the spec must fit into one.
const SIZE_MAX: u64 = 3 * 1024 * 1024;

/// An OCI runtime spec.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Document {
    value: Value,
}

/// Why there is no usable spec.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DocumentError {
    /// The file cannot be read.
    #[error("OCI spec {path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is larger than a message to the agent can be.
    #[error("OCI spec {path}: {size} bytes exceed the {SIZE_MAX} that are supported")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// Not JSON.
    #[error("OCI spec {path} is not JSON: {source}")]
    NotJson {
        /// The file.
        path: PathBuf,
        /// The parser's words, with line and column.
        source: serde_json::Error,
    },
    /// Not a JSON object.
    #[error("OCI spec is not a JSON object")]
    NotAnObject,
    /// Its mounts are no list.
    #[error("OCI spec: mounts is not a list")]
    Mounts,
    /// A spec of another major version.
    #[error("OCI spec: ociVersion {0:?} is not supported: it must be 1.x")]
    Version(String),
    /// The sandbox id is no identifier.
    #[error("annotation io.kubernetes.cri.sandbox-id: {0}")]
    SandboxId(#[from] identifier::InvalidIdentifier),
}

impl DocumentError {
    /// Whether the bundle has no spec at all, as that of a sandbox has none.
    pub(crate) fn is_missing(&self) -> bool {
        matches!(self, Self::Unreadable { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

impl Document {
    /// Reads `config.json` of the bundle at `bundle`.
    ///
    /// # Errors
    /// Missing, too large, not JSON or of another version.
    pub(crate) fn read(bundle: &Path) -> Result<Self, DocumentError> {
        let path = bundle.join("config.json");
        let unreadable = |source| DocumentError::Unreadable { path: path.clone(), source };
        let size = fs::metadata(&path).map_err(unreadable)?.len();
        if size > SIZE_MAX {
            return Err(DocumentError::TooLarge { path, size });
        }
        let bytes = fs::read(&path).map_err(unreadable)?;
        let value =
            serde_json::from_slice(&bytes).map_err(|source| DocumentError::NotJson { path, source })?;
        let document = Self::from_value(value)?;
        document.check_version()?;
        Ok(document)
    }

    /// Takes a spec that is parsed already.
    ///
    /// # Errors
    /// Not an object.
    pub(crate) fn from_value(value: Value) -> Result<Self, DocumentError> {
        if value.is_object() { Ok(Self { value }) } else { Err(DocumentError::NotAnObject) }
    }

    fn check_version(&self) -> Result<(), DocumentError> {
        let version = self.value.get("ociVersion").and_then(Value::as_str).unwrap_or_default();
        if version.starts_with("1.") {
            return Ok(());
        }
        Err(DocumentError::Version(version.chars().take(100).collect()))
    }

    /// The spec as JSON.
    pub(crate) fn value(&self) -> &Value {
        &self.value
    }

    /// The text at a JSON pointer, if there is one.
    pub(crate) fn text(&self, pointer: &str) -> Option<&str> {
        self.value.pointer(pointer).and_then(Value::as_str)
    }

    /// An annotation's value.
    pub(crate) fn annotation(&self, key: &str) -> Option<&str> {
        self.value.get("annotations")?.get(key)?.as_str()
    }

    /// Adds a mount to those that the spec has, unless one of those has its destination.
    ///
    /// # Errors
    /// `mounts` is no list.
    pub(crate) fn add_mount(&mut self, destination: &str, mount: Value) -> Result<(), DocumentError> {
        let Some(spec) = self.value.as_object_mut() else { return Err(DocumentError::NotAnObject) };
        let mounts = spec.entry("mounts").or_insert_with(|| Value::Array(Vec::new()));
        let mounts = mounts.as_array_mut().ok_or(DocumentError::Mounts)?;
        if !mounts.iter().any(|mount| mount["destination"] == destination) {
            mounts.push(mount);
        }
        Ok(())
    }

    /// The id of the pod that the container with the id `container` belongs to: its sandbox's, or its own.
    ///
    /// # Errors
    /// An annotation that is no identifier.
    pub(crate) fn sandbox_id<'a>(&'a self, container: &'a str) -> Result<&'a str, DocumentError> {
        match self.annotation(annotations::SANDBOX_ID) {
            Some(id) => {
                identifier::validate("sandbox id", id)?;
                Ok(id)
            }
            None => Ok(container),
        }
    }

    /// Whether containerd's CRI plugin has written it, for a container of a pod or for the one that makes the pod.
    pub(crate) fn is_of_cri(&self) -> bool {
        self.annotation(annotations::CONTAINER_TYPE).is_some()
    }

    /// Whether the container is a pod's sandbox or a pod of its own, rather than one of several in a pod.
    pub(crate) fn makes_pod(&self) -> bool {
        self.annotation(annotations::SANDBOX_ID).is_none()
            || self.annotation(annotations::CONTAINER_TYPE).is_some_and(|kind| kind == "sandbox")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn written(text: &str) -> Result<Document, DocumentError> {
        let bundle = tempfile::tempdir().unwrap();
        fs::write(bundle.path().join("config.json"), text).unwrap();
        Document::read(bundle.path())
    }

    #[test]
    fn a_missing_spec_is_named_with_its_path() {
        let error = Document::read(Path::new("/nonexistent")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/config.json"));
    }

    #[test]
    fn text_that_is_not_json_and_other_versions_are_refused() {
        assert!(matches!(written("{"), Err(DocumentError::NotJson { .. })));
        assert!(matches!(written("[]"), Err(DocumentError::NotAnObject)));
        assert!(matches!(written(r#"{"ociVersion":"2.0.0"}"#), Err(DocumentError::Version(_))));
        assert!(matches!(written("{}"), Err(DocumentError::Version(_))));
        assert!(written(r#"{"ociVersion":"1.0.2-dev"}"#).is_ok());
    }

    #[test]
    fn a_container_of_a_pod_is_told_from_its_sandbox_and_from_a_pod_of_one() {
        let member = Document::from_value(json!({"annotations": {
            "io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "pod1"}}))
        .unwrap();
        assert_eq!(member.sandbox_id("c1").unwrap(), "pod1");
        assert!(!member.makes_pod());

        let sandbox = Document::from_value(json!({"annotations": {
            "io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-id": "pod1"}}))
        .unwrap();
        assert!(sandbox.makes_pod());

        let alone = Document::from_value(json!({})).unwrap();
        assert_eq!(alone.sandbox_id("c1").unwrap(), "c1");
        assert!(alone.makes_pod());
    }

    #[test]
    fn a_sandbox_id_that_could_leave_its_directory_is_refused() {
        let spec = json!({"annotations": {"io.kubernetes.cri.sandbox-id": "../../etc"}});
        assert!(Document::from_value(spec).unwrap().sandbox_id("c1").is_err());
    }
}
