//! `-v` and `-info`.

use std::io::{self, Read, Write};

use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use protobuf::Message;
use protobuf::well_known_types::any::Any;

/// The name under which containerd knows the runtime.
const RUNTIME: &str = "io.containerd.kata.v2";

/// The most bytes of options that are read.
const OPTIONS_MAX: u64 = 10 << 20;

/// Prints the version for people.
pub(super) fn print_version() {
    println!("containerd-shim-kata-v2:");
    println!("  Version:  {}", env!("CARGO_PKG_VERSION"));
    println!();
}

/// Reads the runtime's options from `input` and writes the runtime's description to `output`, both protobuf.
///
/// # Errors
/// Options that are no message, or what the system returned.
pub(super) fn write(input: impl Read, mut output: impl Write) -> io::Result<()> {
    let mut bytes = Vec::new();
    input.take(OPTIONS_MAX).read_to_end(&mut bytes)?;
    let options = Any::parse_from_bytes(&bytes)?;
    let info = RuntimeInfo {
        name: RUNTIME.into(),
        version: Some(RuntimeVersion { version: env!("CARGO_PKG_VERSION").into(), ..Default::default() })
            .into(),
        options: Some(options).filter(|options| !options.type_url.is_empty()).into(),
        ..Default::default()
    };
    output.write_all(&info.write_to_bytes()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_description_names_the_runtime_and_its_version() {
        let mut output = Vec::new();
        write(io::empty(), &mut output).unwrap();
        let info = RuntimeInfo::parse_from_bytes(&output).unwrap();
        assert_eq!(info.name, "io.containerd.kata.v2");
        assert_eq!(info.version.version, env!("CARGO_PKG_VERSION"));
    }
}
