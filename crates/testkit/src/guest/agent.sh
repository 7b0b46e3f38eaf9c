#!/bin/sh
# Executes in the guest what the test sends over the second serial port. The first one is the
# kernel's console and belongs to it alone, apart from what goes wrong in these scripts.
#
#   test:  "JOB LINES", then that many lines of shell
#   guest: "boot", once after each boot, when the disks are there
#          "out JOB TEXT" for each line of output, "end JOB STATUS" at the end
#
# Every line is one echo, thus one write, which the tty does not interleave with another.

execute() {
    {
        (eval "$script") </dev/null 2>&1 3>&-
        echo $? >"/run/$1"
    } | while IFS= read -r line || [ -n "$line" ]; do
        echo "out $1 $line"
    done
    read -r status <"/run/$1"
    rm "/run/$1"
    echo "end $1 $status"
}

exec 3<>/dev/ttyS1
stty raw -echo clocal 115200 <&3
echo boot >&3
while :; do
    read -r job lines <&3 || continue
    script=
    while [ "$lines" -gt 0 ]; do
        IFS= read -r line <&3
        script="$script$line
"
        lines=$((lines - 1))
    done
    # Forked twice, so that the job is no child of this shell: a SIGCHLD makes a read of busybox
    # forget what it has of its line.
    (execute "$job" >&3 &)
done
