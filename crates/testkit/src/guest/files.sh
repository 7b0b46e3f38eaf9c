#!/bin/sh
# files write|verify DIR SEED COUNT SECTORS: files 0 to COUNT - 1 in DIR, each of SECTORS stamped
# sectors. "synced N" is printed when the file N is on the disk. "verify" reads from the disk, not
# from the page cache, and says of each file that differs what is at its first bad place.
verb=$1 dir=$2 seed=$3 count=$4 sectors=$5

write() {
    stamps "$seed" "$1" 0 "$sectors" | dd of="$dir/$1" bs=64k conv=fsync status=none
}

verify() {
    difference=$(stamps "$seed" "$1" 0 "$sectors" | cmp - "$dir/$1" 2>&1) && return
    echo "$difference"
    char=${difference##*: char }
    char=${char%%,*}
    case $char in
    *[!0-9]*) ;;
    *)
        sector=$(((char - 1) / 512))
        echo "sector $sector begins with: $(dd if="$dir/$1" bs=512 skip=$sector count=1 status=none |
            head -c 64 | hexdump -v -e '64/1 "%_p"')"
        ;;
    esac
    return 1
}

mkdir -p "$dir" || exit
failed=0 file=0
case $verb in
write)
    while [ $file -lt "$count" ]; do
        write $file || exit
        echo "synced $file"
        file=$((file + 1))
    done
    ;;
verify)
    sync
    echo 3 >/proc/sys/vm/drop_caches
    while [ $file -lt "$count" ]; do
        verify $file || failed=1
        file=$((file + 1))
    done
    ;;
*)
    echo "files: '$verb' is neither write nor verify"
    exit 2
    ;;
esac
exit $failed
