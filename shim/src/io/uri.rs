//! Where containerd wants a process's output: a fifo's path, or a URI.

use std::path::PathBuf;

/// Where output goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Destination {
    /// A fifo, or whatever else is at the path.
    Path(PathBuf),
    /// A file to append to, made if it is not there (`file://`).
    File(PathBuf),
    /// A logger to run (`binary://`): its path and its arguments.
    Logger {
        /// The program.
        program: PathBuf,
        /// Its arguments.
        arguments: Vec<String>,
    },
}

/// A URI that is not understood.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum UriError {
    /// No such scheme.
    #[error("unknown STDIO scheme {scheme} in {uri:?}: it must be fifo, file or binary")]
    Scheme {
        /// The scheme.
        scheme: String,
        /// The whole URI.
        uri: String,
    },
    /// A path that is not absolute.
    #[error("STDIO address {0:?} has no absolute path")]
    Path(String),
    /// A `%` that no two hexadecimal digits follow, or bytes that are not UTF-8.
    #[error("STDIO address {0:?} has a malformed percent-encoding")]
    Encoding(String),
}

impl Destination {
    /// Understands `uri` as the Task service means it; `None` for the empty string, which is no output.
    ///
    /// # Errors
    /// An unknown scheme or a malformed path.
    pub(crate) fn parse(uri: &str) -> Result<Option<Self>, UriError> {
        if uri.is_empty() {
            return Ok(None);
        }
        let Some((scheme, rest)) = uri.split_once("://") else {
            return absolute(uri, uri).map(|path| Some(Self::Path(path)));
        };
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let path = absolute(&decode(path, uri)?, uri)?;
        match scheme {
            "fifo" => Ok(Some(Self::Path(path))),
            "file" => Ok(Some(Self::File(path))),
            "binary" => Ok(Some(Self::Logger { program: path, arguments: arguments(query, uri)? })),
            _ => Err(UriError::Scheme { scheme: scheme.to_owned(), uri: uri.to_owned() }),
        }
    }
}

fn absolute(path: &str, uri: &str) -> Result<PathBuf, UriError> {
    if path.starts_with('/') { Ok(PathBuf::from(path)) } else { Err(UriError::Path(uri.to_owned())) }
}

/// `key=value&flag` as containerd passes them: the key and, where it is not empty, its value, each an argument.
fn arguments(query: &str, uri: &str) -> Result<Vec<String>, UriError> {
    let mut arguments = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        for part in [key, value].into_iter().filter(|part| !part.is_empty()) {
            arguments.push(decode(&part.replace('+', " "), uri)?);
        }
    }
    Ok(arguments)
}

fn decode(text: &str, uri: &str) -> Result<String, UriError> {
    let malformed = || UriError::Encoding(uri.to_owned());
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits =
            after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok()).ok_or_else(malformed)?;
        bytes.push(u8::from_str_radix(digits, 16).map_err(|_| malformed())?);
        rest = after.get(2..).unwrap_or_default();
    }
    String::from_utf8(bytes).map_err(|_| malformed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_the_three_schemes_are_understood() {
        assert_eq!(Destination::parse(""), Ok(None));
        assert_eq!(Destination::parse("/run/f"), Ok(Some(Destination::Path("/run/f".into()))));
        assert_eq!(Destination::parse("fifo:///run/f"), Ok(Some(Destination::Path("/run/f".into()))));
        assert_eq!(Destination::parse("file:///a%20b"), Ok(Some(Destination::File("/a b".into()))));
        assert_eq!(
            Destination::parse("binary:///usr/bin/log?--level=3&-x&name=a+b"),
            Ok(Some(Destination::Logger {
                program: "/usr/bin/log".into(),
                arguments: vec!["--level".into(), "3".into(), "-x".into(), "name".into(), "a b".into()],
            }))
        );
    }

    #[test]
    fn anything_else_is_refused() {
        assert!(matches!(Destination::parse("npipe:///x"), Err(UriError::Scheme { .. })));
        assert!(matches!(Destination::parse("relative"), Err(UriError::Path(_))));
        assert!(matches!(Destination::parse("file:///%zz"), Err(UriError::Encoding(_))));
        assert!(matches!(Destination::parse("file:///%f"), Err(UriError::Encoding(_))));
    }
}
