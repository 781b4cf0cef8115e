//! What a fuzzer may call: what the shim makes of texts that others have written. Nothing else is meant to use it.

use std::path::Path;

use crate::config::Config;
use crate::identifier;
use crate::sizing;
use crate::spec::Document;
use crate::spec::mounts::SourceKind;
use crate::spec::settings::Settings;
use crate::spec::translation::{self, Context};

/// An OCI spec, with its annotations, limits, mounts and hooks. All paths of the host are directories.
pub fn spec(text: &[u8]) {
    let Ok(value) = serde_json::from_slice(text) else { return };
    let Ok(document) = Document::from_value(value) else { return };
    let inspect = |_: &Path| Ok(SourceKind::Directory);
    let settings = Settings::of(document.value()).unwrap_or_default();
    let context = Context {
        container: "c1",
        bundle: Path::new("/bundle"),
        sandbox: None,
        settings: &settings,
        inspect: &inspect,
    };
    let _ = document.sandbox_id("c1").map(|id| identifier::validate("sandbox id", id));
    let _ = settings.apply(Config::allowing_all()).map(|config| sizing::size(&config, &document));
    if let Ok(translation) = translation::translate(&document, &context) {
        let root = translation.root.as_deref();
        assert!(root.is_none_or(Path::is_absolute), "the root file system is at {root:?}");
        for volume in &translation.volumes {
            assert!(volume.source.is_absolute(), "a volume's source is {:?}", volume.source);
        }
        if let Some(path) = translation.guest.pointer("/linux/cgroupsPath").and_then(|path| path.as_str()) {
            assert!(!path.split('/').any(|part| part == ".."), "a cgroup is at {path:?}");
        }
    }
}

/// A configuration file.
pub fn configuration(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else { return };
    if let Ok(config) = Config::parse(text, Path::new("/config.toml")) {
        assert!((1..=sizing::VCPUS_MAX).contains(&config.vcpus), "{} vCPUs", config.vcpus);
        assert!(config.boot_timeout > 0 && config.agent_timeout > 0, "{config:?}");
    }
}
