//! Packages of the host's Debian release, downloaded and unpacked without being installed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Runs a command and gives what it wrote to its standard output.
///
/// # Errors
///
/// The command cannot be run or fails; the message has what it wrote to its standard error.
pub fn output_of(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("running {name}: is it installed?"))?;
    if !output.status.success() {
        bail!("{name}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The name and version of the release, such as `debian-12`, which is an input of all that is made of its packages.
#[must_use]
pub fn release() -> String {
    format!("{}-{}", os_release("ID="), os_release("VERSION_ID="))
}

/// The value of `key`, its equals sign included, in os-release(5).
fn os_release(key: &str) -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or("unknown").trim_matches('"').to_owned()
}

/// Asks the mirror what it has today: a list that is older may name files that are gone.
///
/// # Errors
///
/// The mirror cannot be reached, or this process is not root's.
pub fn update_lists() -> Result<()> {
    output_of(Command::new("apt-get").args(["-q", "update"])).map(drop)
}

/// The packages on which `packages` depend directly. Of alternatives the first is named.
///
/// # Errors
///
/// `apt-cache` does not know one of the packages.
pub fn dependencies(packages: &[String]) -> Result<Vec<String>> {
    let text = output_of(Command::new("apt-cache").args(["depends", "--important"]).args(packages))?;
    Ok(first_alternatives(&text))
}

/// Reads the answer of `apt-cache depends`: `|Depends: a` followed by `Depends: b` means a or b.
fn first_alternatives(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut within_alternatives = false;
    for line in text.lines().map(str::trim) {
        let (more_follow, line) = line.strip_prefix('|').map_or((false, line), |rest| (true, rest));
        let name = line.strip_prefix("Depends: ").or_else(|| line.strip_prefix("PreDepends: "));
        if let Some(name) = name {
            if !within_alternatives && !name.starts_with('<') {
                names.push(name.to_owned());
            }
            within_alternatives = more_follow;
        }
    }
    names
}

/// `packages` and all they depend on, as far as `wanted` says yes to a name.
///
/// # Errors
///
/// `apt-cache` does not know one of the packages.
pub fn closure(packages: &[&str], wanted: impl Fn(&str) -> bool) -> Result<BTreeSet<String>> {
    let mut all: BTreeSet<String> = packages.iter().map(|name| (*name).to_owned()).collect();
    let mut fresh: Vec<String> = all.iter().cloned().collect();
    while !fresh.is_empty() {
        fresh = dependencies(&fresh)?
            .into_iter()
            .filter(|name| wanted(name))
            .filter(|name| all.insert(name.clone()))
            .collect();
    }
    Ok(all)
}

/// Downloads `packages` into `directory` and gives the paths of the archives.
///
/// # Errors
///
/// apt does not know a package, or cannot fetch it.
pub fn download(packages: &[String], directory: &Path) -> Result<Vec<PathBuf>> {
    output_of(Command::new("apt-get").args(["-q", "download"]).args(packages).current_dir(directory))
        .with_context(|| format!("downloading {}", packages.join(" ")))?;
    archives_in(directory)
}

fn archives_in(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut archives = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            archives.push(path);
        }
    }
    archives.sort();
    Ok(archives)
}

/// A suite of Debian's archive that is not the machine's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    /// Newer packages, built for the machine's release.
    Backports,
    /// The newest packages that there are.
    Unstable,
}

impl Suite {
    /// Its name, such as `bookworm-backports`.
    fn name(self) -> String {
        match self {
            Self::Backports => format!("{}-backports", os_release("VERSION_CODENAME=")),
            Self::Unstable => "sid".to_owned(),
        }
    }
}

/// Downloads `packages` of another suite into `directory`, from the mirror that the machine uses, and gives the paths of
/// the archives. The machine's own package lists stay as they are.
///
/// # Errors
///
/// The mirror has no such suite, or the packages cannot be fetched.
pub fn download_from(suite: Suite, packages: &[&str], directory: &Path) -> Result<Vec<PathBuf>> {
    let state = directory.join("apt");
    for below in ["parts", "lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(state.join(below))?;
    }
    fs::write(state.join("parts/suite.list"), source_of(suite)?)?;
    let apt = || {
        let mut apt = Command::new("apt-get");
        apt.args(["-q", "-o", "Dir::Etc::sourcelist=/dev/null"]).current_dir(directory);
        for (option, below) in [("Etc::sourceparts", "parts"), ("State::lists", "lists"), ("Cache", "cache")]
        {
            apt.arg("-o").arg(format!("Dir::{option}={}", state.join(below).display()));
        }
        apt
    };
    output_of(apt().arg("update"))?;
    let names: Vec<String> = packages.iter().map(|name| format!("{name}/{}", suite.name())).collect();
    output_of(apt().arg("download").args(names))?;
    fs::remove_dir_all(&state)?;
    archives_in(directory)
}

/// A line of sources.list for the suite, from the mirror that has the release itself.
fn source_of(suite: Suite) -> Result<String> {
    let format = "$(REPO_URI) $(RELEASE)";
    let targets = output_of(Command::new("apt-get").args([
        "indextargets",
        "--format",
        format,
        "Created-By: Packages",
    ]))?;
    let release = os_release("VERSION_CODENAME=");
    let mirror = targets.lines().find_map(|line| line.strip_suffix(&format!(" {release}")));
    let mirror = mirror.with_context(|| format!("apt has no source for the release {release:?}"))?;
    let key = "/usr/share/keyrings/debian-archive-keyring.gpg";
    Ok(format!("deb [signed-by={key}] {mirror} {} main\n", suite.name()))
}

/// Unpacks a package's archive below `root`.
///
/// # Errors
///
/// The archive is damaged or `root` cannot be written.
pub fn unpack(archive: &Path, root: &Path) -> Result<()> {
    output_of(Command::new("dpkg-deb").arg("--extract").arg(archive).arg(root)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_alternatives_the_first_is_taken() {
        let text = "redis-tools\n  Depends: libc6\n |Depends: libsystemd0\n  Depends: libelogind0\n  Depends: <virtual>\n  Suggests: ruby\n";
        assert_eq!(first_alternatives(text), ["libc6", "libsystemd0"]);
    }
}
