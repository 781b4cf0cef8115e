//! `saya check`: whether this host can run Saya, line by line, with a remedy beside whatever is missing.

mod containerd;
mod daemon;
mod features;
mod finding;
mod installation;
mod machine;

use std::process::ExitCode;

use crate::config::Config;

use self::finding::{Finding, Verdict};

/// Looks at everything, prints what it found, and fails if something is missing that no pod can do without.
pub(super) fn run() -> ExitCode {
    let findings = examine();
    for finding in &findings {
        println!("{finding}");
    }
    let (text, status) = conclusion(&findings);
    println!("\n{text}");
    status
}

fn examine() -> Vec<Finding> {
    let loaded = Config::load();
    let config = loaded.as_ref().cloned().unwrap_or_default();
    let mut findings = vec![
        machine::root(),
        machine::kvm(),
        machine::kernel(),
        machine::memory(&config),
        machine::large_pages(),
        machine::cgroups(),
        machine::overlay(),
        machine::network(),
        features::socket_lookup(),
        features::seccomp(),
        features::landlock(),
        features::security_modules(),
        installation::configuration(loaded),
        installation::kernel(&config),
        installation::initramfs(&config),
        installation::shim(),
    ];
    findings.extend(containerd::all());
    findings
}

fn conclusion(findings: &[Finding]) -> (String, ExitCode) {
    let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    match (count(Verdict::Missing), count(Verdict::Doubtful)) {
        (0, 0) => ("This host can run Saya.".into(), ExitCode::SUCCESS),
        (0, doubts) => (
            format!(
                "This host can run Saya; {doubts} of {} checks found something to look at.",
                findings.len()
            ),
            ExitCode::SUCCESS,
        ),
        (missing, _) => (
            format!("This host cannot run Saya: {missing} of {} checks failed.", findings.len()),
            ExitCode::FAILURE,
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_missing_thing_is_enough_to_fail_and_doubts_are_not() {
        let good = Finding::good("KVM", "there");
        let doubtful = Finding::doubtful("CNI", "no plugin", "install some");
        let missing = Finding::missing("guest kernel", "not there", "build it");
        let verdict = |findings: &[Finding]| conclusion(findings).0;
        assert_eq!(verdict(std::slice::from_ref(&good)), "This host can run Saya.");
        assert!(verdict(&[good.clone(), doubtful.clone()]).starts_with("This host can run Saya; 1 of 2"));
        assert!(verdict(&[good, doubtful, missing]).starts_with("This host cannot run Saya: 1 of 3"));
    }

    #[test]
    fn every_check_says_something_and_whatever_is_not_good_has_a_remedy() {
        for finding in examine() {
            assert!(!finding.found.is_empty(), "{finding}");
            assert!(finding.verdict == Verdict::Good || finding.remedy.is_some(), "{finding}");
        }
    }
}
