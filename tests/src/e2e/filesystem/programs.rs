//! Debian's git, tar, sqlite3 and coreutils, on a container's root file system.

use std::fs;

use anyhow::ensure;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::with_programs_of_this_machine;
use crate::e2e::context::{Context, bind};

/// Each line that it prints is one thing that holds.
const TOOLS: &str = r#"
set -eu
mkdir /w; cd /w
export HOME=/w GIT_CONFIG_NOSYSTEM=1 LC_ALL=C

/usr/bin/git init -q -b main one
git() { /usr/bin/git -c user.name=n -c user.email=n@example.org "$@"; }
for commit in 1 2 3; do
    for file in 1 2 3 4 5; do echo "$commit $file" >> one/$file; done
    git -C one add . && git -C one commit -q -m "$commit"
done
git clone -q --no-local one two
git -C two fsck --full --strict
diff -r --exclude .git one two
echo git

mkdir tree; cd tree
seq 20000 | split -l 1 -a 4 -
chown 999:998 xaaa*; chmod 640 xaab*; setfattr -n user.note -v note xaac*
mkdir deep; for file in 1 2 3; do echo $file > deep/$file; done
chown 999:998 deep/1; chmod 4751 deep/2; chmod 1777 deep; chmod 0 deep/3
ln deep/1 hard; ln -s deep/none soft
setfattr -n user.note -v 'some thing' deep/2
truncate -s 4M hole; printf end >> hole
cd ..
tar --xattrs --sparse --numeric-owner -cf tree.tar tree
mkdir out; tar --xattrs --numeric-owner -xpf tree.tar -C out
list() { cd $1; find . -type d -printf '%p %m %U:%G %T@\n' -o -printf '%p %y %m %U:%G %n %s %l %TY%Tm%Td%TH%TM\n' | sort; cd - > /dev/null; }
list tree | sed 's/ [0-9.]*$//' > before; list out/tree | sed 's/ [0-9.]*$//' > after
diff before after
tar --numeric-owner -df tree.tar -C out
[ $(stat -c %i out/tree/hard) = $(stat -c %i out/tree/deep/1) ]
getfattr --only-values -n user.note out/tree/deep/2 | grep -qx 'some thing'
notes() { cd $1; getfattr -d xaac*; cd - > /dev/null; }
notes tree > before; notes out/tree > after
diff before after; [ $(grep -c '^user.note="note"$' after) = 26 ]
[ $(du -k out/tree/hole | cut -f1) -lt 1024 ]
echo tar

mkdir packages; cd packages
for round in 1 2 3; do
    for package in 1 2 3 4 5; do
        echo "$round of $package" > $package.dpkg-new
        sync $package.dpkg-new
        [ ! -e $package ] || ln -f $package $package.dpkg-tmp
        mv $package.dpkg-new $package
    done
    sync .
done
for package in 1 2 3 4 5; do
    grep -qx "3 of $package" $package; grep -qx "2 of $package" $package.dpkg-tmp
done
cd ..
echo packages

sqlite3 base 'pragma journal_mode=wal; create table t(n integer primary key, s text);' > mode
grep -qx wal mode
fill='with recursive c(n) as (select 1 union all select n+1 from c where n<200) insert into t(s) select hex(randomblob(200)) from c;'
sqlite3 base "$fill" & sqlite3 -cmd '.timeout 60000' base "$fill"; wait $!
[ "$(sqlite3 base 'select count(*) from t; pragma integrity_check;' | tr '\n' ' ')" = "400 ok " ]
echo sqlite
"#;

pub(in crate::e2e) fn tools(context: &Context) -> anyhow::Result<()> {
    context.in_the_long_form_alone()?;
    let printed = run(context, "tools", &[], &["sh", "-c", TOOLS])?;
    ensure!(printed == "git\ntar\npackages\nsqlite\n", "{printed}");
    Ok(())
}

/// As above. `/small` holds a mebibyte.
const EDGES: &str = r#"
set -eu
mkdir /w; cd /w

mkdir names; cd names
byte=1
while [ $byte -le 255 ]; do
    if [ $byte -ne 47 ]; then
        name=$(printf "\\$(printf %03o $byte)x"); echo $byte > "a$name"
    fi
    byte=$((byte + 1))
done
[ $(find . -type f -print0 | tr -cd '\000' | wc -c) = 254 ]
byte=1
while [ $byte -le 255 ]; do
    if [ $byte -ne 47 ]; then
        name=$(printf "\\$(printf %03o $byte)x"); read found < "a$name"; [ $found = $byte ]
    fi
    byte=$((byte + 1))
done
long=$(printf %0255d 0)
echo long > $long; [ "$(cat $long)" = long ]; mkdir d; mv $long d/; rm d/$long
if echo longer > 0$long; then exit 9; fi
cd ..
echo names

truncate -s 4G hole
printf end | dd of=hole bs=1 seek=4294967293 conv=notrunc 2> /dev/null
[ "$(stat -c %s hole)" = 4294967296 ]; [ $(stat -c %b hole) -lt 2048 ]
[ "$(tail -c 4 hole | tr '\000' 0)" = 0end ]
echo holes

if dd if=/dev/zero of=/small/file bs=64k count=32 2> why; then exit 9; fi
grep -q 'No space left on device' why
[ $(stat -c %s /small/file) -le 1048576 ]; rm /small/file
echo full
"#;

pub(in crate::e2e) fn edges(context: &Context) -> anyhow::Result<()> {
    context.in_the_long_form_alone()?;
    let small = context.scratch.join("small");
    fs::create_dir(&small)?;
    mount("small", &small, "tmpfs", MountFlags::empty(), c"size=1m")?;
    let mount = bind(&small, "/small", "rbind:rw");
    let printed = run(context, "edges", &["--mount", &mount], &["sh", "-c", EDGES]);
    unmount(&small, UnmountFlags::DETACH)?;
    let printed = printed?;
    ensure!(printed == "names\nholes\nfull\n", "{printed}");
    Ok(())
}

/// Runs a script with this machine's programs in a container and gives what it printed, with its errors if it failed.
fn run(context: &Context, id: &str, flags: &[&str], command: &[&str]) -> anyhow::Result<String> {
    let programs = with_programs_of_this_machine();
    let flags: Vec<&str> = flags.iter().copied().chain(programs.iter().map(String::as_str)).collect();
    let ended = context.run(&flags, id, command)?.expect_status(0)?;
    Ok(ended.text())
}
