#!/bin/busybox sh
# The first process of a guest: mounts what memtrace and its tests expect, runs the task, ends the
# machine. The console is the first serial line; the second carries the results.
export PATH=/bin:/sbin:/usr/bin HOME=/root
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mount -t cgroup2 cgroup /sys/fs/cgroup
echo +memory > /sys/fs/cgroup/cgroup.subtree_control
ip link set lo up
export MEMTRACE_BIN=/bin/memtrace MEMTRACE_PROGRAMS=/programs CARGO_TARGET_DIR=/tmp/target
export MEMTRACE_SLOWNESS=4
stty -F /dev/ttyS1 raw -echo
vm-guest /task.json > /dev/ttyS1
echo "vm-guest ended with $?"
poweroff -f
