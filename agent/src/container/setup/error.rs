//! What the set-up of a process fails with. It travels as text from the child to the agent, and from there to the
//! caller, so each message stands for itself.

use std::fmt::Display;
use std::io;

/// Why a process could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct SetupError(String);

impl SetupError {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

/// The result of a step.
pub(super) type Result<T> = std::result::Result<T, SetupError>;

/// Says what was tried when the kernel refuses.
pub(super) trait Context<T> {
    /// Names what was done; a message reads "<what>: <the kernel's reason>".
    fn context<D: Display>(self, what: impl FnOnce() -> D) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context<D: Display>(self, what: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|error| SetupError(format!("{}: {}", what(), reason(&error.into()))))
    }
}

/// The kernel's reason in the words and letter case that users of other runtimes look for, as
/// "no such file or directory".
pub(super) fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut characters = text.chars();
    match characters.next() {
        Some(first) => first.to_lowercase().chain(characters).collect(),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_reads_as_other_runtimes_write_it() {
        assert_eq!(reason(&io::Error::from_raw_os_error(libc::ENOENT)), "no such file or directory");
        assert_eq!(reason(&io::Error::from_raw_os_error(libc::EACCES)), "permission denied");
        assert_eq!(reason(&io::Error::from_raw_os_error(libc::ENOEXEC)), "exec format error");
    }
}
