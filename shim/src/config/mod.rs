//! The configuration file: TOML, every key optional, unknown keys refused. `docs/configuration.md` describes the keys.

mod key;

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, fs, io};

use saya_vmm::control::LONGEST_PATIENCE;
use serde::Deserialize;

pub(crate) use key::{Key, KeyError};

/// The environment variable that names the configuration file before every other place.
pub(crate) const CONFIG_VARIABLE: &str = "SAYA_CONFIG";

/// Where the file is looked for when [`CONFIG_VARIABLE`] does not name one; the first that exists counts.
const PLACES: [&str; 2] = ["/etc/saya/config.toml", "/usr/local/share/saya/config.toml"];

/// What an operator can set.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// The guest kernel: an uncompressed ELF `vmlinux` with a PVH entry.
    pub(crate) kernel: PathBuf,
    /// The guest's initramfs: an uncompressed cpio archive with the agent as `/init`.
    pub(crate) initramfs: PathBuf,
    /// Virtual CPUs of a pod that sets no CPU limit.
    pub(crate) vcpus: u32,
    /// Memory in MiB of a pod that sets no memory limit, all of the VM's.
    pub(crate) memory: u64,
    /// Memory in MiB that a VM gets beyond its pod's memory limit: for the guest's kernel and agent.
    pub(crate) memory_overhead: u64,
    /// Kernel parameters, added after the built-in ones.
    pub(crate) kernel_parameters: Vec<String>,
    /// Whether the guest's kernel writes its whole log to the console, which is slow.
    pub(crate) console_verbose: bool,
    /// Seconds from the VMM's start within which the agent in the guest must be ready.
    pub(crate) boot_timeout: u32,
    /// Seconds within which the agent must answer, or at least show that it lives.
    pub(crate) agent_timeout: u32,
    /// Whether packet filters in a pod's network namespace, which have no effect on its guest, are logged and not refused.
    pub(crate) ignore_packet_filters: bool,
    /// The version of the Task service that is announced to a containerd which does not say what it knows: 2, or 3.
    pub(crate) shim_version: u32,
    /// The keys that a pod may set for itself.
    pub(crate) allowed_annotations: Vec<Key>,
    /// The file that all this is from; none where it is the defaults.
    #[serde(skip)]
    pub(crate) file: Option<PathBuf>,
    /// Memory in MiB that the pod has asked for: its VM has no less, whatever its limits are.
    #[serde(skip)]
    pub(crate) least_memory: u64,
    /// Virtual CPUs that the pod has asked for, in the same way.
    #[serde(skip)]
    pub(crate) least_vcpus: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            kernel: PathBuf::from("/usr/local/share/saya/vmlinux"),
            initramfs: PathBuf::from("/usr/local/share/saya/initramfs.cpio"),
            vcpus: 1,
            memory: 512,
            memory_overhead: 96,
            kernel_parameters: Vec::new(),
            console_verbose: false,
            boot_timeout: 60,
            agent_timeout: 30,
            ignore_packet_filters: false,
            shim_version: 2,
            allowed_annotations: Vec::new(),
            file: None,
            least_memory: 0,
            least_vcpus: 0,
        }
    }
}

/// A value outside its key's bounds.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{key} = {value} is out of range: it must be {range}")]
pub(crate) struct OutOfRange {
    key: &'static str,
    value: String,
    range: &'static str,
}

/// Why there is no usable configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The file is there, or was asked for, and cannot be read.
    #[error("configuration {path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Not TOML, an unknown key, or a value of the wrong type.
    #[error("configuration {path}: {message}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The parser's own words, with line and key.
        message: String,
    },
    /// A value outside its bounds.
    #[error("configuration {path}: {problem}")]
    OutOfRange {
        /// The file.
        path: PathBuf,
        /// The key, and what is wrong with it.
        problem: OutOfRange,
    },
}

impl Config {
    /// Reads the file that applies, or takes the defaults where there is none.
    ///
    /// # Errors
    /// A file that was named and does not exist, or any file that is malformed.
    pub(crate) fn load() -> Result<Self, ConfigError> {
        if let Some(path) = env::var_os(CONFIG_VARIABLE).filter(|path| !path.is_empty()) {
            return Self::read(Path::new(&path));
        }
        for place in PLACES {
            match Self::read(Path::new(place)) {
                Err(ConfigError::Unreadable { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                answer => return answer,
            }
        }
        Ok(Self::default())
    }

    /// Reads the file at `path`.
    ///
    /// # Errors
    /// Unreadable or malformed; the message names the file and the key.
    pub(crate) fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    pub(crate) fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let mut config: Self = toml::from_str(text).map_err(|error| ConfigError::Malformed {
            path: path.to_owned(),
            message: error.to_string().trim_end().to_owned(),
        })?;
        config.check().map_err(|problem| ConfigError::OutOfRange { path: path.to_owned(), problem })?;
        config.file = Some(path.to_owned());
        Ok(config)
    }

    /// The defaults, any key of which a pod may set that pods may be allowed to.
    pub(crate) fn allowing_all() -> Self {
        Self { allowed_annotations: Key::ALL.to_vec(), ..Self::default() }
    }

    /// Checks that every value is within its bounds.
    ///
    /// # Errors
    /// The first that is not.
    pub(crate) fn check(&self) -> Result<(), OutOfRange> {
        let out_of_range = |key, value, range| Err(OutOfRange { key, value, range });
        if !(1..=crate::sizing::VCPUS_MAX).contains(&self.vcpus) {
            return out_of_range("vcpus", self.vcpus.to_string(), "1 to 64");
        }
        if !(crate::sizing::MEMORY_MIN..=crate::sizing::MEMORY_MAX).contains(&self.memory) {
            return out_of_range("memory", self.memory.to_string(), "64 to 1048575 MiB");
        }
        if !(crate::sizing::MEMORY_MIN..=65_536).contains(&self.memory_overhead) {
            return out_of_range("memory_overhead", self.memory_overhead.to_string(), "64 to 65536 MiB");
        }
        if !(2..=3).contains(&self.shim_version) {
            return out_of_range("shim_version", self.shim_version.to_string(), "2 or 3");
        }
        for (key, seconds) in [("boot_timeout", self.boot_timeout), ("agent_timeout", self.agent_timeout)] {
            if seconds == 0 || Duration::from_secs(seconds.into()) > LONGEST_PATIENCE {
                return out_of_range(key, seconds.to_string(), "1 to 3600 seconds");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("/etc/saya/config.toml"))
    }

    #[test]
    fn an_empty_file_means_the_defaults() {
        let file = Some("/etc/saya/config.toml".into());
        assert_eq!(parse("").unwrap(), Config { file, ..Config::default() });
    }

    #[test]
    fn every_key_is_taken() {
        let config = parse(
            r#"
            kernel = "/k"
            initramfs = "/i"
            vcpus = 2
            memory = 300
            memory_overhead = 100
            kernel_parameters = ["noxsave", "loglevel=7"]
            console_verbose = true
            boot_timeout = 20
            agent_timeout = 10
            ignore_packet_filters = true
            shim_version = 3
            allowed_annotations = ["memory"]
            "#,
        )
        .unwrap();
        assert_eq!(
            config,
            Config {
                kernel: "/k".into(),
                initramfs: "/i".into(),
                vcpus: 2,
                memory: 300,
                memory_overhead: 100,
                kernel_parameters: vec!["noxsave".into(), "loglevel=7".into()],
                console_verbose: true,
                boot_timeout: 20,
                agent_timeout: 10,
                ignore_packet_filters: true,
                shim_version: 3,
                allowed_annotations: vec![Key::Memory],
                file: Some("/etc/saya/config.toml".into()),
                least_memory: 0,
                least_vcpus: 0,
            }
        );
    }

    #[test]
    fn the_sample_has_every_key_with_its_default() {
        let sample = include_str!("../../../deploy/config.toml");
        let defaults = Config { file: Some("/etc/saya/config.toml".into()), ..Config::default() };
        assert_eq!(parse(sample).unwrap(), defaults, "nothing is set as it is installed");
        let keys =
            sample.lines().filter_map(|line| line.strip_prefix('#')).filter(|line| !line.starts_with(' '));
        let set: String = keys.map(|line| format!("{line}\n")).collect();
        assert_eq!(parse(&set).unwrap(), defaults);
        let set: toml::Table = set.parse().unwrap();
        // A key of the structure's that the sample lacks is one that no error would name.
        let known = parse("nonsense = 1").unwrap_err().to_string();
        let known = known.split_once("expected one of ").unwrap().1;
        let known: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
        assert_eq!(set.len(), known.len(), "{known:?}");
        assert!(known.iter().all(|key| set.contains_key(*key)), "{known:?}");
    }

    /// What shim and VMM may take on the host beyond the guest's memory, in MiB (docs/kubernetes.md).
    const SHIM_AND_VMM_MIB: u64 = 48;

    #[test]
    fn the_runtimeclass_has_the_overhead_of_the_guest_and_of_shim_and_vmm() {
        let manifest = include_str!("../../../deploy/kubernetes/runtimeclass.yaml");
        let memory = manifest.lines().find_map(|line| line.trim().strip_prefix("memory: ")).unwrap();
        let expected = Config::default().memory_overhead + SHIM_AND_VMM_MIB;
        assert_eq!(memory, format!("{expected}Mi"));
        let documented = include_str!("../../../docs/kubernetes.md");
        assert!(documented.contains(&format!("{SHIM_AND_VMM_MIB} MiB for shim and VMM")));
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_name_and_the_files() {
        let message = parse("memroy = 5").unwrap_err().to_string();
        assert!(message.contains("memroy") && message.contains("/etc/saya/config.toml"), "{message}");
    }

    #[test]
    fn a_value_of_the_wrong_type_is_refused_with_its_key() {
        let message = parse("vcpus = \"two\"").unwrap_err().to_string();
        assert!(message.contains("vcpus"), "{message}");
    }

    #[test]
    fn values_out_of_range_are_refused_with_key_and_value() {
        for (text, key, value) in [
            ("vcpus = 0", "vcpus", "0"),
            ("memory = 3", "memory", "3"),
            ("vcpus = 65", "vcpus", "65"),
            ("boot_timeout = 0", "boot_timeout", "0"),
            ("agent_timeout = 3601", "agent_timeout", "3601"),
            ("shim_version = 4", "shim_version", "4"),
        ] {
            let message = parse(text).unwrap_err().to_string();
            assert!(message.contains(key) && message.contains(value), "{message}");
        }
    }

    #[test]
    fn a_named_file_that_is_missing_is_an_error() {
        let error = Config::read(Path::new("/nonexistent/saya.toml")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/saya.toml"));
    }
}
