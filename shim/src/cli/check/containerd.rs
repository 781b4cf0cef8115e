//! containerd: its version, and whether its CRI plugin knows Saya.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Command;

use toml::{Table, Value};

use super::daemon;
use super::finding::Finding;

/// Saya's name among containerd's runtimes.
const RUNTIME: &str = "io.containerd.kata.v2";
/// The oldest version that these shims' API is tested with.
const OLDEST: (u32, u32) = (1, 6);
/// Names under which the CRI plugin can be switched off.
const CRI_PLUGINS: [&str; 3] = ["cri", "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"];

pub(super) fn all() -> Vec<Finding> {
    let version = output_of(&["--version"]);
    let known = version.is_some();
    let mut findings = vec![judge_version(version.as_deref())];
    if known {
        let configuration = output_of(&["config", "dump"]).and_then(|text| text.parse().ok());
        findings.push(judge_handlers(configuration.as_ref()));
        findings.push(daemon::containerd());
        findings.push(judge_cni(&configuration.unwrap_or_default()));
    }
    findings
}

fn output_of(arguments: &[&str]) -> Option<String> {
    let output = Command::new("containerd").args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `text`: what `containerd --version` prints, if it is there.
fn judge_version(text: Option<&str>) -> Finding {
    const SUBJECT: &str = "containerd";
    let remedy = "install containerd 1.6 or later";
    let Some(text) = text else {
        return Finding::missing(SUBJECT, "`containerd --version` does not run", remedy);
    };
    match version(text) {
        None => Finding::doubtful(SUBJECT, format!("of an unknown version: {}", text.trim()), remedy),
        Some(found) if found < OLDEST => {
            Finding::missing(SUBJECT, format!("{}.{}", found.0, found.1), remedy)
        }
        Some(found) => Finding::good(SUBJECT, format!("{}.{}", found.0, found.1)),
    }
}

/// The third word of `containerd github.com/containerd/containerd v2.1.9 …`; distributions leave the v away.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split_whitespace().nth(2)?.trim_start_matches('v').split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn judge_handlers(configuration: Option<&Table>) -> Finding {
    const SUBJECT: &str = "CRI handler";
    let Some(configuration) = configuration else {
        return Finding::doubtful(
            SUBJECT,
            "`containerd config dump` gives no configuration",
            "look at what it says; ctr needs none of it",
        );
    };
    if let Some(name) = disabled_cri(configuration) {
        return Finding::doubtful(
            SUBJECT,
            format!("disabled_plugins has {name}: Kubernetes cannot use this containerd"),
            "remove it from disabled_plugins; ctr needs none of it",
        );
    }
    let handlers = handlers(configuration);
    if handlers.is_empty() {
        return Finding::doubtful(
            SUBJECT,
            format!("no runtime of the CRI plugin has runtime_type {RUNTIME}"),
            "run deploy/install.sh --containerd for Kubernetes; ctr needs none of it",
        );
    }
    Finding::good(SUBJECT, handlers.join(", "))
}

fn disabled_cri(configuration: &Table) -> Option<&str> {
    let disabled = configuration.get("disabled_plugins")?.as_array()?;
    disabled.iter().filter_map(Value::as_str).find(|name| CRI_PLUGINS.contains(name))
}

/// The names of the runtimes that are Saya, wherever this version's configuration has them.
fn handlers(table: &Table) -> Vec<&str> {
    let mut found = Vec::new();
    for (key, value) in table {
        let Some(below) = value.as_table() else { continue };
        if below.get("runtime_type").and_then(Value::as_str) == Some(RUNTIME) {
            found.push(key.as_str());
        }
        found.extend(handlers(below));
    }
    found
}

fn judge_cni(configuration: &Table) -> Finding {
    const SUBJECT: &str = "CNI";
    let cni = find_table(configuration, "cni");
    let networks = cni.and_then(|cni| cni.get("conf_dir")?.as_str()).unwrap_or("/etc/cni/net.d");
    let places = plugin_directories(cni);
    let Some(plugins) = places.iter().find(|place| Path::new(place).join("loopback").exists()) else {
        return Finding::doubtful(
            SUBJECT,
            format!("no plugins in {}", places.join(", ")),
            "install the CNI plugins there (Kubernetes pods need them)",
        );
    };
    if !has_network(Path::new(networks)) {
        return Finding::doubtful(
            SUBJECT,
            format!("no network is configured in {networks}"),
            "put a .conflist there, or let the cluster's network add-on do it",
        );
    }
    Finding::good(SUBJECT, format!("plugins in {plugins}, networks in {networks}"))
}

/// `bin_dir`, or from containerd 2.1 on the list `bin_dirs` where that is empty.
fn plugin_directories(cni: Option<&Table>) -> Vec<&str> {
    let one = cni.and_then(|cni| cni.get("bin_dir")?.as_str()).filter(|place| !place.is_empty());
    let several = || cni.and_then(|cni| cni.get("bin_dirs")?.as_array());
    match (one, several()) {
        (Some(one), _) => vec![one],
        (None, Some(several)) => several.iter().filter_map(Value::as_str).collect(),
        (None, None) => vec!["/opt/cni/bin"],
    }
}

fn find_table<'a>(table: &'a Table, name: &str) -> Option<&'a Table> {
    table
        .iter()
        .filter_map(|(key, value)| Some((key, value.as_table()?)))
        .find_map(|(key, below)| if key == name { Some(below) } else { find_table(below, name) })
}

/// Whether the directory has a file that containerd's CNI library reads.
fn has_network(directory: &Path) -> bool {
    let Ok(entries) = fs::read_dir(directory) else { return false };
    entries.flatten().any(|entry| {
        let path = entry.path();
        ["conflist", "conf", "json"].map(OsStr::new).map(Some).contains(&path.extension())
    })
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    const VERSION_2: &str = "
version = 2
[plugins.\"io.containerd.grpc.v1.cri\".cni]
bin_dir = \"/nonexistent\"
[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.kata]
runtime_type = \"io.containerd.kata.v2\"
[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]
runtime_type = \"io.containerd.runc.v2\"
";
    const VERSION_3: &str = "
version = 3
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.saya]
runtime_type = 'io.containerd.kata.v2'
";

    fn parse(text: &str) -> Table {
        text.parse().unwrap()
    }

    #[test]
    fn versions_are_read_as_containerd_and_distributions_print_them() {
        let upstream = "containerd github.com/containerd/containerd/v2 v2.1.9 abcdef\n";
        let debian = "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+b1\n";
        assert_eq!(version(upstream), Some((2, 1)));
        assert_eq!(version(debian), Some((1, 6)));
        assert_eq!(judge_version(Some("containerd x v1.5.2")).verdict, Verdict::Missing);
        assert_eq!(judge_version(Some("what?")).verdict, Verdict::Doubtful);
        assert_eq!(judge_version(None).verdict, Verdict::Missing);
    }

    #[test]
    fn handlers_are_found_in_both_forms_of_the_configuration() {
        assert_eq!(handlers(&parse(VERSION_2)), ["kata"]);
        assert_eq!(handlers(&parse(VERSION_3)), ["saya"]);
        assert_eq!(judge_handlers(Some(&parse(VERSION_3))), Finding::good("CRI handler", "saya"));
        assert_eq!(judge_handlers(Some(&parse("version = 2"))).verdict, Verdict::Doubtful);
    }

    #[test]
    fn a_cri_plugin_that_is_switched_off_is_told() {
        let finding = judge_handlers(Some(&parse("disabled_plugins = [\"cri\"]")));
        assert!(finding.verdict == Verdict::Doubtful && finding.found.contains("cri"), "{finding}");
    }

    #[test]
    fn plugins_may_be_in_one_of_several_directories() {
        let directory = tempfile::tempdir().unwrap();
        for file in ["loopback", "10-net.conflist"] {
            fs::write(directory.path().join(file), "").unwrap();
        }
        let place = directory.path().display();
        let text =
            format!("[a.cni]\nbin_dir = ''\nbin_dirs = ['/nonexistent', '{place}']\nconf_dir = '{place}'");
        let finding = judge_cni(&parse(&text));
        assert!(finding.verdict == Verdict::Good && finding.found.contains(&place.to_string()), "{finding}");
    }

    #[test]
    fn plugins_are_looked_for_where_the_configuration_says() {
        let finding = judge_cni(&parse(VERSION_2));
        assert!(finding.verdict == Verdict::Doubtful && finding.found.contains("/nonexistent"), "{finding}");
    }
}
