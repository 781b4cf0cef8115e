//! Features of the host's kernel that keep a virtual machine in, or that parts of Saya stand on.

use std::fs;

use saya_vmm::jail;

use crate::network::{self, NetworkError};

use super::finding::Finding;

/// What a filter may do about a call (Linux, Documentation/userspace-api/seccomp_filter.rst); absent without filters.
const SECCOMP_ACTIONS: &str = "/proc/sys/kernel/seccomp/actions_avail";

pub(super) fn seccomp() -> Finding {
    judge_seccomp(fs::read_to_string(SECCOMP_ACTIONS).ok().as_deref())
}

/// The VMM's filters trap what they forbid.
fn judge_seccomp(actions: Option<&str>) -> Finding {
    const SUBJECT: &str = "seccomp";
    if actions.is_some_and(|actions| actions.split_whitespace().any(|action| action == "trap")) {
        return Finding::good(SUBJECT, "filters for the VMM's system calls");
    }
    Finding::missing(
        SUBJECT,
        format!("{SECCOMP_ACTIONS} has no `trap`: no VMM starts without its filters"),
        "use a kernel with CONFIG_SECCOMP_FILTER",
    )
}

pub(super) fn landlock() -> Finding {
    judge_landlock(jail::left_by_landlock())
}

fn judge_landlock(left: Option<Vec<&str>>) -> Finding {
    const SUBJECT: &str = "Landlock";
    match left {
        None => Finding::improvable(
            SUBJECT,
            "not used: the kernel has none, or one from before Linux 5.19",
            "a second line behind the VMM's namespaces: Linux 5.19 or later, with landlock in its parameter lsm=",
        ),
        Some(left) if left.is_empty() => Finding::good(SUBJECT, "all rules of the VMM's jail"),
        Some(left) => Finding::improvable(
            SUBJECT,
            format!("without rules for {}", left.join(", ")),
            "a kernel as new as the numbers has them",
        ),
    }
}

pub(super) fn socket_lookup() -> Finding {
    judge_socket_lookup(network::probe_loopback())
}

fn judge_socket_lookup(listened: Result<(), NetworkError>) -> Finding {
    const SUBJECT: &str = "port-forward";
    match listened {
        Ok(()) => Finding::good(SUBJECT, "BPF programs on the socket lookup work"),
        Err(error) => Finding::doubtful(
            SUBJECT,
            format!("kubectl port-forward will not reach pods: {error}"),
            "use Linux 5.9 or later with CONFIG_BPF_SYSCALL; all else works without",
        ),
    }
}

/// Where each security module that confines containers says that it is on.
const APPARMOR: &str = "/sys/module/apparmor/parameters/enabled";
const SELINUX: &str = "/sys/fs/selinux/enforce";

pub(super) fn security_modules() -> Finding {
    let apparmor = fs::read_to_string(APPARMOR).is_ok_and(|enabled| enabled.trim() == "Y");
    judge_security_modules(apparmor, fs::exists(SELINUX).unwrap_or_default())
}

fn judge_security_modules(apparmor: bool, selinux: bool) -> Finding {
    const SUBJECT: &str = "security modules";
    // What docs/kubernetes.md says of them.
    let meanings = [
        (apparmor, "AppArmor: pods' default profiles are taken out, others are refused"),
        (selinux, "SELinux: pods' labels have no effect, the VMM's is containerd's"),
    ];
    let present: Vec<&str> =
        meanings.into_iter().filter(|(is_on, _)| *is_on).map(|(_, meaning)| meaning).collect();
    if present.is_empty() {
        return Finding::good(SUBJECT, "neither AppArmor nor SELinux is on");
    }
    Finding::good(SUBJECT, present.join("; "))
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::super::finding::Verdict;
    use super::*;

    #[test]
    fn no_vmm_starts_without_filters_that_trap() {
        let actions = "kill_process kill_thread trap errno user_notif trace log allow\n";
        assert_eq!(judge_seccomp(Some(actions)).verdict, Verdict::Good);
        assert_eq!(judge_seccomp(Some("allow\n")).verdict, Verdict::Missing);
        assert_eq!(judge_seccomp(None).verdict, Verdict::Missing);
    }

    #[test]
    fn an_old_landlock_is_a_hint_with_what_it_lacks() {
        let old = judge_landlock(Some(vec!["TCP (6.7)"]));
        assert!(old.verdict == Verdict::Good && old.remedy.is_some() && old.found.contains("TCP"), "{old}");
        assert!(judge_landlock(None).remedy.is_some());
        assert_eq!(judge_landlock(Some(Vec::new())).remedy, None);
    }

    #[test]
    fn ports_that_are_not_passed_on_are_a_doubt_that_says_why() {
        let error = NetworkError::host("a program on the socket lookup")(io::Error::from_raw_os_error(38));
        let finding = judge_socket_lookup(Err(error));
        assert!(
            finding.verdict == Verdict::Doubtful && finding.found.contains("not implemented"),
            "{finding}"
        );
    }

    #[test]
    fn a_security_module_is_named_with_what_it_means_for_containers() {
        assert!(judge_security_modules(true, false).found.starts_with("AppArmor: "));
        assert!(judge_security_modules(false, true).found.starts_with("SELinux: "));
        let both = judge_security_modules(true, true).found;
        assert!(both.contains("AppArmor: ") && both.contains("SELinux: "), "{both}");
        assert!(judge_security_modules(false, false).found.starts_with("neither"));
    }
}
