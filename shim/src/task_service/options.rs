//! The runtime options that containerd's clients pass along.

use protobuf::well_known_types::any::Any;
use protobuf::{CodedInputStream, Message};

use crate::container::TaskError;

/// The options that a runtime of any kind takes (containerd's `api/types/runtimeoptions/v1`).
const GENERIC: &str = "runtimeoptions.v1.Options";

/// The options in which containerd 2.x tells where the tasks of a pod are that the Sandbox API has made, whatever the
/// runtime. They are runc's own (`api/types/runc/options/oci.proto`).
const ENDPOINT: &str = "containerd.runc.v1.Options";
/// The fields of these that say it, `task_api_address` and `task_api_version`: it is the shim that is asked.
const ENDPOINT_FIELDS: [u32; 2] = [12, 13];

/// What [`GENERIC`] options say.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct RuntimeOptions {
    /// The path of a configuration file; empty for none.
    pub(crate) config_path: String,
    /// A configuration's text; empty for none.
    pub(crate) config_body: String,
}

/// Options that are not ours.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum OptionsError {
    /// Options of another runtime.
    #[error("runtime options of type {0:?} are not supported: they must be {GENERIC}")]
    Type(String),
    /// Bytes that are not of the type that they claim.
    #[error("runtime options are malformed: {0}")]
    Malformed(String),
}

impl RuntimeOptions {
    /// Whether these are options that a runtime of any kind takes.
    pub(crate) fn are_in(options: &Any) -> bool {
        options.type_url.rsplit('/').next() == Some(GENERIC)
    }

    /// Reads options as containerd wraps them.
    ///
    /// # Errors
    /// Another type, or malformed.
    pub(crate) fn read(options: &Any) -> Result<Self, OptionsError> {
        let name = options.type_url.rsplit('/').next().unwrap_or_default();
        if name.is_empty() && options.value.is_empty() {
            return Ok(Self::default());
        }
        if name == ENDPOINT && has_only(&options.value, &ENDPOINT_FIELDS).unwrap_or(false) {
            return Ok(Self::default());
        }
        if name != GENERIC {
            return Err(OptionsError::Type(options.type_url.clone()));
        }
        Self::decode(&options.value).map_err(|error| OptionsError::Malformed(error.to_string()))
    }

    /// Reads a serialized [`Any`] as containerd writes it to the shim's standard input; nothing for no bytes.
    ///
    /// # Errors
    /// Another type, or malformed.
    pub(crate) fn read_bytes(bytes: &[u8]) -> Result<Self, OptionsError> {
        let options =
            Any::parse_from_bytes(bytes).map_err(|error| OptionsError::Malformed(error.to_string()))?;
        Self::read(&options)
    }

    /// Fields 2 and 3; field 1 names the type of the configuration, of which there is one.
    fn decode(bytes: &[u8]) -> protobuf::Result<Self> {
        let mut decoded = Self::default();
        let mut input = CodedInputStream::from_bytes(bytes);
        while let Some(tag) = input.read_raw_tag_or_eof()? {
            match (tag >> 3, tag & 7) {
                (2, 2) => decoded.config_path = input.read_string()?,
                (3, 2) => decoded.config_body = String::from_utf8_lossy(&input.read_bytes()?).into_owned(),
                (_, kind) => match protobuf::rt::WireType::new(kind) {
                    Some(kind) => input.skip_field(kind)?,
                    None => break,
                },
            }
        }
        Ok(decoded)
    }
}

/// Whether a message has these fields and no others.
fn has_only(bytes: &[u8], fields: &[u32]) -> protobuf::Result<bool> {
    let mut input = CodedInputStream::from_bytes(bytes);
    while let Some(tag) = input.read_raw_tag_or_eof()? {
        match protobuf::rt::WireType::new(tag & 7) {
            Some(kind) if fields.contains(&(tag >> 3)) => input.skip_field(kind)?,
            _ => return Ok(false),
        }
    }
    Ok(!bytes.is_empty())
}

/// Checks the options of a create call. What they say was taken when the shim started.
///
/// # Errors
/// InvalidArgument.
pub(super) fn check(options: Option<&Any>) -> Result<(), TaskError> {
    match options {
        None => Ok(()),
        Some(options) => RuntimeOptions::read(options).map(|_| ()).map_err(TaskError::invalid_argument),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_and_the_text_of_a_configuration_are_found() {
        // 1: "t", 2: "/c", 3: "vcpus=2"
        let value = b"\x0a\x01t\x12\x02/c\x1a\x07vcpus=2".to_vec();
        let options = Any { type_url: GENERIC.into(), value, ..Default::default() };
        let expected = RuntimeOptions { config_path: "/c".into(), config_body: "vcpus=2".into() };
        assert_eq!(RuntimeOptions::read(&options), Ok(expected.clone()));
        assert_eq!(RuntimeOptions::read_bytes(&options.write_to_bytes().unwrap()), Ok(expected));
    }

    #[test]
    fn no_bytes_mean_no_options() {
        assert_eq!(RuntimeOptions::read_bytes(&[]), Ok(RuntimeOptions::default()));
    }

    #[test]
    fn options_of_another_runtime_are_refused_by_name() {
        let options = Any { type_url: "containerd.runc.v1.Options".into(), ..Default::default() };
        assert!(
            RuntimeOptions::read(&options).unwrap_err().to_string().contains("containerd.runc.v1.Options")
        );
    }

    #[test]
    fn the_address_of_the_pods_tasks_is_taken_from_containerd_and_nothing_else_of_runcs() {
        // 12: "ttrpc+unix:///s", 13: 2
        let value = b"\x62\x0fttrpc+unix:///s\x68\x02".to_vec();
        let mut options = Any { type_url: ENDPOINT.into(), value, ..Default::default() };
        assert_eq!(RuntimeOptions::read(&options), Ok(RuntimeOptions::default()));
        // 9: true
        options.value.extend(b"\x48\x01");
        assert!(matches!(RuntimeOptions::read(&options), Err(OptionsError::Type(_))));
    }

    #[test]
    fn bytes_that_are_no_message_are_refused() {
        let options = Any { type_url: GENERIC.into(), value: vec![0x12, 0xff], ..Default::default() };
        assert!(matches!(RuntimeOptions::read(&options), Err(OptionsError::Malformed(_))));
    }
}
