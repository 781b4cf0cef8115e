//! The threat model names tests; they are there.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The names of tests in the threat model: what stands between backticks in the last column of a table that ends in
/// *kept by*.
fn named_tests(document: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut in_table = false;
    for line in document.lines() {
        in_table = line.starts_with('|') && (in_table || line.ends_with("| kept by |"));
        let cell = line.trim_end_matches('|').rsplit('|').next().filter(|_| in_table).unwrap_or_default();
        names.extend(cell.split('`').skip(1).step_by(2).map(ToOwned::to_owned));
    }
    names
}

/// All sources of tests below `directory`, in one text.
fn read_below(directory: &Path, text: &mut String) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            read_below(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn every_test_that_the_threat_model_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let names = named_tests(&fs::read_to_string(root.join("docs/threat-model.md")).unwrap());
    assert!(names.len() > 50, "only {} names were found", names.len());
    let mut sources = String::new();
    ["agent", "shim", "tests/src", "vmm"]
        .iter()
        .for_each(|folder| read_below(&root.join(folder), &mut sources));
    let is_there = |name: &str| {
        sources.contains(&format!("fn {name}(")) || sources.contains(&format!("name: \"{name}\""))
    };
    let missing: Vec<_> = names.iter().filter(|name| !is_there(name)).collect();
    assert!(missing.is_empty(), "docs/threat-model.md names tests that do not exist: {missing:?}");
}
