//! Names that come from outside and become path components.

/// The longest identifier that containerd accepts.
const LENGTH_MAX: usize = 76;

/// A name that containerd would not have accepted.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{kind} {name:?} is not valid: 1 to {LENGTH_MAX} letters and digits, with single '.', '_' or '-' between them"
)]
pub(crate) struct InvalidIdentifier {
    kind: &'static str,
    name: String,
}

/// Checks that `name` follows containerd's rule for identifiers, and so is one harmless path component.
///
/// # Errors
/// Anything else; the message names `kind` and the name (cut to 100 characters).
pub(crate) fn validate(kind: &'static str, name: &str) -> Result<(), InvalidIdentifier> {
    let groups_are_filled = name
        .split(['.', '_', '-'])
        .all(|group| !group.is_empty() && group.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    if name.len() <= LENGTH_MAX && groups_are_filled {
        return Ok(());
    }
    Err(InvalidIdentifier { kind, name: name.chars().take(100).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_names_pass() {
        for name in ["t1", "k8s.io", "a-b_c.d", &"f".repeat(76)] {
            assert_eq!(validate("container id", name), Ok(()), "{name}");
        }
    }

    #[test]
    fn names_that_could_leave_a_directory_or_overflow_it_are_refused() {
        for name in ["", ".", "..", "a/b", "../x", "a..b", "-a", "a-", "ä", "a b", &"f".repeat(77)] {
            assert!(validate("container id", name).is_err(), "{name}");
        }
    }
}
