#!/bin/sh
# What the pod of the DaemonSet does on its node: installs Saya, has containerd read the handler, checks the node and
# labels it. When the DaemonSet is deleted it takes all of that back; when only its pod ends (a drain, a new version, the
# node's shutdown) it leaves everything as it is.
#
# From the manifest: NODE and NAMESPACE, the names of the node and of the DaemonSet's namespace.
# For its tests: API and ACCOUNT, the API server's address and the service account's directory; ROOT, where the node's root
# is mounted; ON_NODE, how a command runs on the node.
set -eu

: "${NODE:?is not set: the manifest sets it from spec.nodeName}"
: "${NAMESPACE:?is not set: the manifest sets it from metadata.namespace}"
api=${API:-https://${KUBERNETES_SERVICE_HOST:-}:${KUBERNETES_SERVICE_PORT:-443}}
account=${ACCOUNT:-/var/run/secrets/kubernetes.io/serviceaccount}
root=${ROOT:-/host}
on_node=${ON_NODE:-nsenter --target 1 --mount --uts --ipc --net --pid --}
label=saya-runtime
daemonset=saya-node
deploy=$(cd "$(dirname "$0")/.." && pwd)
configuration=$root/etc/containerd/config.toml

fail() {
	echo "node.sh: $*" >&2
	exit 1
}

# Prints the status of a request to the API server; what it answers goes to file descriptor 3.
request() {
	curl --silent --show-error --max-time 30 --cacert "$account/ca.crt" \
		--header "Authorization: Bearer $(cat "$account/token")" \
		--write-out '%{http_code}' --output /dev/fd/3 "$@"
}

# Sets the node's label, or takes it away (null).
label_node() {
	status=$(request --request PATCH --header 'Content-Type: application/merge-patch+json' \
		--data "{\"metadata\":{\"labels\":{\"$label\":$1}}}" "$api/api/v1/nodes/$NODE" 3>/dev/null) ||
		fail "the API server $api does not answer"
	[ "$status" = 200 ] || fail "the node $NODE cannot be labelled: the API server answers $status"
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
		echo "node.sh: the API server answers $status: everything is left as it is" >&2
		deleted=no
		;;
	esac
	rm "$answer"
	[ $deleted = yes ]
}

# Runs the installer, and has containerd start again if its configuration is another one than before.
installer() {
	before=$(cksum <"$configuration" 2>/dev/null) || before=none
	"$deploy/install.sh" --root "$root" "$@"
	after=$(cksum <"$configuration" 2>/dev/null) || after=none
	if [ "$before" != "$after" ]; then
		$on_node systemctl restart containerd
		echo "containerd was started again"
	fi
}

end() {
	if is_deleted; then
		label_node null
		installer --remove
	fi
	exit 0
}

# A shell heeds signals while it waits for a child, and not while a command runs.
sleep infinity >/dev/null 2>&1 &
child=$!
trap 'kill "$child"' EXIT
trap end TERM INT
installer --files "${deploy%/*}" --containerd
$on_node /usr/local/bin/saya check || fail "the node $NODE cannot run Saya: see the lines above"
label_node '"true"'
echo "ready"
wait "$child"
