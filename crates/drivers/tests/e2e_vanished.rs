//! `host_device` on devices that shrink, grow and go, and `file` on files that others truncate.
//!
//! Needs root and loop devices.

mod common;

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::{Duration, Instant};

    use block::{BlockError, ErrorKind, Io, Node, OwnedBuffer};
    use standfast_drivers::file::Discard;
    use standfast_drivers::{FileDriver, FileOptions};
    use testkit::{LoopDevice, Tmpfs};

    use super::common::{Bench, Op, node, pattern};

    const MIB: u64 = 1 << 20;

    /// A device, and the file below that gives it its size.
    struct Disk {
        file: tempfile::NamedTempFile,
        device: LoopDevice,
    }

    impl Disk {
        fn new(bytes: u64) -> Self {
            let file = tempfile::NamedTempFile::new().expect("a temporary file");
            file.as_file().set_len(bytes).expect("sparse");
            let device = LoopDevice::new(file.path(), false).expect("a loop device");
            Self { file, device }
        }

        fn resize(&self, bytes: u64) {
            self.file.as_file().set_len(bytes).expect("sparse");
            self.device.update_size().expect("losetup -c");
        }

        fn open(&self, direct: bool) -> Arc<Node> {
            let path = self.device.path().to_str().expect("ASCII");
            node(FileDriver::open_host_device(options(path, direct)).expect("opens"))
        }
    }

    fn options(path: &str, direct: bool) -> FileOptions {
        FileOptions {
            node_name: "disk0".into(),
            filename: path.to_owned(),
            cache_direct: direct,
            discard: Discard::Unmap,
            ..FileOptions::default()
        }
    }

    fn data(bytes: u64) -> Vec<u8> {
        pattern(5, usize::try_from(bytes).expect("small"))
    }

    fn cause(error: &BlockError) -> (ErrorKind, i32) {
        (error.kind(), error.errno())
    }

    /// Whoever writes to what is not there any more hears ENOSPC from Linux. That was reported as
    /// `nospace`, and a manager extended a healthy volume for ever.
    #[test]
    fn what_a_device_has_lost_is_gone_and_not_for_want_of_space() {
        let bench = Bench::new();
        const GONE: ErrorKind = ErrorKind::BackingGone;
        for (direct, left) in [(true, 0), (true, MIB), (false, 0), (false, MIB)] {
            let disk = Disk::new(16 * MIB);
            let node = disk.open(direct);
            let whole = Op::write(0, data(4 * MIB));
            bench.run(&node, whole.clone()).expect("all is well");
            bench.run(&node, Op::flush()).expect("all is well");
            disk.resize(left);
            // Across the end, and far beyond.
            for at in [MIB - 4096, 8 * MIB] {
                let failed = |op| bench.run(&node, op).expect_err("not there");
                let error = failed(Op::write(at, data(8192)));
                assert_eq!(cause(&error), (GONE, libc::ENOSPC), "{error}");
                let error = failed(Op::read(at, 8192));
                assert_eq!(cause(&error), (GONE, libc::EIO), "{error}");
                for unmap in [false, true] {
                    let error = failed(Op::zeroes(at, 8192, unmap));
                    assert_eq!(cause(&error), (GONE, libc::ENOSPC), "{unmap} {error}");
                }
                let error = failed(Op::discard(at, 8192));
                assert_eq!(cause(&error), (GONE, libc::EINVAL), "{error}");
            }
            let stats = node.discard_stats().expect("kept");
            assert_eq!((stats.nb_ok, stats.nb_failed), (0, 2));
            if left > 0 {
                let half = MIB / 2;
                bench
                    .run(&node, Op::write(half, data(4096)))
                    .expect("inside");
                let got = bench.run(&node, Op::read(half, 4096)).expect("inside");
                assert!(got == data(4096));
            }
            // It is back.
            disk.resize(16 * MIB);
            for op in [
                whole,
                Op::zeroes(MIB, 8192, true),
                Op::discard(8 * MIB, 8192),
                Op::read(8 * MIB, 8192),
                Op::flush(),
            ] {
                bench.run(&node, op).expect("as before");
            }
            assert!(node.driver().limits().discard && node.driver().limits().unmap_zeroes);
        }
    }

    /// A hole is punched as far as the device reaches, and Linux calls that a success: what comes
    /// back later is not zeroes.
    #[test]
    fn zeroes_reach_as_far_as_they_should() {
        let bench = Bench::new();
        let disk = Disk::new(4 * MIB);
        let node = disk.open(true);
        bench
            .run(&node, Op::write(0, data(4 * MIB)))
            .expect("written");
        disk.resize(2 * MIB);
        for unmap in [false, true] {
            let error = bench.run(&node, Op::zeroes(MIB, 2 * MIB, unmap));
            let error = error.expect_err("half of it is not there");
            assert_eq!(cause(&error), (ErrorKind::BackingGone, libc::ENOSPC));
        }
        disk.resize(4 * MIB);
        bench
            .run(&node, Op::zeroes(MIB, 2 * MIB, true))
            .expect("again");
        let got = bench.run(&node, Op::read(MIB, 2 * MIB)).expect("read");
        assert!(got.iter().all(|&byte| byte == 0));
    }

    /// A format on a volume: what lies beyond an end that has not moved is want of space.
    #[test]
    fn beyond_an_end_that_has_not_moved_there_is_no_space() {
        let bench = Bench::new();
        let disk = Disk::new(MIB);
        let node = disk.open(true);
        // Nobody checks the range: a format may write beyond the end of its file.
        let beyond = |at: u64| {
            let driver = Arc::clone(&node);
            let run = move || async move {
                let mut own = OwnedBuffer::new(4096).expect("memory");
                own.fill(7);
                driver.driver().submit(Io::write(at, own.lend())).await
            };
            bench.handle().run_blocking(run).expect("the iothread runs")
        };
        for at in [MIB, 2 * MIB] {
            let error = beyond(at).expect_err("no space");
            assert_eq!(cause(&error), (ErrorKind::NoSpace, libc::ENOSPC));
        }
        disk.resize(4 * MIB);
        beyond(2 * MIB).expect("it has grown");
        let error = beyond(4 * MIB).expect_err("no space");
        assert_eq!(cause(&error), (ErrorKind::NoSpace, libc::ENOSPC));
        disk.resize(MIB);
        let error = beyond(2 * MIB).expect_err("it was there");
        assert_eq!(cause(&error), (ErrorKind::BackingGone, libc::ENOSPC));
        // That is how it shall be.
        node.resize(MIB).expect("the real size");
        let error = beyond(2 * MIB).expect_err("no space");
        assert_eq!(cause(&error), (ErrorKind::NoSpace, libc::ENOSPC));
    }

    /// A thin pool that is full, by a file system that is.
    #[test]
    fn inside_an_unchanged_size_there_is_no_space() {
        let bench = Bench::new();
        let tmpfs = Tmpfs::new(MIB).expect("a tmpfs");
        let path = tmpfs.path().join("image");
        File::create(&path)
            .and_then(|file| file.set_len(64 * MIB))
            .expect("sparse");
        let device = LoopDevice::new(&path, true).expect("a loop device");
        let name = device.path().to_str().expect("ASCII");
        let node = node(FileDriver::open_host_device(options(name, true)).expect("opens"));
        let write = Op::write(0, data(4 * MIB));
        let error = bench.run(&node, write.clone()).expect_err("full");
        assert_eq!(cause(&error), (ErrorKind::NoSpace, libc::ENOSPC), "{error}");
        tmpfs.resize(128 * MIB).expect("extended");
        bench.run(&node, write).expect("the same again");
    }

    /// A size that changes while a write fails is not called want of space, as far as anybody can know:
    /// Linux tells nobody that a size has changed.
    ///
    /// A write that has found the small size twice, each time before the large one was there to be
    /// asked for, has seen all that a full thin pool would show. That takes three changes during
    /// one write. One that has passed the first look at the size, and finds the device smaller, hears EIO
    /// instead, which is no want of space whatever the size is by then; that takes two.
    #[test]
    fn a_size_that_changes_all_the_time_is_no_want_of_space() {
        const JUDGED: u32 = 50;
        let bench = Bench::new();
        let disk = Disk::new(16 * MIB);
        let node = disk.open(true);
        let (begun, ended) = (AtomicU32::new(0), AtomicU32::new(0));
        let write = || {
            let before = ended.load(Ordering::SeqCst);
            let writes = (8..16).map(|n| Op::write(n * MIB, data(65536))).collect();
            let results = bench.run_all(&node, writes);
            let changes = begun.load(Ordering::SeqCst) - before;
            let mut judged = 0;
            for error in results.into_iter().filter_map(Result::err) {
                match error.kind() {
                    ErrorKind::Failed if changes >= 2 => {}
                    ErrorKind::NoSpace if changes >= 3 => {}
                    kind => {
                        assert_eq!(kind, ErrorKind::BackingGone, "{changes} changes: {error}");
                        judged += 1;
                    }
                }
            }
            judged
        };
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let deadline = Instant::now() + Duration::from_secs(120);
                let mut judged = 0;
                while judged < JUDGED {
                    assert!(Instant::now() < deadline, "it never meets the end");
                    judged += write();
                }
            });
            for bytes in [4 * MIB, 16 * MIB].into_iter().cycle() {
                if writer.is_finished() {
                    break;
                }
                begun.fetch_add(1, Ordering::SeqCst);
                disk.resize(bytes);
                ended.fetch_add(1, Ordering::SeqCst);
            }
        });
    }

    /// The page cache dropped without a word what it was to write beyond the end of a device that had
    /// shrunk, and the flush was called a success: what the guest believed to be safe was lost.
    #[test]
    fn a_flush_of_what_a_device_has_lost() {
        let bench = Bench::new();
        for left in [0, MIB] {
            let disk = Disk::new(16 * MIB);
            let node = disk.open(false);
            let write = Op::write(8 * MIB, data(65536));
            bench.run(&node, write).expect("the page cache takes it");
            disk.resize(left);
            let error = bench.run(&node, Op::flush()).expect_err("lost");
            assert_eq!(error.kind(), ErrorKind::BackingGone, "{error}");
            let blocker = node.cont_blocker();
            assert!(blocker.is_some_and(|text| text.contains("'disk0' has lost data")));
        }
        // Nothing is lost of what lies before the end, or was flushed.
        let disk = Disk::new(16 * MIB);
        let node = disk.open(false);
        let at = |at| Op::write(at, data(65536));
        for op in [at(8 * MIB), Op::flush(), at(MIB - 65536)] {
            bench.run(&node, op).expect("all is well");
        }
        disk.resize(MIB);
        bench.run(&node, Op::flush()).expect("all of it is there");
        // What is taken over is meant.
        disk.resize(4 * MIB);
        bench.run(&node, at(2 * MIB)).expect("inside");
        disk.resize(MIB);
        node.resize(MIB).expect("the real size");
        bench.run(&node, Op::flush()).expect("as it was meant");
    }

    #[test]
    fn a_file_that_somebody_truncates_is_not_read_as_zeroes() {
        let bench = Bench::new();
        for direct in [false, true] {
            // Beside the tests, and on a tmpfs, where reads take another way.
            let tmpfs = Tmpfs::new(8 * MIB).expect("a tmpfs");
            let other = tempfile::tempdir().expect("a directory");
            for dir in [tmpfs.path(), other.path()] {
                let path = dir.join("image");
                std::fs::write(&path, data(MIB)).expect("space");
                let name = path.to_str().expect("UTF-8");
                let node = node(FileDriver::open_file(options(name, direct)).expect("opens"));
                let file = File::options().write(true).open(&path).expect("opens");
                file.set_len(MIB / 2).expect("truncated");
                for at in [MIB / 2 - 4096, MIB / 2, MIB - 8192] {
                    let error = bench.run(&node, Op::read(at, 8192));
                    let error = error.expect_err("not there");
                    assert_eq!(cause(&error), (ErrorKind::BackingGone, libc::EIO));
                    assert!(error.to_string().contains("has been truncated"), "{error}");
                }
                bench.run(&node, Op::read(0, MIB / 2)).expect("still there");
            }
        }
    }

    /// All of it once more, without io_uring.
    #[test]
    fn again_on_threads() {
        testkit::engine::again_on_threads();
    }
}
