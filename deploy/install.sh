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
#
# /etc/saya/config.toml is made where Saya has no configuration, with every key as a comment. As long as nobody has changed
# it, later versions replace it and --remove takes it away.
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
settings=$root/etc/saya/config.toml
# The settings as they were installed, to be told from those of the operator.
settings_installed=$data/config.installed.toml

# Copies a file to another place in one step, with these permissions: whoever runs the old one keeps it.
copy() {
	mkdir -p "$(dirname "$2")"
	cp "$1" "$2.new"
	chmod "$3" "$2.new"
	mv -f "$2.new" "$2"
	echo "$2"
}

# Puts one of the files that are built into a directory.
put() {
	[ -f "$files/$1" ] || fail "$files/$1 is not there: cargo xtask build makes it; --files names its directory"
	copy "$files/$1" "$2/$1" "$3"
}

# Whether the settings are there as an installer has put them.
settings_are_ours() {
	[ -f "$settings" ] && cmp -s "$settings" "$settings_installed"
}

# A file of the operator's in either of the places in which the shim looks is the only one.
put_settings() {
	if settings_are_ours || ! { [ -e "$settings" ] || [ -e "$data/config.toml" ]; }; then
		copy "$here/config.toml" "$settings_installed" 644 >/dev/null
		copy "$settings_installed" "$settings" 644
	fi
}

remove_settings() {
	if settings_are_ours; then
		rm "$settings"
		rmdir --ignore-fail-on-non-empty "${settings%/*}"
	fi
	rm -f "$settings_installed"
}

# Prints containerd's configuration without our part of it.
without_handler() {
	sed -e "/^$begin\$/,/^$end\$/d" -e '$a\' "$configuration"
}

# Replaces containerd's configuration by standard input in one step. One that is the same already stays: its time says since
# when containerd has to know it.
replace_configuration() {
	cat >"$configuration.saya"
	if cmp -s "$configuration.saya" "$configuration"; then
		rm "$configuration.saya"
		return
	fi
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
	case ${version:-1} in
	2) fragment=version-2.toml ;;
	# Version 4, of containerd 2.3, has other places for the server's own settings, and the same plugins.
	3 | 4) fragment=version-3.toml ;;
	1) fail "$configuration is of version 1: convert it by \`containerd config migrate\`" ;;
	*) fail "$configuration is of version $version, which this script does not know: add the handler by hand" ;;
	esac
	if without_handler | grep -q 'runtimes\.kata\]'; then
		fail "$configuration names a runtime kata already: remove it, or leave --containerd away"
	fi
	{
		without_handler
		echo "$begin"
		cat "$here/containerd/$fragment"
		echo "$end"
	} | replace_configuration
	echo "$configuration: handler kata; containerd reads it when it is started again"
}

if [ $remove = yes ]; then
	remove_handler
	remove_settings
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
put_settings
if [ $handler = yes ]; then
	add_handler
fi
