#!/bin/sh
# Init of the guest: makes the disks appear, then starts the agent.

export PATH=/bin HOME=/
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys

# Booted quietly because the port is slow; from here on the test wants to read everything.
dmesg -n 8
while read -r module; do
    insmod "/modules/$module"
done </modules/order

agent &
# Waiting for a child reaps all that lost their parents.
while :; do
    sleep 1000
done
