//! The command line as containerd writes it: flags in the style of Go's `flag` package, then one action.

use std::ffi::OsString;
use std::path::PathBuf;

/// The parsed command line.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Flags {
    /// containerd's namespace.
    pub(crate) namespace: String,
    /// The id of the task.
    pub(crate) id: String,
    /// containerd's gRPC address.
    pub(crate) address: String,
    /// The binary that publishes events where there is no ttrpc address.
    pub(crate) publish_binary: String,
    /// A socket path to serve on instead of the inherited descriptor.
    pub(crate) socket: String,
    /// The bundle, where it is not the working directory.
    pub(crate) bundle: Option<PathBuf>,
    /// Whether debug lines are logged.
    pub(crate) debug: bool,
    /// Print the version and exit.
    pub(crate) version: bool,
    /// Print the runtime's description (protobuf) and exit.
    pub(crate) info: bool,
    /// `start`, `delete`, or empty for the long-running shim.
    pub(crate) action: String,
}

/// A command line that is not of the expected form.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum FlagError {
    /// No such flag.
    #[error("flag provided but not defined: -{0}")]
    Unknown(String),
    /// The flag's value is missing.
    #[error("flag needs an argument: -{0}")]
    NoValue(String),
    /// A flag that is on or off has another value.
    #[error("invalid boolean value {value:?} for -{flag}")]
    NotBoolean {
        /// The flag.
        flag: String,
        /// What it was given.
        value: String,
    },
    /// Not UTF-8.
    #[error("argument {0:?} is not UTF-8")]
    NotText(OsString),
}

impl Flags {
    /// Parses the arguments after the program's name.
    ///
    /// # Errors
    /// An unknown flag, a missing or a wrong value.
    pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, FlagError> {
        let mut flags = Self::default();
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let argument = argument.into_string().map_err(FlagError::NotText)?;
            let Some(body) = flag_body(&argument) else {
                flags.action = argument;
                break;
            };
            let (name, inline) = match body.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (body.to_owned(), None),
            };
            flags.set(&name, inline, &mut arguments)?;
        }
        Ok(flags)
    }

    fn set(
        &mut self,
        name: &str,
        inline: Option<String>,
        rest: &mut impl Iterator<Item = OsString>,
    ) -> Result<(), FlagError> {
        let switch = match name {
            "debug" => Some(&mut self.debug),
            "v" | "version" => Some(&mut self.version),
            "info" => Some(&mut self.info),
            _ => None,
        };
        if let Some(switch) = switch {
            *switch = boolean(name, inline.as_deref())?;
            return Ok(());
        }
        let text = match name {
            "namespace" => &mut self.namespace,
            "id" => &mut self.id,
            "address" => &mut self.address,
            "publish-binary" => &mut self.publish_binary,
            "socket" => &mut self.socket,
            "bundle" => {
                self.bundle = Some(PathBuf::from(value(name, inline, rest)?))
                    .filter(|path| !path.as_os_str().is_empty());
                return Ok(());
            }
            _ => return Err(FlagError::Unknown(name.to_owned())),
        };
        *text = value(name, inline, rest)?;
        Ok(())
    }
}

/// The text after one or two dashes; `None` for what is no flag.
fn flag_body(argument: &str) -> Option<&str> {
    let body = argument.strip_prefix('-')?;
    let body = body.strip_prefix('-').unwrap_or(body);
    (!body.is_empty()).then_some(body)
}

fn value(
    name: &str,
    inline: Option<String>,
    rest: &mut impl Iterator<Item = OsString>,
) -> Result<String, FlagError> {
    match inline {
        Some(value) => Ok(value),
        None => rest
            .next()
            .ok_or_else(|| FlagError::NoValue(name.to_owned()))?
            .into_string()
            .map_err(FlagError::NotText),
    }
}

fn boolean(name: &str, inline: Option<&str>) -> Result<bool, FlagError> {
    match inline {
        None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
        Some(value) => Err(FlagError::NotBoolean { flag: name.to_owned(), value: value.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Flags, FlagError> {
        Flags::parse(arguments.iter().map(OsString::from))
    }

    #[test]
    fn containerds_start_line_is_understood() {
        let flags = parse(&[
            "-namespace",
            "default",
            "-address",
            "/run/c.sock",
            "-publish-binary",
            "/usr/bin/containerd",
            "-id",
            "t1",
            "-debug",
            "start",
        ])
        .unwrap();
        assert_eq!(flags.namespace, "default");
        assert_eq!(flags.address, "/run/c.sock");
        assert_eq!(flags.publish_binary, "/usr/bin/containerd");
        assert_eq!(flags.id, "t1");
        assert!(flags.debug);
        assert_eq!(flags.action, "start");
    }

    #[test]
    fn two_dashes_and_equal_signs_mean_the_same() {
        let flags = parse(&["--namespace=k8s.io", "-debug=false", "-bundle=/b", "delete"]).unwrap();
        assert_eq!(flags.namespace, "k8s.io");
        assert!(!flags.debug);
        assert_eq!(flags.bundle, Some("/b".into()));
        assert_eq!(flags.action, "delete");
    }

    #[test]
    fn an_unknown_flag_is_refused_by_name() {
        assert_eq!(parse(&["-nope", "start"]), Err(FlagError::Unknown("nope".into())));
    }

    #[test]
    fn a_flag_without_its_value_is_refused() {
        assert_eq!(parse(&["-id"]), Err(FlagError::NoValue("id".into())));
    }
}
