//! The cache key: a hash of everything that the kernel's bytes depend on.

use std::process::Command;

use sha2::{Digest, Sha256};

use super::{Error, SOURCE_PACKAGE, fragments, patches};

/// Raised whenever the steps in `compile.rs` change what they make from the same inputs.
const RECIPE: &str = "1";

/// How many hexadecimal digits of the hash make the key: 80 bits, ample for a cache of our own results.
const KEY_DIGITS: usize = 20;

/// The key for the sources, compiler and linker that are installed here.
pub(super) fn of_this_host() -> Result<String, Error> {
    let source = answer("dpkg-query", &["--show", "--showformat=${Version}", SOURCE_PACKAGE])?;
    let compiler = answer("gcc", &["--version"])?;
    let linker = answer("ld", &["--version"])?;
    let files: Vec<_> = fragments::ALL.iter().chain(patches::ALL).copied().collect();
    Ok(of([RECIPE, &source, first_line(&compiler), first_line(&linker)], &files))
}

fn of(tools: [&str; 4], files: &[(&str, &str)]) -> String {
    let mut hash = Sha256::new();
    let parts = files.iter().flat_map(|(name, text)| [*name, *text]);
    for part in tools.into_iter().chain(parts) {
        // The length keeps two different splits of the same characters apart.
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let mut key: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    key.truncate(KEY_DIGITS);
    key
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

fn answer(program: &'static str, arguments: &[&str]) -> Result<String, Error> {
    let output = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .output()
        .map_err(|error| Error::NoProgram { program, error })?;
    if !output.status.success() {
        return Err(Error::Query {
            command: format!("{program} {}", arguments.join(" ")),
            status: output.status,
            output: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        });
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_input_changes_the_key() {
        let tools = ["1", "6.12.1", "gcc 12", "ld 2.40"];
        let fragments = [("boot", "A=y"), ("net", "B=y")];
        let key = of(tools, &fragments);
        assert_eq!(key, of(tools, &fragments));
        assert_eq!(key.len(), KEY_DIGITS);
        for changed in 0..tools.len() {
            let mut other = tools;
            other[changed] = "other";
            assert_ne!(key, of(other, &fragments), "tool {changed}");
        }
        assert_ne!(key, of(tools, &[("boot", "A=y"), ("net", "B=n")]));
        assert_ne!(key, of(tools, &[("boot", "A=y"), ("nets", "B=y")]));
        assert_ne!(key, of(tools, &[("boot", "A=yn"), ("et", "B=y")]));
    }

    #[test]
    fn a_failing_query_is_reported_with_its_own_words() {
        let message = answer("ls", &["/no/such/file"]).unwrap_err().to_string();
        assert!(message.contains("ls /no/such/file") && message.contains("No such file"), "{message}");
    }

    #[test]
    fn a_missing_program_names_the_packages() {
        let message = answer("no-such-program", &[]).unwrap_err().to_string();
        assert!(message.contains("no-such-program") && message.contains("linux-source-6.12"), "{message}");
    }
}
