//! What a pod sets of the [configuration](Config) for itself: by annotations, as far as the operator allows it.

use std::collections::BTreeMap;

use serde_json::Value;

use super::annotations::{self, SETTING_PREFIX, UnknownAnnotation};
use crate::config::{Config, Key, KeyError, OutOfRange};

/// An annotation that cannot be followed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum SettingError {
    /// One that is not known.
    #[error(transparent)]
    Unknown(#[from] UnknownAnnotation),
    /// No key that a pod may be allowed to set.
    #[error("annotation {SETTING_PREFIX}{key}: {problem}")]
    Key {
        /// What follows the prefix.
        key: String,
        /// Why.
        problem: KeyError,
    },
    /// The operator does not allow it.
    #[error(
        "annotation {SETTING_PREFIX}{key} is not allowed: allowed_annotations of {file} does not list {key:?}, but {allowed:?}"
    )]
    NotAllowed {
        /// The key.
        key: &'static str,
        /// The configuration's file.
        file: String,
        /// What the file allows.
        allowed: Vec<&'static str>,
    },
    /// A value of another type than the key's.
    #[error("annotation {SETTING_PREFIX}{key}: {value:?} is not {expected}")]
    Malformed {
        /// The key.
        key: &'static str,
        /// The value.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
    /// A value out of its key's range.
    #[error("annotation {SETTING_PREFIX}{0}")]
    OutOfRange(#[from] OutOfRange),
    /// A container asks for what its pod has not.
    #[error(
        "annotation {annotation}: {value:?} is not what its pod was made with ({of_pod}): only a pod as a whole has settings"
    )]
    OfContainer {
        /// The annotation.
        annotation: String,
        /// Its value.
        value: String,
        /// The pod's value.
        of_pod: String,
    },
}

/// A pod's settings: annotations and their values.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Settings(BTreeMap<String, String>);

impl Settings {
    /// Those of a pod that sets nothing.
    pub(crate) const NONE: Self = Self(BTreeMap::new());

    /// The settings among a spec's annotations.
    ///
    /// # Errors
    /// An annotation that asks this runtime for something that it does not know.
    pub(crate) fn of(spec: &Value) -> Result<Self, UnknownAnnotation> {
        annotations::check(spec)?;
        let listed = spec.get("annotations").and_then(Value::as_object);
        let settings = listed.into_iter().flatten().filter(|(name, _)| name.starts_with(SETTING_PREFIX));
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        Ok(Self(settings.map(|(name, value)| (name.clone(), text(value))).collect()))
    }

    /// The configuration of the pod whose settings these are.
    ///
    /// # Errors
    /// A setting that is not allowed, or that has no meaning.
    pub(crate) fn apply(&self, mut config: Config) -> Result<Config, SettingError> {
        for (annotation, value) in &self.0 {
            let name = annotation.strip_prefix(SETTING_PREFIX).unwrap_or_default().to_owned();
            let key = Key::try_from(name.clone())
                .map_err(|problem| SettingError::Key { key: name.chars().take(200).collect(), problem })?;
            if !config.allowed_annotations.contains(&key) {
                return Err(SettingError::NotAllowed {
                    key: key.name(),
                    file: match &config.file {
                        Some(path) => path.display().to_string(),
                        None => "the defaults".to_owned(),
                    },
                    allowed: config.allowed_annotations.iter().map(|key| key.name()).collect(),
                });
            }
            set(&mut config, key, value)?;
            config.check()?;
        }
        Ok(config)
    }

    /// Checks that a container of the pod with these settings asks for no others.
    ///
    /// # Errors
    /// It does.
    pub(crate) fn check_container(&self, spec: &Value) -> Result<(), SettingError> {
        for (annotation, value) in Self::of(spec)?.0 {
            let of_pod = self.0.get(&annotation);
            if of_pod != Some(&value) {
                let of_pod = of_pod.map_or("nothing".to_owned(), |value| format!("{value:?}"));
                return Err(SettingError::OfContainer { annotation, value, of_pod });
            }
        }
        Ok(())
    }
}

/// Sets one key. What a pod wants of its machine's size it gets even where its limits alone would make that smaller.
fn set(config: &mut Config, key: Key, value: &str) -> Result<(), SettingError> {
    const NUMBER: &str = "a whole number";
    let malformed = |expected| SettingError::Malformed {
        key: key.name(),
        value: value.chars().take(200).collect(),
        expected,
    };
    let number = || value.parse::<u64>().map_err(|_| malformed(NUMBER));
    let small = || value.parse::<u32>().map_err(|_| malformed(NUMBER));
    match key {
        Key::Vcpus => {
            config.vcpus = small()?;
            config.least_vcpus = config.vcpus;
        }
        Key::Memory => {
            config.memory = number()?;
            config.least_memory = config.memory;
        }
        Key::MemoryOverhead => config.memory_overhead = number()?,
        Key::KernelParameters => {
            config.kernel_parameters.extend(value.split_whitespace().map(str::to_owned));
        }
        Key::ConsoleVerbose => {
            config.console_verbose = value.parse().map_err(|_| malformed("true or false"))?;
        }
        Key::BootTimeout => config.boot_timeout = small()?,
        Key::AgentTimeout => config.agent_timeout = small()?,
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::needless_pass_by_value, reason = "json!() is handed over")]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    const EVERY_KEY: &str = r#"memory = 400
        kernel_parameters = ["noxsave"]
        allowed_annotations = ["vcpus", "memory", "memory_overhead", "kernel_parameters", "console_verbose",
            "boot_timeout", "agent_timeout"]"#;

    fn config(text: &str) -> Config {
        Config::parse(text, Path::new("/etc/saya/large.toml")).unwrap()
    }

    fn applied(text: &str, annotations: Value) -> Result<Config, SettingError> {
        Settings::of(&json!({"annotations": annotations}))?.apply(config(text))
    }

    #[test]
    fn every_key_that_is_allowed_is_the_pods_own() {
        let set = applied(
            EVERY_KEY,
            json!({
                "io.saya.config.vcpus": "3",
                "io.saya.config.memory": "700",
                "io.saya.config.memory_overhead": "128",
                "io.saya.config.kernel_parameters": "quiet  loglevel=3",
                "io.saya.config.console_verbose": "true",
                "io.saya.config.boot_timeout": "20",
                "io.saya.config.agent_timeout": "10",
                "note": "of somebody else",
            }),
        );
        let before = config(EVERY_KEY);
        assert_eq!(
            set.unwrap(),
            Config {
                vcpus: 3,
                least_vcpus: 3,
                memory: 700,
                least_memory: 700,
                memory_overhead: 128,
                kernel_parameters: vec!["noxsave".into(), "quiet".into(), "loglevel=3".into()],
                console_verbose: true,
                boot_timeout: 20,
                agent_timeout: 10,
                ..before
            }
        );
    }

    #[test]
    fn a_pod_that_sets_nothing_has_the_files_configuration() {
        assert_eq!(applied(EVERY_KEY, json!({"note": "x"})).unwrap(), config(EVERY_KEY));
        assert_eq!(Settings::of(&json!({})), Ok(Settings::default()));
    }

    #[test]
    fn a_key_that_is_not_in_the_list_is_refused_with_annotation_list_and_file() {
        let file = r#"allowed_annotations = ["vcpus"]"#;
        let message = applied(file, json!({"io.saya.config.memory": "700"})).unwrap_err().to_string();
        for word in ["io.saya.config.memory", "[\"vcpus\"]", "/etc/saya/large.toml"] {
            assert!(message.contains(word), "{word}: {message}");
        }
        let settings = Settings::of(&json!({"annotations": {"io.saya.config.memory": "700"}})).unwrap();
        let message = settings.apply(Config::default()).unwrap_err().to_string();
        assert!(message.contains("allowed_annotations of the defaults"), "{message}");
    }

    #[test]
    fn values_are_refused_as_those_of_the_file_are() {
        for (key, value, words) in [
            ("memory", "much", "\"much\" is not a whole number"),
            ("memory", "3", "memory = 3 is out of range"),
            ("memory", "-1", "not a whole number"),
            ("vcpus", "65", "vcpus = 65 is out of range"),
            ("vcpus", "4294967297", "not a whole number"),
            ("memory_overhead", "1", "memory_overhead = 1 is out of range"),
            ("console_verbose", "yes", "\"yes\" is not true or false"),
            ("boot_timeout", "0", "boot_timeout = 0 is out of range"),
            ("agent_timeout", "3601", "agent_timeout = 3601 is out of range"),
        ] {
            let annotation = format!("io.saya.config.{key}");
            let message = applied(EVERY_KEY, json!({&annotation: value})).unwrap_err().to_string();
            assert!(message.contains(words) && message.contains(&annotation), "{message}");
        }
        let number = applied(EVERY_KEY, json!({"io.saya.config.memory": [1]})).unwrap_err().to_string();
        assert!(number.contains("\"[1]\""), "{number}");
    }

    #[test]
    fn keys_that_no_pod_may_set_are_refused_in_the_list_and_in_the_annotation() {
        for (key, words) in [
            ("kernel", "no pod may set kernel"),
            ("initramfs", "the operator's to say"),
            ("allowed_annotations", "no pod may set allowed_annotations"),
            ("shim_version", "it is the node's"),
            ("ignore_packet_filters", "it is the node's"),
            ("colour", "\"colour\" is no key"),
        ] {
            let text = format!("allowed_annotations = [{key:?}]");
            let message = Config::parse(&text, Path::new("/c.toml")).unwrap_err().to_string();
            assert!(message.contains(words) && message.contains("/c.toml"), "{message}");
            let annotation = format!("io.saya.config.{key}");
            let message = applied(EVERY_KEY, json!({&annotation: "/tmp/x"})).unwrap_err().to_string();
            assert!(message.contains(words) && message.contains(&annotation), "{message}");
        }
    }

    #[test]
    fn a_container_has_the_settings_of_its_pod_and_no_others() {
        let spec = |value: &str| json!({"annotations": {"io.saya.config.memory": value}});
        let pod = Settings::of(&spec("700")).unwrap();
        assert_eq!(pod.check_container(&json!({})), Ok(()));
        assert_eq!(pod.check_container(&spec("700")), Ok(()));
        for (settings, of_pod) in [(&pod, "\"700\""), (&Settings::default(), "nothing")] {
            let message = settings.check_container(&spec("800")).unwrap_err().to_string();
            assert!(message.contains("io.saya.config.memory") && message.contains(of_pod), "{message}");
        }
        let unknown = json!({"annotations": {"io.saya.colour": "red"}});
        assert!(matches!(pod.check_container(&unknown), Err(SettingError::Unknown(_))));
    }
}
