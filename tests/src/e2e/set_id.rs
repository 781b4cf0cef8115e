//! Somebody who may write to a program that runs as its owner: the tests run that inside a container.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::Context;
use clap::ValueEnum;
use rustix::fs::{FallocateFlags, copy_file_range, fallocate};

/// How something is written to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Way {
    /// `write`.
    Write,
    /// `copy_file_range`, from a file beside it.
    Copy,
    /// `fallocate`.
    Fallocate,
}

/// The file from which [`Way::Copy`] copies; it begins as any program does.
pub(super) const BESIDE: &str = "beside";

/// Writes to `program` what it begins with already, and becomes it: nothing looks at the file in between. It is given `-u`,
/// by which id(1) prints as whom it runs.
///
/// # Errors
/// The program cannot be written to or run.
pub fn write_and_run(program: &Path, way: Way) -> anyhow::Result<()> {
    let mut file = OpenOptions::new().write(true).open(program).context("cannot open the program")?;
    let mut beside = File::open(program.with_file_name(BESIDE)).context("cannot open the file beside")?;
    match way {
        Way::Write => {
            let mut magic = [0; 4];
            beside.read_exact(&mut magic)?;
            file.write_all(&magic).context("cannot write")?;
        }
        Way::Copy => {
            copy_file_range(&beside, Some(&mut 0), &file, Some(&mut 0), 4).context("cannot copy")?;
        }
        Way::Fallocate => fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 4).context("cannot reserve")?,
    }
    drop(file);
    Err(Command::new(program).arg("-u").exec()).context("cannot run the program")
}
