//! The host's packet filter, as far as CNI's plugins change it.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::ensure;

use crate::ctr::finish;

/// Chains that the plugins firewall and portmap make for all pods, and leave.
const FOR_ALL_PODS: [&str; 3] = ["CNI-ADMIN", "CNI-FORWARD", "CNI-HOSTPORT-"];

/// The rules of all tables, for IPv4 and IPv6, and the chains that are CNI's.
pub(in crate::e2e) struct Rules(BTreeSet<String>);

impl Rules {
    /// Those that there are.
    pub(in crate::e2e) fn now() -> anyhow::Result<Self> {
        let mut rules = BTreeSet::new();
        for program in ["iptables-save", "ip6tables-save"] {
            let saved = finish(&mut Command::new(program))?;
            rules.extend(saved.lines().filter_map(rule));
        }
        Ok(Self(rules))
    }

    /// Expects rules to have been added since that have `word` in them, an address or an id of the pod's.
    pub(in crate::e2e) fn expect_more_for(&self, word: &str) -> anyhow::Result<()> {
        let added = self.added()?;
        ensure!(added.iter().any(|rule| rule.contains(word)), "no rule for {word}: {added:?}");
        Ok(())
    }

    /// Expects nothing to have been added since but what is for all pods, and names none of `words`.
    pub(in crate::e2e) fn expect_no_more(&self, words: &[&str]) -> anyhow::Result<()> {
        let for_all = |rule: &String| {
            FOR_ALL_PODS.iter().any(|chain| rule.contains(chain))
                && !words.iter().any(|word| rule.contains(word))
        };
        let left: Vec<String> = self.added()?.into_iter().filter(|rule| !for_all(rule)).collect();
        ensure!(left.is_empty(), "rules of a pod are left: {left:?}");
        Ok(())
    }

    fn added(&self) -> anyhow::Result<Vec<String>> {
        Ok(Self::now()?.0.difference(&self.0).cloned().collect())
    }
}

/// A rule, or a chain without its counters (`:CNI-ADMIN - [0:0]`), in a line of iptables-save(8).
fn rule(line: &str) -> Option<String> {
    if line.starts_with(":CNI-") {
        return line.split_whitespace().next().map(str::to_owned);
    }
    line.starts_with("-A ").then(|| line.to_owned())
}

/// Has the host forward nothing from and to `subnet` that no other rule lets through, as hosts do whose policy it is. This goes with it.
pub(super) struct Closed<'a> {
    subnet: &'a str,
}

impl<'a> Closed<'a> {
    /// # Errors
    /// iptables refuses.
    pub(super) fn to(subnet: &'a str) -> anyhow::Result<Self> {
        let closed = Self { subnet };
        closed.change("-A")?;
        Ok(closed)
    }

    fn change(&self, how: &str) -> anyhow::Result<()> {
        ["-s", "-d"].into_iter().try_for_each(|end| {
            let rule = [how, "FORWARD", end, self.subnet, "-j", "DROP"];
            finish(Command::new("iptables").arg("--wait").args(rule)).map(drop)
        })
    }
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.change("-D") {
            eprintln!("what the host does not forward: {error:#}");
        }
    }
}
