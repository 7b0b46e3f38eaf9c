#!/bin/sh
# stamps SEED FILE FIRST COUNT: COUNT sectors, from the sector FIRST on. The text says which it is,
# so that data of another time or place are recognised.
exec awk -v seed="$1" -v file="$2" -v first="$3" -v count="$4" 'BEGIN {
    for (sector = first + 0; sector < first + count; sector++) {
        text = sprintf("seed %10s file %10s sector %10s%14s\n", seed, file, sector, "")
        text = text text
        text = text text
        text = text text
        printf "%s", text
    }
}'
