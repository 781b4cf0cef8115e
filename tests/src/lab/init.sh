#!/bin/busybox sh
# The first program in the lab: makes the host's root the lab's root, read-only below and writable in memory above,
# and hands over to the lab's server.
/bin/busybox mkdir -p /proc /sys /dev /host /above
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
/bin/busybox --install -s /bin

fail() {
    echo "lab: $1"
    poweroff -f
}

while read -r module; do
    insmod "/modules/$module" || fail "cannot load $module"
done < /modules/order

mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose host /host || fail "cannot mount the host's root"
mount -t tmpfs -o mode=0755 above /above
mkdir /above/upper /above/work /root-of-lab
mount -t overlay -o lowerdir=/host,upperdir=/above/upper,workdir=/above/work,xino=off overlay /root-of-lab \
    || fail "cannot lay the overlay"

mount -t proc proc /root-of-lab/proc
mount -t sysfs sysfs /root-of-lab/sys
mount -t devtmpfs devtmpfs /root-of-lab/dev
mount -t tmpfs -o mode=0755 run /root-of-lab/run
if grep -qw saya_lab_cgroup_v1 /proc/cmdline; then
    mount -t tmpfs -o mode=0755 cgroup /root-of-lab/sys/fs/cgroup
    for controller in $(sed -n 's/^\([a-z_]*\)\t.*\t1$/\1/p' /proc/cgroups); do
        mkdir "/root-of-lab/sys/fs/cgroup/$controller"
        mount -t cgroup -o "$controller" cgroup "/root-of-lab/sys/fs/cgroup/$controller" \
            || fail "cannot mount cgroup v1's $controller"
    done
else
    mount -t cgroup2 -o nsdelegate cgroup2 /root-of-lab/sys/fs/cgroup
fi

# The server is a file of the host that a build may replace while the lab runs: take a copy.
server=$(sed -n 's/.*saya_lab_server=\([^ ]*\).*/\1/p' /proc/cmdline)

# /tmp is the lab's own, but for directories that the lab uses.
kept=$(sed -n 's/.*saya_lab_tmp=\([^ ]*\).*/\1/p' /proc/cmdline | tr , ' ')
for name in $kept; do
    mkdir -p "/kept/$name" && mount --bind "/root-of-lab/tmp/$name" "/kept/$name"
done
mount -t tmpfs -o mode=1777 tmp /root-of-lab/tmp
for name in $kept; do
    mkdir "/root-of-lab/tmp/$name" && mount --move "/kept/$name" "/root-of-lab/tmp/$name"
done

mkdir /root-of-lab/run/saya-lab
echo "lab: the root is made after $(cut -d' ' -f1 /proc/uptime) s"
cp "/host$server" /root-of-lab/run/saya-lab/server || fail "cannot copy $server"
exec switch_root /root-of-lab /run/saya-lab/server lab-init
