//! What a guest's kernel says when it was shown a storage error.

/// Parts of messages that a kernel on a disk without errors never prints.
const SIGNS: [&str; 16] = [
    // "I/O error, dev vda", "critical medium error, dev vda" and the other block statuses.
    " error, dev ",
    "I/O error",
    "IO error",
    "lost async page write",
    "lost sync page write",
    "EXT4-fs error",
    "EXT4-fs warning",
    "emounting filesystem read-only",
    "Delayed block allocation failed",
    "potential data loss",
    "Aborting journal",
    "JBD2: Error",
    "blocked for more than",
    "Kernel panic",
    "kernel BUG at",
    "Oops:",
];

/// The lines that tell of a storage error, or of a task that hangs on one.
#[must_use]
pub fn io_errors(log: &str) -> Vec<String> {
    log.lines()
        .filter(|line| SIGNS.iter().any(|sign| line.contains(sign)))
        .map(|line| line.trim_end().to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_found_and_nothing_else() {
        let errors = [
            "[    9.1] I/O error, dev vda, sector 2048 op 0x1:(WRITE) flags 0x800 phys_seg 1",
            "[    9.1] critical space allocation error, dev vda, sector 8 op 0x1:(WRITE)",
            "[    9.1] Buffer I/O error on dev vda, logical block 1, lost async page write",
            "[    9.2] EXT4-fs error (device vda): ext4_find_entry:1463: inode #2: comm ls",
            "[    9.2] EXT4-fs (vda): Remounting filesystem read-only",
            "[    9.2] EXT4-fs warning (device vda): ext4_end_bio:343: I/O error 10 writing",
            "[    9.3] JBD2: Detected IO errors while flushing file data on vda-8",
            "[    9.3] Aborting journal on device vda-8.",
            "[  245.9] INFO: task dd:123 blocked for more than 120 seconds.",
        ];
        let fine = [
            "[    0.0] Command line: console=ttyS0 quiet",
            "[    7.5] virtio_blk virtio0: [vda] 131072 512-byte logical blocks (67.1 MB/64.0 MiB)",
            "[    7.6] EXT4-fs (vda): mounted filesystem with ordered data mode. Quota mode: none.",
            "[    7.6] EXT4-fs (vda): recovery complete",
            "[    7.6] EXT4-fs (vda): unmounting filesystem.",
            "[    7.7] reboot: Restarting system",
        ];
        let log = [errors.as_slice(), fine.as_slice()].concat().join("\r\n");
        assert_eq!(io_errors(&log), errors);
    }
}
