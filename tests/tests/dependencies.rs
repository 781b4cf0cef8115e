//! Promises about what the lock file drags in: the part of `deny.toml` that needs no network.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn rules() -> toml::Table {
    fs::read_to_string(root().join("deny.toml")).unwrap().parse().unwrap()
}

/// Every package of the lock file that is not ours.
fn packages() -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--offline", "--locked"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let foreign: Vec<Value> =
        packages.iter().filter(|package| !package["source"].is_null()).cloned().collect();
    assert!(foreign.len() > 50, "only {} packages were found", foreign.len());
    foreign
}

fn name(package: &Value) -> &str {
    package["name"].as_str().unwrap()
}

/// Whether an SPDX expression without nested parentheses can be satisfied: each part of AND has an alternative of OR that
/// is allowed. Old manifests write `/` for OR.
fn is_satisfied(expression: &str, allowed: &[&str]) -> bool {
    let is_allowed = |licence: &str| allowed.contains(&licence.trim_matches(['(', ')', ' ']));
    let expression = expression.replace('/', " OR ");
    expression.split(" AND ").all(|part| part.split(" OR ").map(str::trim).any(is_allowed))
}

#[test]
fn every_licence_is_one_that_deny_toml_allows() {
    let rules = rules();
    let allowed: Vec<&str> = rules["licenses"]["allow"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|licence| licence.as_str())
        .collect();
    let packages = packages();
    let refused: Vec<String> = packages
        .iter()
        .map(|package| (name(package), package["license"].as_str().unwrap_or("none named")))
        .filter(|(_, licence)| !is_satisfied(licence, &allowed))
        .map(|(name, licence)| format!("{name}: {licence}"))
        .collect();
    assert!(refused.is_empty(), "{}", refused.join("\n"));
}

#[test]
fn expressions_of_licences_are_read_as_spdx_means_them() {
    let allowed = ["MIT", "BSD-3-Clause", "Apache-2.0 WITH LLVM-exception"];
    assert!(is_satisfied("GPL-2.0 OR MIT", &allowed));
    assert!(is_satisfied("(MIT OR GPL-2.0) AND BSD-3-Clause", &allowed));
    assert!(is_satisfied("GPL-2.0/MIT", &allowed));
    assert!(is_satisfied("Apache-2.0 WITH LLVM-exception OR GPL-2.0", &allowed));
    assert!(!is_satisfied("MIT AND GPL-2.0", &allowed));
    assert!(!is_satisfied("Apache-2.0", &allowed));
}

#[test]
fn nothing_comes_from_outside_the_registry_and_nothing_that_is_banned_comes_at_all() {
    let rules = rules();
    let banned: Vec<&str> =
        rules["bans"]["deny"].as_array().unwrap().iter().filter_map(|rule| rule["crate"].as_str()).collect();
    assert!(!banned.is_empty());
    for package in packages() {
        let source = package["source"].as_str().unwrap();
        assert!(source.starts_with("registry+"), "{} comes from {source}", name(&package));
        assert!(!banned.contains(&name(&package)), "{} is banned by deny.toml", name(&package));
    }
}
