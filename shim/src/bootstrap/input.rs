//! What containerd writes to the standard input of `start`, and in which form it wants the answer.
//!
//! Before 2.3 it is the runtime's options, if there are any, and all else is in flags and variables; the answer is an
//! address as text, or JSON with a version from 1.7 on. Which version containerd knows it does not say: its variable
//! `MAX_SHIM_VERSION` is 2 up to 2.2, where 2.0 takes 3, and 1.7 refuses it. So the operator says it. From 2.3 on it is
//! one message, `BootstrapParams`, and so is the answer, `BootstrapResult` (containerd's `docs/runtime-v2.md`,
//! "Bootstrap protocol"). Nothing marks the one or the other: as the other form each is a message too, with a type's
//! name where the container's id should be.

use std::io::{self, Read, Write};
use std::path::PathBuf;

use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use protobuf::Message;
use serde_json::json;

use super::flags::Flags;
use crate::task_service::{OptionsError, RuntimeOptions};

/// The most bytes that are read.
const SIZE_MAX: u64 = 10 << 20;
/// Levels of logging from this one down are for debugging (`LogLevel`: 0 is info, -4 debug, -8 trace).
const DEBUG_LEVEL: i32 = -4;
/// The version of the Task service that is announced where it can be.
const TASK_VERSION: i32 = 3;
/// How the shim is spoken to.
const PROTOCOL: &str = "ttrpc";

/// What was read.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Input {
    /// The runtime's options.
    pub(super) options: RuntimeOptions,
    /// containerd's ttrpc socket, where the message names it.
    pub(super) ttrpc_address: Option<String>,
    /// The directory for the shim's socket, where the message names one.
    pub(super) socket_directory: Option<PathBuf>,
    /// The form of the answer.
    pub(super) answer: Answer,
}

/// The form of `start`'s answer.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// An address as text: containerd 1.6 knows nothing else, and those up to 2.2 take it for a Task service of version 2
    /// over ttrpc.
    #[default]
    Text,
    /// JSON with version 3, for those from 2.0 to 2.2.
    Json,
    /// A `BootstrapResult`.
    Message,
}

impl Input {
    /// Reads all of `input`. What its message says and the flags leave open is put into `flags`.
    ///
    /// # Errors
    /// What the system returned.
    pub(super) fn read(input: impl Read, flags: &mut Flags) -> io::Result<Result<Self, OptionsError>> {
        let mut bytes = Vec::new();
        input.take(SIZE_MAX).read_to_end(&mut bytes)?;
        Ok(Self::parse(&bytes, flags))
    }

    fn parse(bytes: &[u8], flags: &mut Flags) -> Result<Self, OptionsError> {
        match BootstrapParams::parse_from_bytes(bytes) {
            Ok(message) if is_for(&message, flags) => Self::of_message(message, flags),
            _ => Ok(Self { options: RuntimeOptions::read_bytes(bytes)?, ..Self::default() }),
        }
    }

    fn of_message(message: BootstrapParams, flags: &mut Flags) -> Result<Self, OptionsError> {
        flags.debug |= message.log_level.value() <= DEBUG_LEVEL;
        for (flag, value) in [
            (&mut flags.id, message.instance_id),
            (&mut flags.namespace, message.namespace),
            (&mut flags.address, message.containerd_grpc_address),
            (&mut flags.publish_binary, message.containerd_binary),
        ] {
            if flag.is_empty() {
                *flag = value;
            }
        }
        // There may be extensions for other readers: only what is of our type is ours.
        let values = message.extensions.iter().filter_map(|extension| extension.value.as_ref());
        let options = values.filter(|value| RuntimeOptions::are_in(value)).map(RuntimeOptions::read).next();
        Ok(Self {
            options: options.transpose()?.unwrap_or_default(),
            ttrpc_address: Some(message.containerd_ttrpc_address).filter(|address| !address.is_empty()),
            socket_directory: message.socket_dir.filter(|path| !path.is_empty()).map(PathBuf::from),
            answer: Answer::Message,
        })
    }
}

fn is_for(message: &BootstrapParams, flags: &Flags) -> bool {
    let agrees = |flag: &str, value: &str| !value.is_empty() && (flag.is_empty() || flag == value);
    agrees(&flags.id, &message.instance_id) && agrees(&flags.namespace, &message.namespace)
}

impl Answer {
    /// The form for a containerd that knows this version of the Task service, as the operator says. One that has written
    /// a message has said it itself.
    pub(super) fn for_version(self, version: u32) -> Self {
        match self {
            Self::Text if i64::from(version) >= TASK_VERSION.into() => Self::Json,
            form => form,
        }
    }

    /// Writes the address at which the shim serves.
    ///
    /// # Errors
    /// What the system returned.
    pub(super) fn write(self, address: &str, mut output: impl Write) -> io::Result<()> {
        match self {
            Self::Text => output.write_all(address.as_bytes()),
            Self::Json => {
                let answer = json!({"version": TASK_VERSION, "address": address, "protocol": PROTOCOL});
                output.write_all(answer.to_string().as_bytes())
            }
            Self::Message => {
                let result = BootstrapResult {
                    version: TASK_VERSION,
                    address: address.to_owned(),
                    protocol: PROTOCOL.to_owned(),
                    ..Default::default()
                };
                output.write_all(&result.write_to_bytes()?)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use containerd_shim_protos::bootstrap_api::Extension;
    use protobuf::EnumOrUnknown;
    use protobuf::well_known_types::any::Any;

    use super::*;

    /// Options that name the configuration /c.
    fn options() -> Any {
        Any {
            type_url: "runtimeoptions.v1.Options".into(),
            value: b"\x12\x02/c".to_vec(),
            ..Default::default()
        }
    }

    fn flags(id: &str, namespace: &str) -> Flags {
        Flags { id: id.into(), namespace: namespace.into(), ..Flags::default() }
    }

    fn message() -> BootstrapParams {
        let foreign = Any { type_url: "containerd.io/nri.v1.PluginConfig".into(), ..Default::default() };
        let extension = |value| Extension { value: Some(value).into(), ..Default::default() };
        BootstrapParams {
            instance_id: "c1".into(),
            namespace: "k8s.io".into(),
            log_level: EnumOrUnknown::from_i32(-4),
            containerd_ttrpc_address: "/run/c.ttrpc".into(),
            containerd_grpc_address: "/run/c.sock".into(),
            socket_dir: Some("/run/s".into()),
            extensions: vec![extension(foreign), extension(options())],
            ..Default::default()
        }
    }

    #[test]
    fn options_alone_are_what_containerd_wrote_before_it_wrote_a_message() {
        let mut flags = flags("c1", "k8s.io");
        let input = Input::parse(&options().write_to_bytes().unwrap(), &mut flags).unwrap();
        assert_eq!(input.options.config_path, "/c");
        assert_eq!(input.answer, Answer::Text);
        assert_eq!(Input::parse(&[], &mut flags), Ok(Input::default()));
    }

    #[test]
    fn a_message_completes_the_flags_and_is_answered_by_one() {
        let bytes = message().write_to_bytes().unwrap();
        for mut flags in [flags("c1", "k8s.io"), flags("", "")] {
            let input = Input::parse(&bytes, &mut flags).unwrap();
            assert_eq!(input.options.config_path, "/c");
            assert_eq!(input.ttrpc_address.as_deref(), Some("/run/c.ttrpc"));
            assert_eq!(input.socket_directory, Some("/run/s".into()));
            assert_eq!(
                (flags.id.as_str(), flags.namespace.as_str(), flags.address.as_str(), flags.debug),
                ("c1", "k8s.io", "/run/c.sock", true)
            );
            let mut answer = Vec::new();
            input.answer.write("unix:///run/s", &mut answer).unwrap();
            let result = BootstrapResult::parse_from_bytes(&answer).unwrap();
            assert_eq!((result.version, result.address.as_str()), (3, "unix:///run/s"));
            assert_eq!(result.protocol, "ttrpc");
        }
    }

    #[test]
    fn version_3_is_announced_to_a_containerd_that_does_not_say_what_it_knows_if_the_operator_does() {
        let written = |answer: Answer| {
            let mut output = Vec::new();
            answer.write("unix:///run/s", &mut output).unwrap();
            String::from_utf8(output)
        };
        assert_eq!(written(Answer::Text.for_version(2)).unwrap(), "unix:///run/s");
        let json: serde_json::Value =
            serde_json::from_str(&written(Answer::Text.for_version(3)).unwrap()).unwrap();
        assert_eq!(json, json!({"version": 3, "address": "unix:///run/s", "protocol": "ttrpc"}));
        assert_eq!(Answer::Message.for_version(2), Answer::Message);
        assert_eq!(Answer::Message.for_version(3), Answer::Message);
    }

    #[test]
    fn a_message_for_another_container_is_no_message_for_this_one() {
        let bytes = message().write_to_bytes().unwrap();
        let error = Input::parse(&bytes, &mut flags("c2", "k8s.io")).unwrap_err();
        assert!(matches!(error, OptionsError::Type(_)), "{error}");
    }
}
