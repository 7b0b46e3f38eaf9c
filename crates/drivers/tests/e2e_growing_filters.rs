//! Filters whose child becomes longer by what is written beyond its end: `blkdebug` and `quota`, which counts
//! it.
//!
//! Needs root, tmpfs and a loop device.

mod common;

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::path::Path;
    use std::process::Command;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use block::fault::{InjectError, IoType};
    use block::{ErrorKind, Node};
    use standfast_drivers::quota::LENGTH_MAX;
    use standfast_drivers::{
        Blkdebug, BlkdebugOptions, FileDriver, NullCo, NullOptions, Quota, QuotaOptions,
    };
    use testkit::{LoopDevice, Tmpfs};

    use super::common::format::{above, data, file, filter, options};
    use super::common::{Bench, Op};

    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;

    fn quota(file: &Arc<Node>, limit: u64, resize: bool) -> Arc<Node> {
        let quota = pollster::block_on(Quota::open(QuotaOptions {
            node_name: "quota0".into(),
            file: Arc::clone(file),
            limit,
        }));
        filter("quota0", quota.expect("opens"), resize)
    }

    fn allocated(quota: &Node) -> u64 {
        quota.allocation_limit().expect("it has one").quota().1
    }

    fn set_limit(quota: &Node, limit: u64) {
        let quota = quota.allocation_limit().expect("it has one");
        quota.set_quota(limit).expect("any limit");
    }

    /// What a quota finds that is opened now.
    fn found(image: &Path, direct: bool) -> u64 {
        allocated(&quota(&file(image, direct), 0, false))
    }

    /// Calls `f` with an empty image on each kind of file system, buffered or not.
    fn on_each(f: impl Fn(&tempfile::NamedTempFile, bool)) {
        let tmpfs = Tmpfs::new(16 * MIB).expect("a tmpfs");
        let disk = Path::new(env!("CARGO_TARGET_TMPDIR"));
        for (dir, direct) in [(tmpfs.path(), false), (disk, false), (disk, true)] {
            f(
                &tempfile::NamedTempFile::new_in(dir).expect("a file"),
                direct,
            );
        }
    }

    fn length(image: &tempfile::NamedTempFile) -> u64 {
        image.as_file().metadata().expect("stat").len()
    }

    #[test]
    fn what_makes_it_longer_counts() {
        let bench = Bench::new();
        on_each(|image, direct| {
            let file = file(image.path(), direct);
            let quota = quota(&file, 64 * KIB, true);
            let format = above(&quota, true);
            let steps = [
                // What, how long the node is then, and what is allocated.
                (Op::write(0, data(1, 12 * KIB)), 12 * KIB, 12 * KIB),
                (Op::write(8 * KIB, data(2, 8 * KIB)), 16 * KIB, 16 * KIB),
                // What is left out is a hole, until it is written.
                (Op::write(24 * KIB, data(3, 8 * KIB)), 32 * KIB, 24 * KIB),
                (Op::write(16 * KIB, data(4, 4 * KIB)), 32 * KIB, 28 * KIB),
                (Op::zeroes(32 * KIB, 8 * KIB, true), 40 * KIB, 36 * KIB),
                (Op::discard(1 << 40, 4 * KIB), 40 * KIB, 36 * KIB),
            ];
            for (op, length, counted) in steps {
                bench.run(&format, op.clone()).expect("space");
                assert_eq!(quota.driver().length(), length, "{op:?}");
                assert_eq!(allocated(&quota), counted, "{op:?}");
            }
            let more = Op::write(36 * KIB, data(5, 64 * KIB));
            for _ in 0..2 {
                let error = bench.run(&format, more.clone()).expect_err("too much");
                assert_eq!(error.kind(), ErrorKind::NoSpace);
                assert_eq!(
                    error.to_string(),
                    "node 'quota0' at 36864+65536: write: quota reached: 36864 of 65536 bytes are \
                     allocated, and the request needs 61440 more"
                );
                assert_eq!(
                    (file.driver().length(), length(image)),
                    (40 * KIB, 40 * KIB)
                );
            }
            set_limit(&quota, 96 * KIB);
            bench.run(&format, more).expect("the same once more");
            assert_eq!(
                (file.driver().length(), length(image)),
                (100 * KIB, 100 * KIB)
            );
            assert_eq!(allocated(&quota), 96 * KIB);
            bench
                .run(&format, Op::write(0, data(1, 8 * KIB)))
                .expect("allocates nothing");
            let mut expected = [data(1, 8 * KIB), data(2, 8 * KIB), data(4, 4 * KIB)].concat();
            expected.resize(24 << 10, 0);
            expected.extend(data(3, 8 * KIB));
            expected.resize(36 << 10, 0);
            expected.extend(data(5, 64 * KIB));
            let read = Op::read(0, 100 * KIB);
            assert!(bench.run(&format, read).expect("read") == expected);
            drop((format, quota, file));
            assert_eq!(
                found(image.path(), direct),
                96 * KIB,
                "what there really is"
            );
        });
    }

    /// Two iothreads write beyond the end at once, more than the limit allows: as many have succeeded as fit,
    /// and what is counted is what is there.
    #[test]
    fn two_iothreads_up_to_the_limit() {
        const PIECE: u64 = 8 << 10;
        const PIECES: u64 = 120;
        const FIT: u64 = 100;
        on_each(|image, direct| {
            let file = file(image.path(), direct);
            let quota = quota(&file, FIT * PIECE, true);
            let format = above(&quota, true);
            let written = AtomicU64::new(0);
            std::thread::scope(|scope| {
                for first in 0..2 {
                    let (format, written) = (&format, &written);
                    scope.spawn(move || {
                        let bench = Bench::new();
                        for piece in (first..PIECES).step_by(2) {
                            let write = Op::write(piece * PIECE, data(piece, PIECE));
                            match bench.run(format, write) {
                                Ok(_) => _ = written.fetch_add(1, Ordering::SeqCst),
                                Err(error) => assert_eq!(error.kind(), ErrorKind::NoSpace),
                            }
                        }
                    });
                }
            });
            assert_eq!(written.load(Ordering::SeqCst), FIT);
            assert_eq!(allocated(&quota), FIT * PIECE);
            let end = file.driver().length();
            assert!((FIT * PIECE..=PIECES * PIECE).contains(&end), "{end}");
            let all = Bench::new().run(&format, Op::read(0, PIECES * PIECE));
            let all = all.expect("read");
            let pieces = (0..PIECES).zip(all.chunks(8 << 10));
            let there = pieces.filter(|(piece, got)| **got == data(*piece, PIECE));
            assert_eq!(there.count() as u64, FIT);
            drop((format, quota, file));
            assert_eq!(found(image.path(), direct), FIT * PIECE);
        });
    }

    fn debug(name: &str, image: &Arc<Node>) -> Arc<Node> {
        let debug = Blkdebug::new(BlkdebugOptions {
            node_name: name.into(),
            image: Arc::clone(image),
            inject_error: vec![InjectError {
                iotype: Some(IoType::Write),
                errno: libc::EIO,
                ..InjectError::default()
            }],
            set_state: Vec::new(),
            align: None,
        });
        filter(name, debug.expect("opens"), true)
    }

    /// A fault above the quota and one below it, which has counted the write already.
    #[test]
    fn what_fails_makes_nothing_longer_and_does_not_count() {
        let bench = Bench::new();
        let image = tempfile::NamedTempFile::new().expect("a file");
        let file = file(image.path(), false);
        let below = debug("below", &file);
        let quota = quota(&below, MIB, true);
        let top = debug("above", &quota);
        let format = above(&top, true);
        let write = Op::write(4096, data(1, 4096));
        for debug in [&top, &below] {
            let error = bench.run(&format, write.clone()).expect_err("injected");
            assert_eq!(error.errno(), libc::EIO);
            assert_eq!((top.driver().length(), length(&image)), (0, 0));
            assert_eq!(allocated(&quota), 0);
            debug.fault_plan().expect("it has one").clear_all();
        }
        bench.run(&format, write).expect("space");
        assert_eq!((top.driver().length(), length(&image)), (8192, 8192));
        assert_eq!(allocated(&quota), 4096);
    }

    #[test]
    fn nobody_grows_what_cannot_be_longer() {
        let bench = Bench::new();
        let image = tempfile::NamedTempFile::new().expect("a file");
        image.as_file().set_len(4096).expect("sparse");
        let file = file(image.path(), false);
        let null = Node::new("null0", Box::new(NullCo::new(NullOptions::default())));
        for (below, resize, errno) in [(&file, false, libc::EINVAL), (&null, true, libc::ENOSPC)] {
            let quota = quota(below, MIB, resize);
            let end = quota.driver().length();
            let write = Op::write(end, data(1, 4096));
            let refused = bench.run(&above(&quota, true), write.clone());
            assert_eq!(refused.expect_err("refused").errno(), errno);
            bench
                .run(&above(&quota, false), write)
                .expect_err("refused");
            assert_eq!((allocated(&quota), quota.driver().length()), (0, end));
        }
        let quota = quota(&file, MIB, true);
        let zeroes = Op::zeroes(LENGTH_MAX, 4096, false);
        let error = bench
            .run(&above(&quota, true), zeroes)
            .expect_err("too long");
        assert_eq!(error.errno(), libc::EFBIG);
        assert_eq!((allocated(&quota), length(&image)), (0, 4096));
    }

    /// What an extended device has is allocated, as what it had before, wherever the write was that has found
    /// it.
    #[test]
    fn all_of_a_device_that_was_extended_counts() {
        let bench = Bench::new();
        let dir = tempfile::tempdir().expect("a directory");
        let image = dir.path().join("image");
        let backing = File::create(&image).expect("a file");
        backing.set_len(MIB).expect("sparse");
        let device = LoopDevice::new(&image, false).expect("a loop device");
        let driver = FileDriver::open_host_device(options(device.path(), true));
        let file = Node::new("file0", Box::new(driver.expect("opens")));
        let quota = quota(&file, 8 * MIB, true);
        let format = above(&quota, true);
        assert_eq!(allocated(&quota), MIB);
        for (length, at) in [(2, 3 * MIB / 2), (3, 2 * MIB), (4, 4 * MIB - 8192)] {
            let write = Op::write(at, data(length, 8192));
            let error = bench
                .run(&format, write.clone())
                .expect_err("it ends there");
            assert_eq!(error.kind(), ErrorKind::NoSpace);
            assert_eq!(allocated(&quota), (length - 1) * MIB);
            backing.set_len(length * MIB).expect("sparse");
            let status = Command::new("losetup")
                .arg("-c")
                .arg(device.path())
                .status();
            assert!(status.expect("losetup").success());
            bench.run(&format, write).expect("the same again");
            assert_eq!(quota.driver().length(), length * MIB);
            assert_eq!(allocated(&quota), length * MIB);
        }
    }
}
