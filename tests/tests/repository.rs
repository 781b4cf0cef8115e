//! Promises that the repository keeps about itself.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::fs;
use std::path::{Path, PathBuf};

/// The most lines that a source file may have before one asks which second subject has moved in.
const LINES: usize = 700;

/// How many blocks and implementations are `unsafe` in each folder, tests included.
const UNSAFE: [(&str, usize); 6] =
    [("agent", 51), ("guest-kernel", 0), ("shim", 31), ("tests", 13), ("vmm", 83), ("xtask", 0)];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn sources() -> Vec<PathBuf> {
    let folders = ["agent", "guest-kernel", "shim", "tests", "vmm", "xtask"];
    let mut found = Vec::new();
    for folder in folders {
        collect(&root().join(folder), &mut found);
    }
    assert!(found.len() > 50, "only {} source files were found", found.len());
    found
}

fn collect(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn the_lock_file_holds_one_version_of_each_crate_that_touches_guest_memory() {
    let lock = fs::read_to_string(root().join("Cargo.lock")).unwrap();
    for name in ["vm-memory", "virtio-queue", "virtio-bindings", "kvm-bindings", "kvm-ioctls", "vmm-sys-util"]
    {
        let count = lock.lines().filter(|line| *line == format!("name = \"{name}\"")).count();
        assert_eq!(count, 1, "Cargo.lock holds {count} versions of {name}");
    }
}

/// Whether code on this line is `unsafe`: a block or an implementation.
fn is_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap();
    (code.contains("unsafe {") || code.contains("unsafe impl")) && !code.contains('"')
}

#[test]
fn every_unsafe_block_says_why_it_is_sound() {
    let mut bare = Vec::new();
    for path in sources() {
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        for (index, _) in lines.iter().enumerate().filter(|(_, line)| is_unsafe(line)) {
            if !lines[index.saturating_sub(8)..index].iter().any(|before| before.contains("SAFETY:")) {
                bare.push(format!("{}:{}", path.display(), index + 1));
            }
        }
    }
    assert!(bare.is_empty(), "unsafe without a SAFETY line:\n{}", bare.join("\n"));
}

#[test]
fn unsafe_code_does_not_grow_unseen() {
    for (folder, known) in UNSAFE {
        let mut files = Vec::new();
        collect(&root().join(folder), &mut files);
        let count: usize = files
            .iter()
            .map(|path| fs::read_to_string(path).unwrap().lines().filter(|line| is_unsafe(line)).count())
            .sum();
        assert_eq!(
            count, known,
            "{folder}/ has {count} unsafe places: look at them, then mend the number here"
        );
    }
}

#[test]
fn every_source_file_is_short_enough_for_one_subject() {
    let mut long = Vec::new();
    for path in sources() {
        let count = fs::read_to_string(&path).unwrap().lines().count();
        if count > LINES {
            long.push(format!("{}: {count} lines", path.display()));
        }
    }
    assert!(long.is_empty(), "longer than {LINES} lines:\n{}", long.join("\n"));
}

#[test]
fn nothing_is_left_for_later_in_the_sources() {
    // Spelled apart, so that this file does not find itself.
    let marks = [["to", "do!("].concat(), ["unimple", "mented!("].concat(), ["FIX", "ME"].concat()];
    let mut found = Vec::new();
    for path in sources() {
        let text = fs::read_to_string(&path).unwrap();
        found.extend(
            marks
                .iter()
                .filter(|mark| text.contains(*mark))
                .map(|mark| format!("{}: {mark}", path.display())),
        );
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn every_document_that_the_readme_links_to_exists() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let targets = readme.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let files: Vec<&str> = targets.filter(|target| !target.starts_with("http")).collect();
    assert!(!files.is_empty(), "the README links to no document");
    let missing: Vec<&&str> = files.iter().filter(|file| !root().join(file).exists()).collect();
    assert!(missing.is_empty(), "the README links to files that do not exist: {missing:?}");
}
