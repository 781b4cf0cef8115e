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

/// What cargo knows of the lock file.
fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--offline", "--locked"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Every package of the lock file that is not ours.
fn packages() -> Vec<Value> {
    let metadata = metadata();
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

/// A rule of deny.toml about a crate.
struct Ban {
    name: String,
    /// `1.2` for all that are compatible, `<1.2.3` for all before; all versions where it is empty.
    versions: String,
    /// Who may depend on it nevertheless; nobody where there is none.
    wrappers: Vec<String>,
}

fn bans() -> Vec<Ban> {
    let rules = rules();
    let bans: Vec<Ban> = rules["bans"]["deny"]
        .as_array()
        .unwrap()
        .iter()
        .map(|rule| {
            let (name, versions) =
                rule["crate"].as_str().map(|text| text.split_once(':').unwrap_or((text, ""))).unwrap();
            assert!(
                rule["reason"].as_str().is_some_and(|reason| !reason.is_empty()),
                "{name} without a reason"
            );
            let wrappers = rule.get("wrappers").and_then(toml::Value::as_array);
            let wrappers = wrappers.into_iter().flatten().filter_map(toml::Value::as_str);
            Ban {
                name: name.to_owned(),
                versions: versions.to_owned(),
                wrappers: wrappers.map(str::to_owned).collect(),
            }
        })
        .collect();
    assert!(bans.len() > 5);
    bans
}

impl Ban {
    fn concerns(&self, package: &Value) -> bool {
        let version = package["version"].as_str().unwrap();
        name(package) == self.name
            && match self.versions.strip_prefix('<') {
                Some(limit) => numbers(version) < numbers(limit),
                None => numbers(version).starts_with(&numbers(&self.versions)),
            }
    }
}

/// The numbers of a version; none of the empty one.
fn numbers(version: &str) -> Vec<u64> {
    let release = version.split(['-', '+']).next().unwrap();
    release.split('.').filter(|number| !number.is_empty()).map(|number| number.parse().unwrap()).collect()
}

#[test]
fn versions_are_compared_by_their_numbers() {
    let ban = |versions: &str| Ban { name: "x".into(), versions: versions.into(), wrappers: Vec::new() };
    let package = |version: &str| serde_json::json!({"name": "x", "version": version});
    assert!(ban("").concerns(&package("1.2.3")));
    assert!(ban("0.26").concerns(&package("0.26.4")) && !ban("0.26").concerns(&package("0.31.3")));
    assert!(ban("1").concerns(&package("1.0.0")) && !ban("1").concerns(&package("10.0.0")));
    assert!(ban("<3.7.2").concerns(&package("3.7.1")) && !ban("<3.7.2").concerns(&package("3.10.0+x")));
}

#[test]
fn nothing_comes_from_outside_the_registry_and_nothing_that_is_banned_comes_at_all() {
    let banned: Vec<Ban> = bans().into_iter().filter(|ban| ban.wrappers.is_empty()).collect();
    assert!(!banned.is_empty());
    for package in packages() {
        let source = package["source"].as_str().unwrap();
        assert!(source.starts_with("registry+"), "{} comes from {source}", name(&package));
        let banned = banned.iter().any(|ban| ban.concerns(&package));
        assert!(!banned, "{} {} is banned by deny.toml", name(&package), package["version"]);
    }
}

#[test]
fn crates_that_nobody_keeps_come_by_those_alone_that_deny_toml_names_and_none_is_named_in_vain() {
    let metadata = metadata();
    let packages = metadata["packages"].as_array().unwrap();
    let of_id = |id: &Value| packages.iter().find(|package| package["id"] == *id).unwrap();
    let nodes = metadata["resolve"]["nodes"].as_array().unwrap();
    for ban in bans().into_iter().filter(|ban| !ban.wrappers.is_empty()) {
        let bringers: Vec<&str> = nodes
            .iter()
            .filter(|node| node["dependencies"].as_array().unwrap().iter().any(|id| ban.concerns(of_id(id))))
            .map(|node| name(of_id(&node["id"])))
            .collect();
        for bringer in &bringers {
            assert!(ban.wrappers.iter().any(|name| name == bringer), "{bringer} brings {}", ban.name);
        }
        for wrapper in &ban.wrappers {
            assert!(bringers.contains(&wrapper.as_str()), "{wrapper} does not bring {} any more", ban.name);
        }
    }
}

/// What a manifest's badge says of a crate that nobody keeps
/// (<https://doc.rust-lang.org/cargo/reference/manifest.html#the-badges-section>).
const GIVEN_UP: [&str; 3] = ["deprecated", "looking-for-maintainer", "as-is"];

#[test]
fn a_crate_that_says_of_itself_that_nobody_keeps_it_is_named_in_deny_toml() {
    let bans = bans();
    for package in packages() {
        let manifest = fs::read_to_string(package["manifest_path"].as_str().unwrap()).unwrap();
        let manifest: toml::Table = manifest.parse().unwrap();
        let badge = manifest.get("badges").and_then(|badges| badges.get("maintenance"));
        let status = badge.and_then(|badge| badge.get("status")).and_then(toml::Value::as_str);
        let given_up = status.is_some_and(|status| GIVEN_UP.contains(&status));
        let named = bans.iter().any(|ban| ban.concerns(&package));
        assert!(!given_up || named, "{} is {status:?}", name(&package));
    }
}

#[test]
fn advisories_are_checked_and_exceptions_have_their_reasons() {
    let rules = rules();
    let advisories = &rules["advisories"];
    assert_eq!(advisories["yanked"].as_str(), Some("deny"));
    assert_eq!(advisories["unmaintained"].as_str(), Some("all"));
    for exception in advisories["ignore"].as_array().unwrap() {
        let reason = exception.get("reason").and_then(toml::Value::as_str);
        assert!(reason.is_some_and(|reason| !reason.is_empty()), "{exception} is ignored without a reason");
    }
}
