//! What programs put into namespaces of the tests' own. Where those cannot be made, or without iptables(8), they say so
//! and end.

use std::process::Command;

use super::*;
use crate::network::namespace;

/// What is found in a new namespace after each of these commands. `None`: one cannot be run here.
fn found_after(commands: &[&str]) -> Option<Vec<String>> {
    let found = namespace::in_new(|| {
        for command in commands {
            let mut words = command.split(' ');
            let output = Command::new(words.next().unwrap()).args(words).output();
            match output {
                Ok(output) if output.status.success() => {}
                failed => {
                    eprintln!("skipped: {command}: {failed:?}");
                    return Ok(None);
                }
            }
        }
        Ok(Some(tables().unwrap()))
    });
    found.unwrap_or_else(|error| {
        eprintln!("skipped: {error}");
        None
    })
}

#[test]
fn a_table_in_which_there_is_nothing_is_no_filter() {
    for program in ["iptables-legacy", "ip6tables-legacy", "iptables-nft", "ip6tables-nft"] {
        let list = [format!("{program} -S"), format!("{program} -t nat -S"), format!("{program} -t nat -F")];
        let Some(found) = found_after(&list.each_ref().map(String::as_str)) else { continue };
        assert!(found.is_empty(), "{program}: {found:?}");
    }
}

#[test]
fn a_rule_is_found_wherever_it_is() {
    for (program, names) in [
        ("iptables-legacy", ["filter of iptables", "nat of iptables"]),
        ("ip6tables-legacy", ["filter of ip6tables", "nat of ip6tables"]),
        ("iptables-nft", ["ip filter of nftables", "ip nat of nftables"]),
        ("ip6tables-nft", ["ip6 filter of nftables", "ip6 nat of nftables"]),
    ] {
        let first = format!("{program} -A INPUT -j ACCEPT");
        let second = format!("{program} -t nat -A OUTPUT -p tcp -j REDIRECT --to-ports 15001");
        let Some(mut found) = found_after(&[&first, &second]) else { continue };
        found.sort();
        assert_eq!(found, names, "{program}");
    }
}

#[test]
fn a_policy_that_is_not_to_accept_is_a_filter() {
    for (program, name) in [
        ("iptables-legacy", "filter of iptables"),
        ("ip6tables-legacy", "filter of ip6tables"),
        ("iptables-nft", "ip filter of nftables"),
    ] {
        let Some(found) = found_after(&[&format!("{program} -P FORWARD DROP")]) else { continue };
        assert_eq!(found, [name]);
    }
}

#[test]
fn filters_keep_a_network_from_being_taken_unless_they_are_to_be_ignored() {
    let judged = namespace::in_new(|| {
        let rule = Command::new("iptables").args(["-A", "INPUT", "-j", "DROP"]).output();
        match rule {
            Ok(output) if output.status.success() => {}
            failed => {
                eprintln!("skipped: iptables: {failed:?}");
                return Ok(());
            }
        }
        let error = check(PacketFilters::Refused).unwrap_err().to_string();
        for words in ["filter of ", "init container", "ignore_packet_filters"] {
            assert!(error.contains(words), "{error}");
        }
        check(PacketFilters::Ignored)
    });
    match judged {
        Err(NetworkError::Host { what, source }) if what == "making a network namespace" => {
            eprintln!("skipped: {source}");
        }
        judged => judged.unwrap(),
    }
}
