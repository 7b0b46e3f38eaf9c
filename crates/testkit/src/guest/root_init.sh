#!/bin/sh
# Init of a root on a disk: what the agent writes to is in memory, so that the disk can become read-only at the end.

export PATH=/bin HOME=/
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp

agent &
while :; do
    sleep 1000
done
