#!/bin/sh
# In the guest: a disk for docker, swap on it, the daemon, then the tests with the arguments given.
# Ends with 0 only when every binary did.
set -u
export HOME=/root DOCKER_RAMDISK=1
for module in virtio_blk overlay; do
    insmod "/modules/$module.ko" || exit 97
done
mkdir -p /var/lib/docker /var/run /run /etc /dev/shm /var/tmp
[ -e /etc/group ] || echo root:x:0: > /etc/group
mount -t tmpfs shm /dev/shm
for wait in 1 2 3 4 5 6 7 8 9 10; do [ -b /dev/vda ] && break; sleep 1; done
mount -t ext4 /dev/vda /var/lib/docker || exit 98
echo "+cpu +io +pids +cpuset +memory" > /sys/fs/cgroup/cgroup.subtree_control
dd if=/dev/zero of=/var/lib/docker/swap bs=1048576 count=256 2> /dev/null &&
    chmod 600 /var/lib/docker/swap && mkswap /var/lib/docker/swap > /dev/null &&
    swapon /var/lib/docker/swap || exit 99
# As a service of its own: in the root group docker sees no limits of swap.
mkdir /sys/fs/cgroup/engine || exit 95
sh -c 'echo $$ > /sys/fs/cgroup/engine/cgroup.procs &&
    exec dockerd --iptables=false --ip6tables=false --bridge=none' > /dockerd.log 2>&1 &
seconds=0
until docker info > /dev/null 2>&1; do
    seconds=$((seconds + 1))
    if [ $seconds -gt 180 ]; then
        echo "dockerd did not come up:" >&2
        tail -n 30 /dockerd.log >&2
        exit 96
    fi
    sleep 1
done
docker info --format 'docker {{.ServerVersion}}, {{.Driver}}, cgroup v{{.CgroupVersion}} by {{.CgroupDriver}}'
grep -H . /sys/fs/cgroup/cgroup.controllers
failed=0
for binary in /tests/*; do
    echo "== $binary $*"
    "$binary" --include-ignored --test-threads=1 "$@" || failed=1
done
[ $failed = 0 ] || tail -n 20 /dockerd.log >&2
exit $failed
