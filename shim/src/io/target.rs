//! The host's ends of a process's streams.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Where bytes go.
#[derive(Debug)]
pub(crate) enum Target {
    /// A pipe that does not block, into which bytes can be spliced.
    Pipe(OwnedFd),
    /// A file.
    File(File),
}

/// A stream's host end that cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("opening {name} {path}: {source}")]
pub(crate) struct OpenError {
    /// "stdin", "stdout" or "stderr".
    pub(crate) name: &'static str,
    /// The path.
    pub(crate) path: PathBuf,
    /// What the system said.
    pub(crate) source: io::Error,
}

/// Opens the fifo, or whatever else is at `path`, for output.
///
/// A fifo is opened for reading too: so the call does not wait for a reader that comes late, and a reader that goes
/// away does not break the pipe, which the next reader finds as it was.
///
/// # Errors
/// What open(2) returned.
pub(crate) fn open_output(name: &'static str, path: &Path) -> Result<Target, OpenError> {
    let failed = |source| OpenError { name, path: path.to_owned(), source };
    let kind = fs::metadata(path).map_err(failed)?.file_type();
    if kind.is_fifo() {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
        return Ok(Target::Pipe(options.open(path).map_err(failed)?.into()));
    }
    Ok(Target::File(OpenOptions::new().append(true).open(path).map_err(failed)?))
}

/// Opens the file at `path` to append to, and makes it and its directories if they are not there.
///
/// # Errors
/// What the system returned.
pub(crate) fn open_log(name: &'static str, path: &Path) -> Result<File, OpenError> {
    let failed = |source| OpenError { name, path: path.to_owned(), source };
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(failed)?;
    }
    OpenOptions::new().append(true).create(true).mode(0o644).open(path).map_err(failed)
}

/// A process's input from the host.
#[derive(Debug)]
pub(crate) struct Input {
    /// The end to read, which does not block.
    pub(crate) reader: OwnedFd,
    /// An end to write that keeps the fifo from being at its end before a client has come, or between two clients.
    /// containerd's CloseIO closes it.
    pub(crate) keeper: Option<OwnedFd>,
}

/// Opens the fifo at `path` for input.
///
/// # Errors
/// What open(2) returned.
pub(crate) fn open_input(path: &Path) -> Result<Input, OpenError> {
    let failed = |source| OpenError { name: "stdin", path: path.to_owned(), source };
    let is_fifo = fs::metadata(path).map_err(failed)?.file_type().is_fifo();
    let reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
    if !is_fifo {
        let source = io::Error::new(io::ErrorKind::InvalidInput, "it is not a fifo");
        return Err(failed(source));
    }
    let keeper = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
    Ok(Input { reader: reader.into(), keeper: Some(keeper.into()) })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    fn fifo(directory: &tempfile::TempDir) -> PathBuf {
        let path = directory.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        path
    }

    #[test]
    fn a_fifo_without_reader_opens_at_once_and_keeps_what_is_written_until_one_comes() {
        let directory = tempfile::tempdir().unwrap();
        let path = fifo(&directory);
        let Target::Pipe(pipe) = open_output("stdout", &path).unwrap() else { panic!("not a pipe") };
        File::from(pipe.try_clone().unwrap()).write_all(b"early").unwrap();

        let mut late = File::open(&path).unwrap();
        drop(pipe);
        let mut text = String::new();
        late.read_to_string(&mut text).unwrap();
        assert_eq!(text, "early");
    }

    #[test]
    fn a_reader_that_goes_away_does_not_break_the_pipe() {
        let directory = tempfile::tempdir().unwrap();
        let path = fifo(&directory);
        let Target::Pipe(pipe) = open_output("stdout", &path).unwrap() else { panic!("not a pipe") };
        drop(File::open(&path).unwrap());
        File::from(pipe).write_all(b"still here").unwrap();
    }

    #[test]
    fn input_ends_when_the_keeper_and_every_client_are_gone() {
        let directory = tempfile::tempdir().unwrap();
        let path = fifo(&directory);
        let mut input = open_input(&path).unwrap();
        let mut client = OpenOptions::new().write(true).open(&path).unwrap();
        client.write_all(b"x").unwrap();
        drop(client);

        let mut reader = File::from(input.reader.try_clone().unwrap());
        let mut byte = [0];
        assert_eq!(reader.read(&mut byte).unwrap(), 1);
        assert_eq!(reader.read(&mut byte).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        input.keeper = None;
        // A program that another test is starting holds a copy of the keeper until it executes.
        let hung_up = &mut [PollFd::new(reader.as_fd(), PollFlags::empty())];
        assert_eq!(poll(hung_up, PollTimeout::NONE).unwrap(), 1);
        assert_eq!(reader.read(&mut byte).unwrap(), 0);
    }

    #[test]
    fn a_log_file_is_made_with_its_directories_and_appended_to() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b/log");
        open_log("stdout", &path).unwrap().write_all(b"1").unwrap();
        open_log("stdout", &path).unwrap().write_all(b"2").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"12");
    }

    #[test]
    fn a_missing_path_is_named() {
        let message = open_output("stderr", Path::new("/nonexistent/fifo")).unwrap_err().to_string();
        assert!(message.contains("stderr") && message.contains("/nonexistent/fifo"), "{message}");
    }
}
