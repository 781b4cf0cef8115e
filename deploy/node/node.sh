#!/bin/sh
# What the pod of the DaemonSet does on its node: installs Saya, has containerd read the handler, checks the node and
# labels it. When the DaemonSet is deleted it takes all of that back; when only its pod ends (a drain, a new version, the
# node's shutdown) it leaves everything as it is. A step that fails leaves the node without the label and the pod alive but
# not ready: a pod that has ended could take nothing back.
#
# From the manifest: NODE and NAMESPACE, the names of the node and of the DaemonSet's namespace.
# For its tests: API and ACCOUNT, the API server's address and the service account's directory; ROOT, where the node's root
# is mounted; ON_NODE, how a command runs on the node; READY, the file that says that the pod is ready.
set -eu

: "${NODE:?is not set: the manifest sets it from spec.nodeName}"
: "${NAMESPACE:?is not set: the manifest sets it from metadata.namespace}"
api=${API:-https://${KUBERNETES_SERVICE_HOST:-}:${KUBERNETES_SERVICE_PORT:-443}}
account=${ACCOUNT:-/var/run/secrets/kubernetes.io/serviceaccount}
root=${ROOT:-/host}
on_node=${ON_NODE:-nsenter --target 1 --mount --uts --ipc --net --pid --}
ready=${READY:-/run/saya-node.ready}
label=saya-runtime
daemonset=saya-node
deploy=$(cd "$(dirname "$0")/.." && pwd)
configuration=$root/etc/containerd/config.toml
# There as long as containerd may not know its configuration. A node that starts anew needs none.
restart_pending=$root/run/saya.restart-containerd

complain() {
	echo "node.sh: $*" >&2
}

# Prints the status of a request to the API server; what it answers goes to file descriptor 3. curl itself asks again while
# the server cannot be reached or has no time.
request() {
	curl --silent --show-error --max-time 30 --retry 5 --retry-connrefused --retry-max-time 60 --cacert "$account/ca.crt" \
		--header "Authorization: Bearer $(cat "$account/token")" \
		--write-out '%{http_code}' --output /dev/fd/3 "$@"
}

# Sets the node's label, or takes it away (null).
label_node() {
	status=$(request --request PATCH --header 'Content-Type: application/merge-patch+json' \
		--data "{\"metadata\":{\"labels\":{\"$label\":$1}}}" "$api/api/v1/nodes/$NODE" 3>/dev/null) || status=none
	if [ "$status" != 200 ]; then
		complain "the node $NODE cannot be labelled: the API server $api answers $status"
		return 1
	fi
	echo "label $label of $NODE: $1"
}

# Whether the DaemonSet is gone or going. An API server that says neither is taken for one whose answer is no.
is_deleted() {
	answer=$(mktemp)
	status=$(request "$api/apis/apps/v1/namespaces/$NAMESPACE/daemonsets/$daemonset" 3>"$answer") || status=none
	case $status in
	404) deleted=yes ;;
	200) if grep -q '"deletionTimestamp"' "$answer"; then deleted=yes; else deleted=no; fi ;;
	*)
		complain "the API server answers $status: everything is left as it is"
		deleted=no
		;;
	esac
	rm "$answer"
	[ $deleted = yes ]
}

configuration_now() {
	if [ -f "$configuration" ]; then cksum <"$configuration"; else echo none; fi
}

# Runs the installer, and has containerd start again if its configuration is another one than before, or if a pod before
# this one ended before it could do so.
installer() {
	if [ -e "$restart_pending" ]; then before=unknown; else before=$(configuration_now); fi
	mkdir -p "$root/run" && touch "$restart_pending" || return
	"$deploy/install.sh" --root "$root" "$@" || return
	if [ "$before" != "$(configuration_now)" ]; then
		$on_node systemctl restart containerd || return
		echo "containerd was started again"
	fi
	rm "$restart_pending"
}

make_ready() {
	installer --files "${deploy%/*}" --containerd || return
	$on_node /usr/local/bin/saya check || return
	label_node '"true"' || return
	touch "$ready"
	echo "ready"
}

end() {
	trap '' TERM INT
	rm -f "$ready"
	ended=0
	if is_deleted; then
		label_node null || ended=1
		installer --remove || ended=1
	fi
	exit $ended
}

# A shell heeds signals while it waits for a child, and not while a command runs.
sleep infinity >/dev/null 2>&1 &
child=$!
trap 'kill "$child"' EXIT
trap end TERM INT
rm -f "$ready"
if ! make_ready; then
	complain "the node $NODE cannot run Saya, see the lines above; once that is mended, delete this pod to have it try again"
	label_node null || :
	echo "not ready"
fi
wait "$child"
