//! Generates the protocol's types, its server trait and its client from `proto/agent.proto`.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize};

const PROTO: &str = "proto/agent.proto";

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed={PROTO}");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("OUT_DIR is not set"))?);
    Codegen::new()
        .input(PROTO)
        .include("proto")
        .rust_protobuf()
        .rust_protobuf_customize(ProtobufCustomize::default().gen_mod_rs(false))
        .customize(Customize { async_all: true, ..Default::default() })
        .out_dir(&out)
        .run()
        .map_err(io::Error::other)?;
    for file in ["agent.rs", "agent_ttrpc.rs"] {
        drop_inner_attributes(&out.join(file))?;
    }
    Ok(())
}

/// `include!` takes no file with inner attributes or inner docs (rust-lang/rust#18810).
fn drop_inner_attributes(path: &Path) -> io::Result<()> {
    let text = fs::read_to_string(path)?;
    let kept: Vec<&str> =
        text.lines().filter(|line| !line.starts_with("#!") && !line.starts_with("//!")).collect();
    fs::write(path, kept.join("\n"))
}
