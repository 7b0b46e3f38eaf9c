//! Nodes that become longer by what a parent writes beyond their end: files, also full ones, and devices.
//!
//! Needs root, tmpfs and loop devices.

mod common;

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::path::Path;
    use std::process::Command;
    use std::sync::Arc;

    use block::{ErrorKind, Operation};
    use standfast_drivers::FileDriver;
    use testkit::{LoopDevice, Tmpfs};

    use super::common::format::{above, data, file, options};
    use super::common::{Bench, Op, node};

    const MIB: u64 = 1 << 20;

    /// What is reserved reads as zeroes, is longer than was asked for, and is written to without becoming longer. On storage
    /// that has nothing to gain by it nothing happens; one that is full says so to the write alone.
    #[test]
    fn a_file_is_made_longer_ahead() {
        let disk = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let tmpfs = Tmpfs::new(8 * MIB).expect("a tmpfs");
        for (dir, direct, length, reserves) in [
            (disk, true, 8192, true),
            (disk, true, 0, true),
            (disk, false, 8192, false),
            (tmpfs.path(), false, 8192, false),
            // Its last block is written through the page cache.
            (disk, true, 8192 + 100, false),
        ] {
            let image = tempfile::NamedTempFile::new_in(dir).expect("a file");
            image.as_file().set_len(length).expect("sparse");
            let file = file(image.path(), direct);
            let format = above(&file, true);
            let bench = Bench::new();
            let reserve = |end: u64| {
                let format = Arc::clone(&format);
                let reserve = move || async move {
                    for child in format.driver().children() {
                        child.reserve(end).await;
                    }
                };
                bench.handle().run_blocking(reserve).expect("an iothread");
                let real = image.as_file().metadata().expect("stat").len();
                let node = real.next_multiple_of(512);
                assert_eq!(file.driver().length(), node, "{direct} {length}");
                real
            };
            let after = reserve(100_000);
            assert_eq!(after > 100_000, reserves, "{direct} {length}");
            if !reserves {
                assert_eq!(after, length);
                continue;
            }
            assert!(
                (100_000 + MIB..100_000 + 2 * MIB).contains(&after),
                "{after}"
            );
            assert_eq!(reserve(100_001), after, "it is longer already");
            let write = Op::write(after - 8192, data(1, 4096));
            bench.run(&format, write).expect("space");
            let mut expected = vec![0; usize::try_from(after).expect("small")];
            let at = expected.len() - 8192;
            expected[at..at + 4096].copy_from_slice(&data(1, 4096));
            let read = bench.run(&format, Op::read(0, after)).expect("read");
            assert!(read == expected);
            assert_eq!(file.driver().length(), after);
        }
    }

    /// Two iothreads write pieces of odd sizes that share blocks, each beyond what was the end: all of
    /// them are there, and node and file are equally long at any time.
    #[test]
    fn two_iothreads_make_a_file_longer() {
        const PIECE: u64 = 1500;
        const PIECES: u64 = 120;
        let tmpfs = Tmpfs::new(8 * MIB).expect("a tmpfs");
        let disk = Path::new(env!("CARGO_TARGET_TMPDIR"));
        for (dir, direct) in [(tmpfs.path(), false), (disk, false), (disk, true)] {
            for length in [0, 4100] {
                let image = tempfile::NamedTempFile::new_in(dir).expect("a file");
                image.as_file().set_len(length).expect("sparse");
                let file = file(image.path(), direct);
                let format = above(&file, true);
                std::thread::scope(|scope| {
                    for first in 0..2 {
                        let format = &format;
                        scope.spawn(move || {
                            let bench = Bench::new();
                            for piece in (first..PIECES).step_by(2) {
                                let mut write = Op::write(piece * PIECE, data(piece, PIECE));
                                write.fua = piece % 16 == 0;
                                bench.run(format, write).expect("space");
                            }
                        });
                    }
                });
                let bench = Bench::new();
                let mut expected: Vec<u8> =
                    (0..PIECES).flat_map(|piece| data(piece, PIECE)).collect();
                let end = PIECES * PIECE;
                let real = image.as_file().metadata().expect("stat").len();
                assert_eq!(file.driver().length(), real.next_multiple_of(512));
                assert!((end..end + 4096).contains(&real), "{real}");
                // Beyond the end there are zeroes, for whoever crosses it and whoever begins there.
                expected.resize(expected.len() + 10_000, 0);
                let read = Op::read(0, end + 10_000);
                assert!(bench.run(&format, read).expect("read") == expected);
                let beyond = bench.run(&format, Op::read(1 << 30, 4096)).expect("read");
                assert_eq!(beyond, [0; 4096]);
                let discard = Op::discard(1 << 30, 4096);
                bench.run(&format, discard).expect("nothing to do");
                assert_eq!(file.driver().length(), real.next_multiple_of(512));
                // Zeroes make it longer too; and the next one finds it so.
                let zeroes = Op::zeroes(end + 100_000, 3 * MIB / 2 + 77, true);
                bench.run(&format, zeroes).expect("space");
                let grown = file.driver().length();
                assert!(grown >= end + 100_000 + 3 * MIB / 2 + 77);
                let read = Op::read(end, grown - end);
                let zeroes = bench.run(&format, read).expect("read");
                assert!(zeroes.iter().all(|&byte| byte == 0));
                drop((format, file));
                let again = super::common::format::file(image.path(), direct);
                assert_eq!(again.driver().length(), grown);
            }
        }
    }

    #[test]
    fn nobody_grows_what_he_may_not_resize() {
        let bench = Bench::new();
        let image = tempfile::NamedTempFile::new().expect("a file");
        image.as_file().set_len(4096).expect("sparse");
        let file = file(image.path(), false);
        let format = above(&file, false);
        for op in [
            Op::write(4000, data(1, 100)),
            Op::write(8192, data(1, 512)),
            Op::zeroes(4096, 512, false),
        ] {
            let error = bench.run(&format, op.clone()).expect_err("refused");
            assert_eq!(error.errno(), libc::EINVAL);
            // Nor is the node asked by somebody without an edge, as a client's request is.
            bench.run(&file, op).expect_err("refused");
        }
        bench.run(&file, Op::read(8192, 512)).expect_err("refused");
        bench.run(&format, Op::read(8192, 512)).expect("zeroes");
        assert_eq!(file.driver().length(), 4096);
        assert_eq!(image.as_file().metadata().expect("stat").len(), 4096);
    }

    /// Inside what the node knows a short read is an error as ever, and none of zeroes.
    #[test]
    fn what_was_truncated_is_not_read_as_zeroes() {
        let bench = Bench::new();
        let image = tempfile::NamedTempFile::new().expect("a file");
        image.as_file().set_len(65_536).expect("sparse");
        let format = above(&file(image.path(), false), true);
        bench
            .run(&format, Op::write(65_536, data(1, 4096)))
            .expect("longer");
        image.as_file().set_len(66_000).expect("shorter");
        for read in [Op::read(65_536, 4096), Op::read(65_536, 8192)] {
            let error = bench.run(&format, read).expect_err("truncated");
            assert_eq!(error.kind(), ErrorKind::BackingGone);
        }
        bench.run(&format, Op::read(69_632, 4096)).expect("beyond");
    }

    #[test]
    fn a_full_file_system_keeps_what_was_acknowledged() {
        for direct in [false, true] {
            let bench = Bench::new();
            let tmpfs = Tmpfs::new(MIB).expect("a tmpfs");
            let path = tmpfs.path().join("image");
            File::create(&path).expect("a file");
            let file = file(&path, direct);
            let format = above(&file, true);
            let first = data(1, MIB / 2);
            bench
                .run(&format, Op::write(0, first.clone()))
                .expect("space");
            let second = Op::write(MIB / 2, data(2, MIB));
            for _ in 0..2 {
                let error = bench.run(&format, second.clone()).expect_err("full");
                assert_eq!(error.kind(), ErrorKind::NoSpace);
                assert_eq!(file.driver().length(), MIB / 2);
            }
            let read = Op::read(0, MIB);
            let got = bench.run(&format, read).expect("data, then zeroes");
            assert!(got[..first.len()] == first && got[first.len()..].iter().all(|&b| b == 0));
            tmpfs.resize(4 * MIB).expect("larger");
            bench
                .run(&format, second.clone())
                .expect("the same once more");
            assert_eq!(file.driver().length(), MIB + MIB / 2);
            let got = bench.run(&format, Op::read(MIB / 2, MIB)).expect("read");
            assert!(got == second.data);
        }
    }

    /// A device does not grow by being written to, but somebody may extend it.
    #[test]
    fn a_device_that_is_extended_meanwhile() {
        for direct in [false, true] {
            let bench = Bench::new();
            let dir = tempfile::tempdir().expect("a directory");
            let image = dir.path().join("image");
            let backing = File::create(&image).expect("a file");
            backing.set_len(MIB).expect("sparse");
            let device = LoopDevice::new(&image, false).expect("a loop device");
            let driver = FileDriver::open_host_device(options(device.path(), direct));
            let file = node(driver.expect("opens"));
            let format = above(&file, true);
            let write = Op::write(MIB - 4096, data(3, 8192));
            let error = bench
                .run(&format, write.clone())
                .expect_err("it ends there");
            assert_eq!(error.kind(), ErrorKind::NoSpace);
            assert_eq!(file.driver().length(), MIB);
            backing.set_len(2 * MIB).expect("sparse");
            let status = Command::new("losetup")
                .arg("-c")
                .arg(device.path())
                .status();
            assert!(status.expect("losetup").success());
            bench.run(&format, write.clone()).expect("the same again");
            assert_eq!(file.driver().length(), 2 * MIB);
            let got = bench
                .run(&format, Op::read(MIB - 4096, 8192))
                .expect("read");
            assert!(got == write.data);
            // Of one that has shrunk it is not said that it is full.
            backing.set_len(MIB).expect("shorter");
            let status = Command::new("losetup")
                .arg("-c")
                .arg(device.path())
                .status();
            assert!(status.expect("losetup").success());
            let beyond = Op::new(Operation::WriteZeroes { unmap: false }, 2 * MIB, 4096);
            let error = bench.run(&format, beyond).expect_err("gone");
            assert_eq!(error.kind(), ErrorKind::BackingGone);
        }
    }

    /// All of it once more, without io_uring.
    #[test]
    fn again_on_threads() {
        testkit::engine::again_on_threads();
    }
}
