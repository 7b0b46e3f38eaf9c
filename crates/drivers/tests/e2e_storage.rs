//! `file` and `host_device` on storage that really fails: a full tmpfs, and loop devices on one.
//!
//! Needs root, tmpfs and loop devices.

mod common;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::sync::Arc;

    use block::{ErrorKind, Node, Operation};
    use standfast_drivers::file::Discard;
    use standfast_drivers::{FileDriver, FileOptions};

    use super::common::{Bench, Op, node, pattern};

    const MIB: u64 = 1 << 20;

    fn command(program: &str, args: &[&str]) -> String {
        let output = Command::new(program)
            .args(args)
            .output()
            .unwrap_or_else(|error| panic!("{program} is needed for this test: {error}"));
        assert!(output.status.success(), "{program} {args:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// A tmpfs of limited size; unmounted when dropped.
    struct Tmpfs {
        dir: tempfile::TempDir,
    }

    impl Tmpfs {
        fn mount(size: u64) -> Self {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let path = dir.path().to_str().expect("ASCII");
            let options = format!("size={size}");
            command(
                "mount",
                &["-t", "tmpfs", "-o", &options, "standfast-test", path],
            );
            Self { dir }
        }

        fn extend(&self, size: u64) {
            let options = format!("remount,size={size}");
            let path = self.dir.path().to_str().expect("ASCII");
            command("mount", &["-o", &options, path]);
        }

        fn image(&self, length: u64) -> PathBuf {
            let path = self.dir.path().join("image");
            let file = std::fs::File::create(&path).expect("a file");
            file.set_len(length).expect("sparse");
            path
        }
    }

    impl Drop for Tmpfs {
        fn drop(&mut self) {
            let _ = Command::new("umount")
                .arg("-l")
                .arg(self.dir.path())
                .status();
        }
    }

    /// A loop device; detached when dropped.
    struct Loop {
        device: String,
    }

    impl Loop {
        fn attach(file: &Path, sector_size: u32) -> Self {
            let sector_size = sector_size.to_string();
            let file = file.to_str().expect("ASCII");
            let args = ["--find", "--show", "--sector-size", &sector_size, file];
            Self {
                device: command("losetup", &args),
            }
        }

        fn open(&self, direct: bool) -> Arc<Node> {
            let driver = FileDriver::open_host_device(FileOptions {
                node_name: "disk0".into(),
                filename: self.device.clone(),
                cache_direct: direct,
                discard: Discard::Unmap,
                ..FileOptions::default()
            });
            node(driver.expect("opens"))
        }
    }

    impl Drop for Loop {
        fn drop(&mut self) {
            let _ = Command::new("losetup").args(["-d", &self.device]).status();
        }
    }

    fn data(bytes: u64) -> Vec<u8> {
        pattern(3, usize::try_from(bytes).expect("small"))
    }

    #[test]
    fn a_full_filesystem_is_enospc_until_it_is_extended() {
        let bench = Bench::new();
        for direct in [false, true] {
            let tmpfs = Tmpfs::mount(MIB);
            let image = tmpfs.image(8 * MIB);
            let driver = FileDriver::open_file(FileOptions {
                node_name: "disk0".into(),
                filename: image.to_str().expect("ASCII").to_owned(),
                cache_direct: direct,
                ..FileOptions::default()
            });
            let disk = node(driver.expect("opens"));
            assert_eq!(
                disk.driver().info().warning,
                None,
                "on a tmpfs writes fail at once"
            );
            let write = Op::write(MIB / 2, data(2 * MIB));
            let error = bench.run(&disk, write.clone()).expect_err("full");
            assert_eq!(error.kind(), ErrorKind::NoSpace);
            assert_eq!(
                error.to_string(),
                "node 'disk0' at 524288+2097152: write: No space left on device"
            );
            let zeroes = bench.run(&disk, Op::zeroes(4 * MIB, 2 * MIB, false));
            assert_eq!(zeroes.expect_err("full").kind(), ErrorKind::NoSpace);
            tmpfs.extend(16 * MIB);
            bench.run(&disk, write.clone()).expect("the same again");
            bench
                .run(&disk, Op::zeroes(4 * MIB, 2 * MIB, false))
                .expect("written, because tmpfs cannot zero a range");
            let got = bench.run(&disk, Op::read(MIB / 2, 2 * MIB)).expect("read");
            assert!(got == write.data);
        }
    }

    /// The page cache takes the writes, the storage below does not: only the flush fails, and only
    /// once, as far as the kernel is concerned.
    #[test]
    fn a_failed_flush_of_a_buffered_node_stays_failed() {
        let bench = Bench::new();
        let tmpfs = Tmpfs::mount(MIB);
        let image = tmpfs.image(64 * MIB);
        let device = Loop::attach(&image, 512);
        let disk = device.open(false);
        assert!(disk.driver().info().warning.is_some());
        bench.run(&disk, Op::flush()).expect("nothing to lose yet");
        assert_eq!(disk.cont_blocker(), None);

        bench
            .run(&disk, Op::write(0, data(4 * MIB)))
            .expect("the page cache takes it");
        // Of flushes at the same time each must hear of it.
        let results = bench.run_all(&disk, vec![Op::flush(), Op::flush(), Op::flush()]);
        let errnos: Vec<i32> = results
            .into_iter()
            .map(|result| result.expect_err("lost").errno())
            .collect();
        assert_eq!(errnos, [errnos[0]; 3]);

        // The cause is gone, the data is too: the kernel would say that all is well.
        tmpfs.extend(128 * MIB);
        let mut fua = Op::write(32 * MIB, data(4096));
        fua.fua = true;
        for op in [Op::flush(), fua, Op::flush()] {
            let error = bench.run(&disk, op).expect_err("latched");
            assert_eq!(error.errno(), errnos[0]);
            assert!(
                error.to_string().contains("an earlier flush failed"),
                "{error}"
            );
        }
        let blocker = disk.cont_blocker().expect("refuses");
        assert!(
            blocker.contains("'disk0'") && blocker.contains("x-node-accept-loss"),
            "{blocker}"
        );
        bench
            .run(&disk, Op::write(0, data(4 * MIB)))
            .expect("writes go on");

        let number = disk.latched().expect("it says so").number;
        assert!(!disk.accept_loss(number - 1), "that was another one");
        assert!(disk.accept_loss(u32::MAX));
        assert!(!disk.accept_loss(u32::MAX), "there is no second one");
        assert_eq!(disk.cont_blocker(), None);
        bench.run(&disk, Op::flush()).expect("anew");
    }

    /// Of two exports on one node, a client of the first one had its flush fail, the one of the second
    /// reset its device: that cleared the latch of both, and the first one's next flush succeeded
    /// although its data was lost.
    #[test]
    fn a_reset_client_clears_its_own_latch_only() {
        let bench = Bench::new();
        let tmpfs = Tmpfs::mount(MIB);
        let image = tmpfs.image(64 * MIB);
        let device = Loop::attach(&image, 512);
        let disk = device.open(false);
        let mut write = Op::write(0, data(4 * MIB));
        write.fua = true;
        bench.run(&disk, write.clone()).expect_err("lost");
        tmpfs.extend(128 * MIB);
        bench.run(&disk, write.clone()).expect_err("latched");
        let others = write.clone();
        write.losses_accepted = block::Loss::last();
        bench.run(&disk, write.clone()).expect("anew");
        let error = bench.run(&disk, others).expect_err("still latched");
        assert!(
            error.to_string().contains("an earlier flush failed"),
            "{error}"
        );
        // The next failure counts for both.
        tmpfs.extend(5 * MIB);
        bench
            .run(&disk, Op::write(32 * MIB, data(4 * MIB)))
            .expect("the page cache takes it");
        bench.run(&disk, write.clone()).expect_err("lost again");
        bench.run(&disk, write).expect_err("latched again");
    }

    #[test]
    fn with_cache_direct_the_write_fails_and_flushes_can_be_tried_again() {
        let bench = Bench::new();
        let tmpfs = Tmpfs::mount(MIB);
        let image = tmpfs.image(64 * MIB);
        let device = Loop::attach(&image, 512);
        let disk = device.open(true);
        assert_eq!(disk.driver().info().warning, None);
        let write = Op::write(0, data(4 * MIB));
        let error = bench.run(&disk, write.clone()).expect_err("full");
        // A loop device tells ENOSPC since Linux 4.x, but has been seen to say EIO.
        assert!(
            matches!(error.errno(), libc::ENOSPC | libc::EIO),
            "{error:?}"
        );
        tmpfs.extend(128 * MIB);
        bench.run(&disk, write).expect("the same again");
        bench.run(&disk, Op::flush()).expect("flushed");
        assert_eq!(disk.cont_blocker(), None);
    }

    /// 4 KiB sectors under requests of 512 bytes and less, with every kind of request.
    #[test]
    fn large_sectors_take_small_requests() {
        let bench = Bench::new();
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.as_file().write_all_at(&data(MIB), 0).expect("space");
        let device = Loop::attach(file.path(), 4096);
        for direct in [false, true] {
            let disk = device.open(direct);
            let limits = disk.driver().limits();
            assert_eq!(limits.request_alignment, if direct { 4096 } else { 1 });
            assert!(
                limits.discard && limits.unmap_zeroes,
                "a loop device on a file deallocates"
            );
            let whole = Op::read(0, MIB);
            let mut model = bench.run(&disk, whole.clone()).expect("read");
            for (op, offset, bytes) in [
                (Operation::Write, 512u64, 512u64),
                (Operation::Write, 3, 9000),
                (Operation::WriteZeroes { unmap: true }, 20_000, 30_000),
                (Operation::WriteZeroes { unmap: false }, 100_000, 512),
                (Operation::Write, MIB - 512, 512),
                (Operation::WriteZeroes { unmap: false }, 200_192, 70_000),
            ] {
                let range = usize::try_from(offset).expect("small")
                    ..usize::try_from(offset + bytes).expect("small");
                let mut request = Op::new(op, offset, bytes);
                if op == Operation::Write {
                    request = Op::write(offset, vec![0x77; range.len()]);
                    model[range].fill(0x77);
                } else {
                    model[range].fill(0);
                }
                bench.run(&disk, request).expect("done");
            }
            bench
                .run(&disk, Op::discard(300_000, 100_000))
                .expect("discarded");
            bench.run(&disk, Op::flush()).expect("flushed");
            let stats = disk.discard_stats().expect("kept");
            assert_eq!((stats.nb_ok, stats.nb_failed), (1, 0));
            let got = bench.run(&disk, whole).expect("read");
            let (kept, gone) = (299_999, 400_001);
            assert!(got[..kept] == model[..kept] && got[gone..] == model[gone..]);
        }
    }

    #[test]
    fn a_device_is_as_long_as_it_is() {
        let bench = Bench::new();
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.as_file().set_len(MIB).expect("sparse");
        let device = Loop::attach(file.path(), 512);
        let disk = device.open(true);
        assert_eq!(disk.driver().length(), MIB);
        let error = disk.resize(2 * MIB).expect_err("it is not");
        assert!(
            error.to_string().contains("Cannot grow device files"),
            "{error}"
        );
        assert!(
            error
                .to_string()
                .contains("1048576 bytes, asked for 2097152"),
            "{error}"
        );
        file.as_file().set_len(2 * MIB).expect("sparse");
        command("losetup", &["-c", &device.device]);
        assert_eq!(disk.driver().length(), MIB, "until it is asked for");
        // Who extends a volume gets more than was asked for. Asked for less than there is, the size
        // of the device was an error; QEMU takes it.
        for asked in [2 * MIB, MIB + 512, 512] {
            assert_eq!(disk.resized_length(asked).ok(), Some(2 * MIB));
            disk.resize(asked).expect("read again");
            assert_eq!(disk.driver().length(), 2 * MIB);
        }
        file.as_file().set_len(MIB).expect("shorter");
        command("losetup", &["-c", &device.device]);
        disk.resize(512).expect("shrunk");
        assert_eq!(disk.driver().length(), MIB);
        file.as_file().set_len(2 * MIB).expect("sparse");
        command("losetup", &["-c", &device.device]);
        disk.resize(MIB).expect("grown again");
        bench
            .run(&disk, Op::write(2 * MIB - 512, data(512)))
            .expect("written");
        let name = device.device.clone();
        let error = FileDriver::open_file(FileOptions {
            filename: name.clone(),
            ..FileOptions::default()
        })
        .expect_err("a device");
        assert_eq!(
            error.desc,
            format!("'file' driver requires '{name}' to be a regular file")
        );
    }

    /// All of it once more, without io_uring.
    #[test]
    fn again_on_threads() {
        testkit::engine::again_on_threads();
    }
}
