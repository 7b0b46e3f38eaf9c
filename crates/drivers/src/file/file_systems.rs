//! File systems that block whoever hands an operation to a ring.
//!
//! io_uring asks a file system first not to wait, and does again on a thread of the kernel's what would have
//! to. One that does not heed the question waits there and then, inside `io_uring_enter(2)`: the iothread
//! stands still, and with it every disk that it serves.

use std::os::fd::BorrowedFd;

use libc::__fsword_t;

/// A file system whose files go by workers.
#[derive(Debug, PartialEq, Eq)]
pub struct Blocking {
    /// `f_type` of statfs(2).
    f_type: __fsword_t,
    /// What people call it.
    pub name: &'static str,
}

const fn entry(f_type: __fsword_t, name: &'static str) -> Blocking {
    Blocking { f_type, name }
}

/// Where the reason does not say measured, it is read off Linux, of which some version that we run on (6.1
/// or newer) lets a request wait inside the submission. `drivers/tests/e2e_submission.rs` measures.
const BLOCKING: &[Blocking] = &[
    // Measured on Linux 6.18: an iothread stands still until the server answers a read of a file that is opened
    // without O_DIRECT (cached by the server's word, or not), and a write with it. The other way round, and
    // flushes and zeroes, it goes on. Besides, with FOPEN_DIRECT_IO a ring does the rest of a short transfer
    // at the offset of its beginning: what a guest reads, or the image, is wrong then.
    entry(libc::FUSE_SUPER_MAGIC, "FUSE"),
    // Up to Linux 6.4 io_uring takes it that any regular file with no block device below can say that it
    // would have to wait. A file system on a server that has never been taught to then waits for the server,
    // with O_DIRECT or for what the page cache does not have. Later ones ask the file (FMODE_NOWAIT), and
    // which version of which of these says yes is nobody's promise.
    entry(libc::NFS_SUPER_MAGIC, "NFS"),
    entry(libc::SMB_SUPER_MAGIC, "SMB"),
    entry(0xff53_4d42, "CIFS"),
    entry(0xfe53_4d42, "SMB2"),
    entry(0x0102_1997, "9p"),
    entry(0x00c3_6400, "Ceph"),
    entry(0x5346_414f, "AFS"),
    entry(0x7375_7245, "Coda"),
    entry(0x2003_0528, "OrangeFS"),
    // The host's folders, with the hypervisor as the server.
    entry(0x786f_4256, "vboxsf"),
    // Not in Linux itself: what their modules do is not known.
    entry(0x0bd0_0bd0, "Lustre"),
    entry(0x4750_4653, "GPFS"),
    // Clusters: a write waits for the lock that another node has.
    entry(0x7461_636f, "OCFS2"),
    entry(0x0116_1970, "GFS2"),
];

/// Whether files of this type go by workers.
pub fn of_type(f_type: __fsword_t) -> Option<&'static Blocking> {
    // Some are stored with the sign that 32 bits give them.
    let low = f_type & 0xffff_ffff;
    BLOCKING.iter().find(|known| known.f_type == low)
}

/// Only a server can refuse to say: a FUSE server need not know statfs(2).
const UNKNOWN: &Blocking = &entry(0, "a file system that does not say what it is");

/// Whether a file lies on one of them.
pub fn blocking(fd: BorrowedFd<'_>) -> Option<&'static Blocking> {
    match rustix::fs::fstatfs(fd) {
        Ok(statfs) => of_type(statfs.f_type),
        Err(_) => Some(UNKNOWN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_file_systems_do_not_block() {
        for f_type in [
            libc::EXT4_SUPER_MAGIC,
            libc::XFS_SUPER_MAGIC,
            libc::BTRFS_SUPER_MAGIC,
            libc::TMPFS_MAGIC,
            libc::OVERLAYFS_SUPER_MAGIC,
        ] {
            assert_eq!(of_type(f_type), None, "{f_type:x}");
        }
        assert_eq!(
            of_type(libc::NFS_SUPER_MAGIC).map(|known| known.name),
            Some("NFS")
        );
        // As a 32-bit number with a sign.
        let smb2 = of_type(__fsword_t::from(0xfe53_4d42_u32.cast_signed()));
        assert_eq!(smb2.map(|known| known.name), Some("SMB2"));
    }
}
