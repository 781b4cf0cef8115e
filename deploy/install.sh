#!/bin/sh
# Installs Saya on a machine that runs containerd, or removes it again. It changes nothing that it has not made.
#
#   install.sh [--files DIR] [--root DIR] [--containerd]
#   install.sh --remove [--root DIR]
#
#   --files DIR    where containerd-shim-kata-v2, vmlinux and initramfs.cpio are (cargo xtask build makes them);
#                  default: beside this script
#   --root DIR     the root of the machine, where it is mounted somewhere else; default: /
#   --containerd   names the runtime handler `kata` in containerd's configuration, for Kubernetes; ctr needs no handler.
#                  containerd reads it when it is started again
#   --remove       takes all of it away, the handler too; pods that run go on until they end
set -eu

here=$(cd "$(dirname "$0")" && pwd)
files=$here
root=
handler=no
remove=no
begin='# saya: begin'
end='# saya: end'
made='# Made by the installer of Saya.'

fail() {
	echo "install.sh: $*" >&2
	exit 1
}

while [ $# -gt 0 ]; do
	case $1 in
	--files | --root)
		[ $# -ge 2 ] || fail "$1 needs a directory"
		[ -d "$2" ] || fail "$1 $2: no such directory"
		if [ "$1" = --files ]; then files=$2; else root=${2%/}; fi
		shift
		;;
	--containerd) handler=yes ;;
	--remove) remove=yes ;;
	*) fail "$1 is no option of this script: see its first lines" ;;
	esac
	shift
done

programs=$root/usr/local/bin
data=$root/usr/local/share/saya
configuration=$root/etc/containerd/config.toml

# Puts a file in place in one step: whoever runs the old one keeps it.
put() {
	[ -f "$files/$1" ] || fail "$files/$1 is not there: cargo xtask build makes it; --files names its directory"
	mkdir -p "$2"
	cp "$files/$1" "$2/.$1.new"
	chmod "$3" "$2/.$1.new"
	mv -f "$2/.$1.new" "$2/$1"
	echo "$2/$1"
}

# Prints containerd's configuration without our part of it.
without_handler() {
	sed -e "/^$begin\$/,/^$end\$/d" -e '$a\' "$configuration"
}

# Replaces containerd's configuration by standard input in one step.
replace_configuration() {
	cat >"$configuration.saya"
	chmod --reference="$configuration" "$configuration.saya"
	mv -f "$configuration.saya" "$configuration"
}

remove_handler() {
	[ -f "$configuration" ] || return 0
	if [ "$(without_handler | sed '/^version = 2$/d')" = "$made" ]; then
		rm "$configuration"
	elif grep -q "^$begin\$" "$configuration"; then
		without_handler | replace_configuration
	fi
}

# containerd before 2.0 replaces a plugin's whole section by what a drop-in says of it, so ours goes into the file itself:
# tables are named in full, and may stand at its end.
add_handler() {
	if [ ! -f "$configuration" ]; then
		mkdir -p "$(dirname "$configuration")"
		printf '%s\nversion = 2\n' "$made" >"$configuration"
	fi
	version=$(sed -n 's/^version *= *\([0-9]*\).*/\1/p' "$configuration" | head -n 1)
	fragment=$here/containerd/version-${version:-1}.toml
	[ -f "$fragment" ] || fail "$configuration is of version ${version:-1}: convert it by \`containerd config migrate\`"
	if without_handler | grep -q 'runtimes\.kata\]'; then
		fail "$configuration names a runtime kata already: remove it, or leave --containerd away"
	fi
	{
		without_handler
		echo "$begin"
		cat "$fragment"
		echo "$end"
	} | replace_configuration
	echo "$configuration: handler kata; containerd reads it when it is started again"
}

if [ $remove = yes ]; then
	remove_handler
	rm -f "$programs/containerd-shim-kata-v2" "$programs/saya" "$data/vmlinux" "$data/initramfs.cpio"
	if [ -d "$data" ]; then
		rmdir --ignore-fail-on-non-empty "$data"
	fi
	echo "removed"
	exit 0
fi

put containerd-shim-kata-v2 "$programs" 755
ln -sf containerd-shim-kata-v2 "$programs/saya"
put vmlinux "$data" 644
put initramfs.cpio "$data" 644
if [ $handler = yes ]; then
	add_handler
fi
