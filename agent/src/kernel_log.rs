//! The agent's log: lines to the kernel's, which the VMM shows when a boot fails.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};

use log::{Level, LevelFilter, Log, Metadata, Record};

/// `LOG_DAEMON` of syslog(3), shifted as /dev/kmsg wants it.
const FACILITY: u8 = 3 << 3;

/// Sends every log line of level info and above to /dev/kmsg.
pub(crate) fn to_kernel() -> io::Result<()> {
    let sink = OpenOptions::new().write(true).open("/dev/kmsg")?;
    install(KernelLog { sink })
}

/// Sends every log line to standard error, for an agent that is not the first process.
pub(crate) fn to_standard_error() -> io::Result<()> {
    install(StandardError)
}

fn install(log: impl Log + 'static) -> io::Result<()> {
    log::set_boxed_logger(Box::new(log)).map_err(io::Error::other)?;
    log::set_max_level(LevelFilter::Info);
    Ok(())
}

struct KernelLog {
    sink: File,
}

impl Log for KernelLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Info
    }

    fn log(&self, record: &Record<'_>) {
        let priority = FACILITY | severity(record.level());
        let line = format!("<{priority}>saya-agent: {}\n", record.args());
        // A log that cannot be written has nowhere to say so.
        let _ = (&self.sink).write_all(line.as_bytes());
    }

    fn flush(&self) {}
}

/// The severity of syslog(3).
fn severity(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

struct StandardError;

impl Log for StandardError {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Info
    }

    fn log(&self, record: &Record<'_>) {
        // A log that cannot be written has nowhere to say so.
        let _ = writeln!(io::stderr(), "saya-agent: {}: {}", record.level(), record.args());
    }

    fn flush(&self) {}
}
