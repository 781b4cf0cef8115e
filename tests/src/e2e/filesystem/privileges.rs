//! What a write takes from a file: set-id bits and file capabilities, by which whoever may write to a program would else
//! become who it runs as.

use std::fs;

use anyhow::{Context as _, ensure};
use clap::ValueEnum;

use super::with_programs_of_this_machine;
use crate::e2e::context::{Context, bind};
use crate::e2e::set_id::{BESIDE, Way};

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
"#;

/// The same wherever Linux has files: root keeps set-id bits (CAP_FSETID), and nobody keeps capabilities.
fn expected() -> String {
    let of = |mode: &str, kept: &str| format!("f {kept} none\nf {mode} none\n").repeat(3);
    of("777", "777") + &of("777", "6777")
}

pub(super) fn lost_by_writes(context: &Context) -> anyhow::Result<()> {
    context.in_the_long_form_alone()?;
    on_root_and_volume(context, WRITES, &expected())
}

/// Has a program that anybody may write to, and that runs as its owner, written to and run at once by somebody else; then
/// gives a file capabilities that has been written and is still open, and writes to another one thereafter.
const RUNS: &str = r#"
set -eu
# The container's own programs start sooner than those of this machine.
PATH=/bin:/usr/bin
cd $1
cp /usr/bin/id BESIDE
for way in WAYS; do
    cp BESIDE $way; chmod 4777 $way
    /usr/bin/setpriv --reuid 1000 --regid 1000 --clear-groups /programs/saya-e2e --write-and-run $1/$way --by $way
    echo $way $(stat -c %a $way)
done
cap=0x0100000200200000000000000000000000000000
for more in '' 'and more'; do
    exec 3> f; echo written >&3; setfattr -n security.capability -v $cap f; [ -z "$more" ] || echo $more >&3; exec 3>&-
    if getfattr -n security.capability f > /dev/null 2>&1; then echo capable; else echo not; fi
done
"#;

/// What a write by somebody takes from a program is gone before that somebody can run it.
pub(super) fn lost_before_the_next_run(context: &Context) -> anyhow::Result<()> {
    let ways = Way::value_variants().iter().filter_map(ValueEnum::to_possible_value);
    let ways: Vec<_> = ways.map(|way| way.get_name().to_owned()).collect();
    let mut expected: String = ways.iter().map(|way| format!("1000\n{way} 777\n")).collect();
    expected += "capable\nnot\n";
    on_root_and_volume(context, &RUNS.replace("BESIDE", BESIDE).replace("WAYS", &ways.join(" ")), &expected)
}

/// Runs a script with this machine's programs on a container's root file system and on a volume, and compares what it prints on each.
fn on_root_and_volume(context: &Context, script: &str, expected: &str) -> anyhow::Result<()> {
    let volume = context.scratch.join("volume");
    fs::create_dir(&volume)?;
    let mount = bind(&volume, "/volume", "rbind:rw");
    let program = std::env::current_exe()?;
    let own = bind(program.parent().context("no directory")?, "/programs", "rbind:ro");
    let programs = with_programs_of_this_machine();
    // Without the first, set-id bits mean nothing in the container.
    let flags: Vec<&str> = ["--allow-new-privs", "--mount", &mount, "--mount", &own]
        .into_iter()
        .chain(programs.iter().map(String::as_str))
        .collect();
    let both = format!(
        "umask 0; mkdir /w; for at in /w /volume; do sh -c '{}' sh $at; done",
        script.replace('\'', r"'\''")
    );
    let ended = context.run(&flags, "writes", &["sh", "-c", &both])?.expect_status(0)?;
    let expected = expected.repeat(2);
    ensure!(ended.text() == expected, "{}\ninstead of\n{expected}{}", ended.text(), ended.stderr);
    Ok(())
}
