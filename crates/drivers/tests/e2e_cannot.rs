//! Storage that cannot zero or discard, and storage that fails to: each errno of fallocate(2).
//!
//! Needs root and FUSE.

mod common;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use block::{ErrorKind, Node, Operation};
    use standfast_drivers::file::Discard;
    use standfast_drivers::{FileDriver, FileOptions};
    use testkit::{FuseFile, FuseOp};

    use super::common::{Bench, Op, node, pattern};

    const KIB: u64 = 1 << 10;
    const ERRNO_MAX: i32 = 133;

    fn open(fuse: &FuseFile, direct: bool) -> Arc<Node> {
        let driver = FileDriver::open_file(FileOptions {
            node_name: "disk0".into(),
            filename: fuse.path().to_str().expect("UTF-8").to_owned(),
            cache_direct: direct,
            discard: Discard::Unmap,
            ..FileOptions::default()
        });
        node(driver.expect("opens"))
    }

    /// What QEMU takes for "cannot": of these, EINVAL and EBUSY without remembering it. EPERM and what
    /// follows it are ours: QEMU fails the request. No file system says them for a failure.
    const CANNOT: [i32; 6] = [
        libc::EPERM,
        libc::EBUSY,
        libc::ENODEV,
        libc::EINVAL,
        libc::ENOTTY,
        libc::EOPNOTSUPP,
    ];
    const REMEMBERED: [i32; 2] = [libc::ENOTTY, libc::EOPNOTSUPP];
    /// Tried again for a while.
    const TRANSIENT: [i32; 4] = [libc::EAGAIN, libc::EINTR, libc::ECANCELED, libc::ENOMEM];

    /// GPFS, some FUSE and network file systems say EINVAL, ENODEV or EPERM where they mean that they
    /// cannot. The write-zeroes was held for ever: no `cont` helps.
    #[test]
    fn each_errno_of_fallocate() {
        let bench = Bench::new();
        let fuse = FuseFile::new(256 << 10).expect("a FUSE file system");
        // FUSE takes ENOSYS for itself, for ever.
        for errno in (1..=ERRNO_MAX).filter(|&errno| errno != libc::ENOSYS) {
            let node = open(&fuse, errno % 2 == 0);
            let data = pattern(9, 64 << 10);
            let write = Op::write(16 * KIB, data.clone());
            bench.run(&node, write.clone()).expect("works");
            fuse.fail(FuseOp::Fallocate, errno);
            let cannot = CANNOT.contains(&errno);
            for op in [
                Operation::WriteZeroes { unmap: false },
                Operation::WriteZeroes { unmap: true },
                Operation::Discard,
            ] {
                bench.run(&node, write.clone()).expect("works");
                let asked = fuse.count(FuseOp::Fallocate);
                // Nothing of it fits blocks.
                let (from, bytes) = (20 * KIB + 7, 40 * KIB);
                let result = bench.run(&node, Op::new(op, from, bytes));
                assert!(fuse.count(FuseOp::Fallocate) > asked, "{op} {errno}");
                let got = bench.run(&node, Op::read(16 * KIB, 64 * KIB));
                let got = got.expect("reads");
                let (zeroed, before) = (4 * 1024 + 7..44 * 1024 + 7, 4 * 1024 + 7);
                match result {
                    Ok(_) => {
                        assert!(cannot, "{op} {errno}");
                        if op != Operation::Discard {
                            let end = zeroed.end;
                            assert!(got[zeroed].iter().all(|&byte| byte == 0), "{op} {errno}");
                            assert!(got[..before] == data[..before] && got[end..] == data[end..]);
                        } else {
                            assert!(got == data, "nothing was done");
                        }
                    }
                    Err(error) => {
                        assert!(!cannot, "{op} {errno}: {error}");
                        assert_eq!((error.errno(), error.kind()), {
                            (errno, ErrorKind::of_errno(errno))
                        });
                    }
                }
            }
            let attempts = if TRANSIENT.contains(&errno) { 11 } else { 1 };
            let asked = fuse.count(FuseOp::Fallocate);
            let stats = node.discard_stats().expect("kept");
            assert_eq!((stats.nb_ok, stats.nb_failed, stats.bytes_ok), (0, 1, 0));
            // Whether it can the next time is asked, if it is worth it.
            let again = bench.run(&node, Op::zeroes(64 * KIB, 4 * KIB, true));
            assert_eq!(again.is_ok(), cannot, "{errno}");
            let expected = match () {
                () if REMEMBERED.contains(&errno) => 0,
                () if cannot => 2,
                () => attempts,
            };
            assert_eq!(fuse.count(FuseOp::Fallocate) - asked, expected, "{errno}");
            fuse.fail(FuseOp::Fallocate, 0);
            for op in [
                Op::zeroes(20 * KIB, 4 * KIB, true),
                Op::discard(20 * KIB, 4 * KIB),
            ] {
                bench.run(&node, op).expect("works");
            }
        }
    }

    /// Zeroes that are written are writes: they fail as such.
    #[test]
    fn written_zeroes_fail_as_writes_do() {
        let bench = Bench::new();
        let fuse = FuseFile::new(256 << 10).expect("a FUSE file system");
        let node = open(&fuse, true);
        fuse.fail(FuseOp::Fallocate, libc::EINVAL);
        for errno in [libc::ENOSPC, libc::EIO] {
            fuse.fail(FuseOp::Write, errno);
            for unmap in [false, true] {
                let error = bench.run(&node, Op::zeroes(0, 8 * KIB, unmap));
                assert_eq!(error.expect_err("fails").errno(), errno);
            }
        }
        fuse.fail(FuseOp::Write, 0);
        bench
            .run(&node, Op::zeroes(0, 8 * KIB, true))
            .expect("written");
    }

    /// A kernel that does not know: FUSE asks once and says EOPNOTSUPP itself from then on.
    #[test]
    fn enosys() {
        let bench = Bench::new();
        let fuse = FuseFile::new(256 << 10).expect("a FUSE file system");
        let node = open(&fuse, true);
        let data = pattern(1, 64 << 10);
        bench.run(&node, Op::write(0, data)).expect("works");
        fuse.fail(FuseOp::Fallocate, libc::ENOSYS);
        bench.run(&node, Op::discard(0, 4 * KIB)).expect("advice");
        for unmap in [false, true] {
            let zeroes = Op::zeroes(8 * KIB, 8 * KIB, unmap);
            bench.run(&node, zeroes).expect("written");
        }
        let got = bench.run(&node, Op::read(8 * KIB, 8 * KIB)).expect("reads");
        assert!(got.iter().all(|&byte| byte == 0));
        assert!(!node.driver().limits().discard);
        bench.run(&node, Op::discard(0, 4 * KIB)).expect("nothing");
    }

    /// All of it once more, without io_uring.
    #[test]
    fn again_on_threads() {
        testkit::engine::again_on_threads();
    }
}
