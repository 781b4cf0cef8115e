//! The configuration fragments, and the check that the kernel's configuration really has what they ask for.

use std::path::Path;

use super::kconfig;

/// Name and text of each fragment, in the order in which they are joined.
pub(super) const ALL: &[(&str, &str)] = &[
    ("boot.config", include_str!("../../config/boot.config")),
    ("virtio.config", include_str!("../../config/virtio.config")),
    ("filesystems.config", include_str!("../../config/filesystems.config")),
    ("containers.config", include_str!("../../config/containers.config")),
    ("network.config", include_str!("../../config/network.config")),
];

/// A fragment asks for something that it cannot have.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The kernel's configuration does not have an option with the value that a fragment gives.
    #[error("{fragment} asks for `{wanted}`, but the kernel's configuration has `{found}`: {reason}")]
    NotGranted {
        /// The fragment's file name.
        fragment: &'static str,
        /// The line of the fragment.
        wanted: String,
        /// The line of the resulting configuration.
        found: String,
        /// What the option depends on that is not there.
        reason: String,
    },
}

/// One line of a fragment: an option and its value, `None` for "is not set".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Setting<'a> {
    option: &'a str,
    value: Option<&'a str>,
}

impl<'a> Setting<'a> {
    /// Reads a line of a fragment or of a `.config`; `None` for comments and blank lines.
    fn parse(line: &'a str) -> Option<Self> {
        if let Some(option) = line.strip_prefix("# CONFIG_").and_then(|rest| rest.strip_suffix(" is not set"))
        {
            return Some(Self { option, value: None });
        }
        let (option, value) = line.strip_prefix("CONFIG_")?.split_once('=')?;
        Some(Self { option, value: Some(value) })
    }
}

impl std::fmt::Display for Setting<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.value {
            Some(value) => write!(formatter, "CONFIG_{}={value}", self.option),
            None => write!(formatter, "# CONFIG_{} is not set", self.option),
        }
    }
}

/// The fragments as one file for `KCONFIG_ALLCONFIG`.
pub(super) fn joined() -> String {
    ALL.iter().map(|(name, text)| format!("# {name}\n{text}\n")).collect()
}

/// How many options a `.config` switches on.
pub(super) fn count_enabled(config: &str) -> usize {
    config.lines().filter_map(Setting::parse).filter(|setting| setting.value == Some("y")).count()
}

/// Compares the `.config` that the kernel made with what the fragments ask for. `source` is the kernel's source tree,
/// where the reason for a refusal is looked up.
pub(super) fn check(config: &str, source: &Path) -> Result<(), ConfigError> {
    check_against(ALL, config, source)
}

fn check_against(fragments: &[(&'static str, &str)], config: &str, source: &Path) -> Result<(), ConfigError> {
    let granted: std::collections::HashMap<_, _> =
        config.lines().filter_map(Setting::parse).map(|setting| (setting.option, setting.value)).collect();
    for (fragment, text) in fragments {
        for wanted in text.lines().filter_map(Setting::parse) {
            // An option whose dependencies are off does not appear at all.
            let found =
                Setting { option: wanted.option, value: granted.get(wanted.option).copied().flatten() };
            if found != wanted {
                return Err(ConfigError::NotGranted {
                    fragment,
                    wanted: wanted.to_string(),
                    found: found.to_string(),
                    reason: kconfig::explain(source, wanted.option, &|option| {
                        granted.get(option).copied().flatten().is_some()
                    }),
                });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn each_option_stands_in_one_fragment_once() {
        let mut seen = HashMap::new();
        for (name, text) in ALL {
            for setting in text.lines().filter_map(Setting::parse) {
                let earlier = seen.insert(setting.option, name);
                assert_eq!(earlier, None, "{} in {name} and again", setting.option);
            }
        }
        assert!(seen.len() > 200);
    }

    #[test]
    fn a_fragment_has_no_line_that_is_neither_comment_nor_setting() {
        for (name, text) in ALL {
            for line in text.lines() {
                let is_comment =
                    line.is_empty() || (line.starts_with("# ") && !line.starts_with("# CONFIG_"));
                assert!(is_comment || Setting::parse(line).is_some(), "{name}: {line}");
            }
        }
    }

    #[test]
    fn a_granted_configuration_passes() {
        let fragment =
            [("f", "# why\nCONFIG_A=y\nCONFIG_S=\"x\"\n# CONFIG_B is not set\n# CONFIG_GONE is not set\n")];
        let config = "CONFIG_A=y\nCONFIG_S=\"x\"\n# CONFIG_B is not set\nCONFIG_C=y\n";
        assert_eq!(check_against(&fragment, config, Path::new("/nonexistent")), Ok(()));
    }

    #[test]
    fn a_refused_option_is_named_with_its_fragment_and_values() {
        for (wanted, config, found) in [
            ("CONFIG_A=y", "", "# CONFIG_A is not set"),
            ("CONFIG_A=y", "# CONFIG_A is not set\n", "# CONFIG_A is not set"),
            ("# CONFIG_A is not set", "CONFIG_A=y\n", "CONFIG_A=y"),
            ("CONFIG_A=64", "CONFIG_A=8\n", "CONFIG_A=8"),
        ] {
            let error = check_against(&[("f", wanted)], config, Path::new("/nonexistent")).unwrap_err();
            let ConfigError::NotGranted { fragment, wanted: named, found: value, .. } = error;
            assert_eq!((fragment, &*named, &*value), ("f", wanted, found));
        }
    }

    #[test]
    fn only_options_that_are_on_are_counted() {
        assert_eq!(
            count_enabled("CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=64\nCONFIG_D=\"y\"\nCONFIG_E=y\n"),
            2
        );
    }
}
