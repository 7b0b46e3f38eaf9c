#!/bin/sh
# Init of the guest: makes the disks appear, then starts the agent; of a root on a disk (root=) that one's init.

export PATH=/bin HOME=/
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys

# Booted quietly because the port is slow; from here on the test wants to read everything.
dmesg -n 8
while read -r module; do
    insmod "/modules/$module"
done </modules/order

root=$(sed -n 's/.*root=\([^ ]*\).*/\1/p' /proc/cmdline)
if [ -n "$root" ]; then
    mount -t ext4 "$root" /mnt
    for dir in dev proc sys; do
        mount -o move "/$dir" "/mnt/$dir"
    done
    exec switch_root /mnt /bin/init
fi

agent &
# Waiting for a child reaps all that lost their parents.
while :; do
    sleep 1000
done
