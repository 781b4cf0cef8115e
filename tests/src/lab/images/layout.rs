//! An OCI image layout in a tar archive (OCI image specification 1.0, image-layout.md), with one layer.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use super::super::cache::hexadecimal;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIGURATION: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// The annotation by which `ctr image import` knows the image's full name.
const NAME: &str = "io.containerd.image.name";

/// What an image runs by default.
pub(super) struct Defaults<'a> {
    pub(super) entrypoint: &'a [&'a str],
    pub(super) command: &'a [&'a str],
    pub(super) environment: &'a [&'a str],
    pub(super) directory: &'a str,
    /// The signal that ends it, if it is not SIGTERM.
    pub(super) stop_signal: &'a str,
}

/// The layer of an image, in memory, with the same bytes whenever it is made of the same files.
pub(super) struct Layer(Builder<Vec<u8>>);

impl Layer {
    pub(super) fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    pub(super) fn directory(&mut self, path: &str, mode: u32) -> Result<()> {
        self.append(path, EntryType::Directory, mode, 0, io::empty())
    }

    pub(super) fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.append(path, EntryType::Regular, mode, content.len() as u64, content)
    }

    pub(super) fn symlink(&mut self, path: &str, target: &str) -> Result<()> {
        let mut header = header(EntryType::Symlink, 0o777, 0);
        self.0.append_link(&mut header, path, target).with_context(|| format!("adding {path} to a layer"))
    }

    /// Adds all that is below `root`, in alphabetical order, owned by root.
    pub(super) fn tree(&mut self, root: &Path) -> Result<()> {
        self.subtree(root, "")
    }

    fn subtree(&mut self, directory: &Path, prefix: &str) -> Result<()> {
        use std::os::unix::fs::PermissionsExt;

        let mut entries = std::fs::read_dir(directory)?.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
            let metadata = entry.path().symlink_metadata()?;
            let mode = metadata.permissions().mode() & 0o7777;
            if metadata.is_symlink() {
                self.symlink(&path, &std::fs::read_link(entry.path())?.to_string_lossy())?;
            } else if metadata.is_dir() {
                self.directory(&path, mode)?;
                self.subtree(&entry.path(), &format!("{path}/"))?;
            } else if metadata.is_file() {
                self.append(&path, EntryType::Regular, mode, metadata.len(), File::open(entry.path())?)?;
            }
        }
        Ok(())
    }

    fn append(
        &mut self,
        path: &str,
        kind: EntryType,
        mode: u32,
        size: u64,
        content: impl Read,
    ) -> Result<()> {
        let mut header = header(kind, mode, size);
        self.0.append_data(&mut header, path, content).with_context(|| format!("adding {path} to a layer"))
    }
}

/// Writes the image `name` to `place`.
pub(super) fn write(place: &Path, name: &str, layer: Layer, defaults: &Defaults<'_>) -> Result<()> {
    let layer = layer.0.into_inner()?;
    let configuration = serde_json::to_vec(&json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Entrypoint": defaults.entrypoint,
            "Cmd": defaults.command,
            "Env": defaults.environment,
            "WorkingDir": defaults.directory,
            "StopSignal": defaults.stop_signal,
        },
        "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
    }))?;
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(CONFIGURATION, &configuration),
        "layers": [descriptor(LAYER, &layer)],
    }))?;
    let mut described = descriptor(MANIFEST, &manifest);
    if let Some(fields) = described.as_object_mut() {
        fields.insert("platform".to_owned(), json!({ "architecture": "amd64", "os": "linux" }));
        fields.insert("annotations".to_owned(), json!({ NAME: name }));
    }
    let index =
        serde_json::to_vec(&json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [described] }))?;

    let mut archive = Layer(Builder::new(Vec::new()));
    archive.file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    archive.directory("blobs", 0o755)?;
    archive.directory("blobs/sha256", 0o755)?;
    for blob in [&layer, &configuration, &manifest] {
        archive.file(&format!("blobs/sha256/{}", hexadecimal(&Sha256::digest(blob))), 0o644, blob)?;
    }
    archive.file("index.json", 0o644, &index)?;
    std::fs::write(place, archive.0.into_inner()?).with_context(|| format!("writing {}", place.display()))
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": digest(content), "size": content.len() })
}

fn digest(content: &[u8]) -> String {
    format!("sha256:{}", hexadecimal(&Sha256::digest(content)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_files_make_the_same_image() {
        let directory = std::env::temp_dir().join(format!("saya-layout-{}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        let defaults = Defaults {
            entrypoint: &[],
            command: &["true"],
            environment: &[],
            directory: "/",
            stop_signal: "",
        };
        for place in ["a", "b"] {
            let mut layer = Layer::new();
            layer.file("bin", 0o755, b"x").unwrap();
            layer.symlink("link", "bin").unwrap();
            write(&directory.join(place), "example.org/x:latest", layer, &defaults).unwrap();
        }
        let (a, b) =
            (std::fs::read(directory.join("a")).unwrap(), std::fs::read(directory.join("b")).unwrap());
        std::fs::remove_dir_all(&directory).unwrap();
        assert_eq!(a, b);
    }
}
