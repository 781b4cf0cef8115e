//! What a write takes from a file: set-id bits and file capabilities, by which whoever may write to a program would else
//! become who it runs as.

use std::fs;

use anyhow::ensure;

use super::with_programs_of_this_machine;
use crate::e2e::context::{Context, bind};

/// Prints, for each file that somebody writes to in some way, its mode and whether it still has capabilities.
const WRITES: &str = r#"
set -eu
cap=0x0100000200200000000000000000000000000000
with_cap() { setfattr -n security.capability -v $cap $1; getfattr -n security.capability $1 > /dev/null 2>&1; }
show() {
    left=none; if getfattr -n security.capability $1 > /dev/null 2>&1; then left=capable; fi
    echo $1 $(stat -c %a $1) $left
}
as_user() { setpriv --reuid 1000 --regid 1000 --clear-groups sh -c "$1"; }
umask 0
cd $1
for mode in 777 6777; do
    for way in 'echo x >> $f' 'echo x > $f' 'truncate -s 1 $f'; do
        for who in 'sh -c' as_user; do
            f=f; rm -f f; echo old > f; chmod $mode f; with_cap f
            $who "f=f; $way"
            show f
        done
    done
done
# Made here, and open from then on.
exec 3> new; echo a >&3; with_cap new; echo b >&3; exec 3>&-
show new
"#;

/// The same wherever Linux has files: root keeps set-id bits (CAP_FSETID), and nobody keeps capabilities.
fn expected() -> String {
    let of = |mode: &str, kept: &str| format!("f {kept} none\nf {mode} none\n").repeat(3);
    of("777", "777") + &of("777", "6777") + "new 666 none\n"
}

pub(super) fn lost_by_writes(context: &Context) -> anyhow::Result<()> {
    context.in_the_long_form_alone()?;
    let volume = context.scratch.join("volume");
    fs::create_dir(&volume)?;
    let mount = bind(&volume, "/volume", "rbind:rw");
    let programs = with_programs_of_this_machine();
    let flags: Vec<&str> =
        ["--mount", &mount].into_iter().chain(programs.iter().map(String::as_str)).collect();
    let both = format!(
        "mkdir -m 777 /w; for at in /w /volume; do sh -c '{}' sh $at; done",
        WRITES.replace('\'', r"'\''")
    );
    let ended = context.run(&flags, "writes", &["sh", "-c", &both])?.expect_status(0)?;
    let expected = expected().repeat(2);
    ensure!(ended.text() == expected, "{}\ninstead of\n{expected}{}", ended.text(), ended.stderr);
    Ok(())
}
