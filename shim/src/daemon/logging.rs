//! The shim's log: lines as containerd's own, to the fifo from which containerd collects them.

use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Mutex;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::registry::LookupSpan;

use crate::foreign_text::shorten;

/// The most of one value that is logged, in bytes: more than a stopped machine's reason with its console.
const VALUE_MAX: usize = 20 * 1024;

/// Begins to log to the fifo `log` in the bundle, as containerd expects of a shim; without one nothing is logged.
pub(crate) fn start(bundle: &Path, debug: bool) {
    let Ok(fifo) = open(&bundle.join("log")) else { return };
    // A logger that is there already stays: that happens in tests alone.
    let _ = tracing_subscriber::fmt()
        .with_max_level(if debug { LevelFilter::DEBUG } else { LevelFilter::INFO })
        .event_format(Line)
        .with_writer(Mutex::new(Lossy { log: fifo, cut: false }))
        .try_init();
}

/// Opened for reading too, so that neither a containerd that is away nor one that restarts is an error.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path)
}

/// Drops what the fifo does not take: a log that nobody reads must not hold the shim up. Each write is one record.
struct Lossy {
    log: File,
    /// The last record has reached the fifo without its end.
    cut: bool,
}

impl Write for Lossy {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // What is left of a record that was cut gets a line of its own.
        if self.cut && self.write_some(b"\n")? == 0 {
            return Ok(bytes.len());
        }
        let written = self.write_some(bytes)?;
        self.cut = 0 < written && written < bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Lossy {
    /// Writes what the fifo takes now.
    fn write_some(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.log.write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            written => written,
        }
    }
}

/// `time="…" level=info msg="…" key=value`, as logrus writes it.
struct Line;

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let now = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
        let mut fields = Fields::default();
        event.record(&mut fields);
        writeln!(
            writer,
            "time=\"{now}\" level={} msg={}{} runtime=io.containerd.kata.v2",
            level(*event.metadata().level()),
            quoted(&fields.message),
            fields.rest
        )
    }
}

fn level(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warning",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    rest: String,
}

impl Fields {
    fn add(&mut self, field: &Field, value: &str) {
        let value = &*shorten(value, VALUE_MAX);
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else if !field.name().starts_with("log.") {
            // Writing to a String cannot fail.
            let _ = write!(self.rest, " {}={}", field.name(), bare_or_quoted(value));
        }
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, &format!("{value:?}"));
    }
}

fn bare_or_quoted(value: &str) -> String {
    let bare = !value.is_empty()
        && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._/@^+:".contains(&byte));
    if bare { value.to_owned() } else { quoted(value) }
}

/// In double quotes, with escapes for everything that could end the line or reach a terminal.
fn quoted(value: &str) -> String {
    let mut text = String::with_capacity(value.len() + 2);
    text.push('"');
    for character in value.chars() {
        match character {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\t' => text.push_str("\\t"),
            control if control.is_control() => {
                // Writing to a String cannot fail.
                let _ = write!(text, "\\u{:04x}", u32::from(control));
            }
            other => text.push(other),
        }
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn nothing_that_a_guest_says_breaks_a_line_or_reaches_a_terminal() {
        assert_eq!(quoted("a\"b\\c\nd\x1b[2J"), "\"a\\\"b\\\\c\\nd\\u001b[2J\"");
        assert_eq!(bare_or_quoted("io.containerd/x"), "io.containerd/x");
        assert_eq!(bare_or_quoted("two words"), "\"two words\"");
        assert_eq!(bare_or_quoted(""), "\"\"");
    }

    #[test]
    fn a_log_that_nobody_reads_does_not_block() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        let mut log = Lossy { log: open(&path).unwrap(), cut: false };
        for _ in 0..100 {
            log.write_all(&[b'x'; 4096]).unwrap();
        }
    }

    #[test]
    fn a_record_that_was_cut_takes_no_part_of_the_next_ones_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        let mut log = Lossy { log: open(&path).unwrap(), cut: false };
        let mut reader = open(&path).unwrap();
        let mut taken = vec![0; 1 << 20];
        // Longer than the pipe, which takes a part of the second; a record that is not taken at all changes nothing.
        let record = [&[b'x'; 40_000][..], b"\n"].concat();
        for _ in 0..3 {
            log.write_all(&record).unwrap();
        }
        let length = reader.read(&mut taken).unwrap();
        assert!(length > record.len() && taken[length - 1] == b'x');
        log.write_all(b"next\n").unwrap();
        let length = reader.read(&mut taken).unwrap();
        assert_eq!(&taken[..length], b"\nnext\n");
    }
}
