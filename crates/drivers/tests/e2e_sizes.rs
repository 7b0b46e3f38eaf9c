//! Images of odd length, devices that cannot be written, and what a device says of itself.
//!
//! Needs root, loop devices and a file system with O_DIRECT.

mod common;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::path::Path;
    use std::process::Command;
    use std::sync::Arc;

    use block::{Access, ImageLocks, Limits, Node, Permissions};
    use standfast_drivers::file::Discard;
    use standfast_drivers::{
        Blkdebug, BlkdebugOptions, FileDriver, FileOptions, OpenError, Quota, QuotaOptions,
    };

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

    /// A loop device; detached when dropped.
    struct Loop(String);

    impl Loop {
        fn attach(args: &[&str], file: &Path) -> Self {
            let file = file.to_str().expect("ASCII");
            let args = [&["--find", "--show"], args, &[file]].concat();
            Self(command("losetup", &args))
        }
    }

    impl Drop for Loop {
        fn drop(&mut self) {
            let _ = Command::new("losetup").args(["-d", &self.0]).status();
        }
    }

    fn image_in(dir: &Path, length: u64) -> tempfile::NamedTempFile {
        let file = tempfile::Builder::new()
            .prefix("standfast-")
            .tempfile_in(dir)
            .expect("a temporary file");
        let data = pattern(9, usize::try_from(length).expect("small"));
        file.as_file().write_all_at(&data, 0).expect("space");
        file
    }

    fn image(length: u64) -> tempfile::NamedTempFile {
        // Not /tmp: that could be a tmpfs, on which O_DIRECT asks for nothing.
        image_in(Path::new(env!("CARGO_TARGET_TMPDIR")), length)
    }

    /// A file system on sectors of 4 KiB; unmounted when dropped.
    struct LargeSectors {
        dir: tempfile::TempDir,
        _device: Loop,
        _file: tempfile::NamedTempFile,
    }

    impl LargeSectors {
        fn mount() -> Self {
            let file = image(0);
            file.as_file().set_len(64 * MIB).expect("sparse");
            let device = Loop::attach(&["--sector-size", "4096"], file.path());
            command("mkfs.ext4", &["-q", "-b", "4096", &device.0]);
            let dir = tempfile::tempdir().expect("a directory");
            command("mount", &[&device.0, dir.path().to_str().expect("ASCII")]);
            Self {
                dir,
                _device: device,
                _file: file,
            }
        }
    }

    impl Drop for LargeSectors {
        fn drop(&mut self) {
            let dir = self.dir.path();
            let _ = Command::new("umount").arg("-l").arg(dir).status();
        }
    }

    /// Calls `f` with a directory on small sectors and one on large ones.
    fn on_all_sectors(f: impl Fn(&Path)) {
        f(Path::new(env!("CARGO_TARGET_TMPDIR")));
        let large = LargeSectors::mount();
        let disk = open(image_in(large.dir.path(), 4096).path(), true);
        assert_eq!(disk.driver().limits().request_alignment, 4096);
        drop(disk);
        f(large.dir.path());
    }

    fn options(path: &Path, direct: bool) -> FileOptions {
        FileOptions {
            node_name: "disk0".into(),
            filename: path.to_str().expect("ASCII").to_owned(),
            cache_direct: direct,
            discard: Discard::Unmap,
            ..FileOptions::default()
        }
    }

    fn open(path: &Path, direct: bool) -> Arc<Node> {
        open_with(&options(path, direct))
    }

    fn open_with(options: &FileOptions) -> Arc<Node> {
        node(FileDriver::open_file(options.clone()).expect("opens"))
    }

    fn device(path: &str, change: impl FnOnce(&mut FileOptions)) -> Result<FileDriver, OpenError> {
        let mut options = options(Path::new(path), true);
        change(&mut options);
        FileDriver::open_host_device(options)
    }

    /// Blkdebug on quota on the node.
    fn filters(file: Arc<Node>) -> Arc<Node> {
        let quota = pollster::block_on(Quota::open(QuotaOptions {
            node_name: "quota0".into(),
            file,
            limit: 1 << 40,
        }));
        let quota = Node::new("quota0", Box::new(quota.expect("opens")));
        let blkdebug = Blkdebug::new(BlkdebugOptions {
            node_name: "debug0".into(),
            image: quota,
            inject_error: Vec::new(),
            set_state: Vec::new(),
            align: None,
        });
        Node::new("debug0", Box::new(blkdebug.expect("opens")))
    }

    /// The end of an image that does not fill its last sector was out of the guest's reach.
    #[test]
    fn what_is_behind_an_odd_end_is_zeroes() {
        on_all_sectors(|dir| {
            let bench = Bench::new();
            for direct in [false, true] {
                for length in [1u64, 511, 513, MIB + 100, MIB + 512, MIB + 4095] {
                    let file = image_in(dir, length);
                    let rounded = length.next_multiple_of(512);
                    let mut expected = std::fs::read(file.path()).expect("readable");
                    expected.resize(usize::try_from(rounded).expect("small"), 0);
                    for read_only in [true, false] {
                        let opened = open_with(&FileOptions {
                            read_only,
                            ..options(file.path(), direct)
                        });
                        let disk = filters(opened);
                        assert_eq!(disk.driver().length(), rounded);
                        for offset in [0, (rounded - 512) & !4095, rounded - 512] {
                            let read = Op::read(offset, rounded - offset);
                            let got = bench.run(&disk, read).expect("read");
                            let at = usize::try_from(offset).expect("small");
                            assert!(got == expected[at..], "{direct} {length} {offset}");
                        }
                    }
                    let now = file.as_file().metadata().expect("there").len();
                    assert_eq!(now, length, "reading makes nothing longer");
                    let same = std::fs::read(file.path()).expect("readable");
                    assert!(same == expected[..same.len()]);
                }
            }
        });
    }

    /// With O_DIRECT on blocks of 4 KiB a write of the last sectors made the image as long as a whole
    /// number of blocks: the next daemon showed its guest a longer disk.
    #[test]
    fn no_write_makes_a_node_longer() {
        on_all_sectors(|dir| {
            let bench = Bench::new();
            for direct in [false, true] {
                for length in [100u64, MIB + 100, MIB + 1024, MIB + 3584 + 1] {
                    let file = image_in(dir, length);
                    let rounded = length.next_multiple_of(512);
                    let mut model = std::fs::read(file.path()).expect("readable");
                    model.resize(usize::try_from(rounded).expect("small"), 0);
                    let disk = filters(open(file.path(), direct));
                    let body = rounded.saturating_sub(8192);
                    for (round, offset) in [body, rounded - 512, rounded & !4095, body | 512]
                        .into_iter()
                        .filter(|offset| *offset < rounded)
                        .enumerate()
                    {
                        let from = usize::try_from(offset).expect("small");
                        let data = pattern(round as u64, model.len() - from);
                        let mut write = Op::write(offset, data.clone());
                        write.fua = round == 1;
                        write.split = vec![512, 700];
                        bench.run(&disk, write).expect("written");
                        model[from..].copy_from_slice(&data);
                        let got = bench.run(&disk, Op::read(0, rounded)).expect("read");
                        assert!(got == model, "{direct} {length} {offset}");
                    }
                    for unmap in [false, true] {
                        let last = Op::zeroes(rounded - 512, 512, unmap);
                        bench.run(&disk, last).expect("zeroed");
                        let from = model.len() - 512;
                        model[from..].fill(0);
                        let whole = Op::zeroes(rounded & !4095, rounded % 4096, unmap);
                        bench.run(&disk, whole).expect("zeroed");
                        model[usize::try_from(rounded & !4095).expect("small")..].fill(0);
                    }
                    bench.run(&disk, Op::discard(0, rounded)).expect("done");
                    bench.run(&disk, Op::flush()).expect("flushed");
                    let now = file.as_file().metadata().expect("there").len();
                    assert_eq!(
                        now.next_multiple_of(512),
                        rounded,
                        "{direct} {length}: {now}"
                    );
                    drop(disk);
                    assert_eq!(open(file.path(), direct).driver().length(), rounded);
                }
            }
        });
    }

    /// Many at once, so that those of the last block meet those before it.
    #[test]
    fn neighbours_of_the_last_block_keep_their_data() {
        on_all_sectors(|dir| {
            let bench = Bench::new();
            let file = image_in(dir, MIB + 1024);
            let disk = open(file.path(), true);
            let writes = |seed: u64| {
                let sectors = (MIB - 4096) / 512..(MIB + 1024) / 512;
                let writes =
                    sectors.map(|sector| Op::write(sector * 512, pattern(seed + sector, 512)));
                writes.collect::<Vec<_>>()
            };
            for round in 0..20 {
                let ops = writes(round * 1000);
                for result in bench.run_all(&disk, ops.clone()) {
                    result.expect("written");
                }
                for op in ops {
                    let got = bench.run(&disk, Op::read(op.offset, 512)).expect("read");
                    assert!(got == op.data, "{round} {}", op.offset);
                }
            }
            let now = file.as_file().metadata().expect("there").len();
            assert_eq!(now, MIB + 1024);
        });
    }

    #[test]
    fn a_resize_to_an_odd_length() {
        on_all_sectors(|dir| {
            let bench = Bench::new();
            for direct in [false, true] {
                let file = image_in(dir, MIB);
                let disk = open(file.path(), direct);
                for (asked, length) in [
                    (MIB + 1, MIB + 512),
                    (2 * MIB + 700, 2 * MIB + 1024),
                    (MIB - 100, MIB),
                    (MIB, MIB),
                ] {
                    assert_eq!(disk.resized_length(asked).ok(), Some(length));
                    disk.resize(asked).expect("resized");
                    assert_eq!(disk.driver().length(), length);
                    let now = file.as_file().metadata().expect("there").len();
                    assert_eq!(now, asked);
                    let data = pattern(asked, 1024);
                    bench
                        .run(&disk, Op::write(length - 1024, data.clone()))
                        .expect("written");
                    let got = bench.run(&disk, Op::read(length - 1024, 1024));
                    assert_eq!(got.expect("read"), data);
                }
                let error = disk.resize(u64::MAX).expect_err("too long");
                assert_eq!(error.errno(), libc::EFBIG);
            }
        });
    }

    fn locks(node: &Node) -> &dyn ImageLocks {
        let locks = node.driver().capabilities().image_locks;
        locks.expect("it has some")
    }

    /// The last block is written by a second descriptor, which to the kernel is a stranger to the first: a
    /// reader that was to become a writer met its own locks.
    #[test]
    fn an_odd_image_has_readers_and_writers() {
        let reads = Access {
            held: Permissions::CONSISTENT_READ,
            shared: Permissions::ALL,
        };
        let writes = Access {
            held: Permissions::CONSISTENT_READ.and(Permissions::WRITE),
            shared: Permissions::ALL,
        };
        on_all_sectors(|dir| {
            let bench = Bench::new();
            let file = image_in(dir, MIB + 1024);
            let (disk, other) = (open(file.path(), true), open(file.path(), true));
            let refusal = |words: &str| format!("{words} on '{}'", file.path().display());
            for round in 0..2 {
                locks(&disk).lock(reads).expect("nobody is there");
                locks(&other).lock(reads).expect("readers get along");
                let error = locks(&disk).lock(writes).expect_err("somebody reads");
                assert_eq!(error.desc, refusal("Failed to get \"write\" lock"));
                locks(&other).settle(Access::NONE);
                locks(&disk).lock(writes).expect("nobody is in the way");
                let data = pattern(round, 512);
                let write = Op::write(MIB + 512, data.clone());
                bench.run(&disk, write).expect("written");
                let got = bench.run(&disk, Op::read(MIB + 512, 512));
                assert_eq!(got.expect("read"), data);
                let error = locks(&other).lock(reads).expect_err("somebody writes");
                assert_eq!(error.desc, refusal("Failed to get shared \"write\" lock"));
                locks(&disk).settle(reads);
                locks(&other).lock(reads).expect("readers get along");
                locks(&other).settle(Access::NONE);
                locks(&disk).settle(Access::NONE);
            }
            // Its end is an odd one only when its use begins.
            drop((disk, other));
            file.as_file().set_len(MIB).expect("shorter");
            let (disk, other) = (open(file.path(), true), open(file.path(), true));
            file.as_file().set_len(MIB + 700).expect("longer");
            locks(&disk).lock(writes).expect("nobody is there");
            assert_eq!(disk.driver().length(), MIB + 1024);
            let write = Op::write(MIB + 512, pattern(7, 512));
            bench.run(&disk, write).expect("written");
            let now = file.as_file().metadata().expect("there").len();
            assert_eq!(now, MIB + 1024);
            let error = locks(&other).lock(writes).expect_err("somebody writes");
            assert!(error.is_locked());
            locks(&disk).settle(Access::NONE);
            locks(&other).lock(writes).expect("nobody is in the way");
        });
    }

    /// What is truncated behind our back is an error still, and no zeroes.
    #[test]
    fn an_odd_image_that_is_truncated() {
        on_all_sectors(|dir| {
            let bench = Bench::new();
            for direct in [false, true] {
                let file = image_in(dir, MIB + 100);
                let disk = open(file.path(), direct);
                file.as_file().set_len(MIB + 50).expect("shorter");
                let error = bench.run(&disk, Op::read(MIB, 512)).expect_err("truncated");
                assert_eq!(error.errno(), libc::EIO);
            }
        });
    }

    /// A device of large sectors ends with a part of one: the kernel cannot reach that, and a request
    /// for it was held for ever.
    #[test]
    fn a_device_ends_with_its_last_whole_sector() {
        let bench = Bench::new();
        let file = image(MIB + 1536);
        let looped = Loop::attach(&["--sector-size", "4096"], file.path());
        let disk = node(device(&looped.0, |_| {}).expect("opens"));
        assert_eq!(disk.driver().length(), MIB);
        disk.resize(MIB + 512).expect("it has that much");
        assert_eq!(disk.driver().length(), MIB);
        bench
            .run(&disk, Op::write(MIB - 512, pattern(1, 512)))
            .expect("written");
    }

    /// A read-only device can be opened for writing, and then refuses every write: the guest's were
    /// held for ever.
    #[test]
    fn a_device_that_cannot_be_written_is_not_opened_for_writing() {
        let file = image(MIB);
        let looped = Loop::attach(&["--read-only"], file.path());
        for direct in [false, true] {
            let error = device(&looped.0, |options| options.cache_direct = direct)
                .expect_err("it cannot be written");
            assert_eq!(
                (error.errno, error.desc.as_str()),
                (
                    libc::EACCES,
                    "The device is not writable: Permission denied"
                )
            );
            assert!(error.hint.expect("one").contains("auto-read-only=on"));
        }
        for read_only in [false, true] {
            let opened = device(&looped.0, |options| {
                options.read_only = read_only;
                options.auto_read_only = true;
            });
            assert!(node(opened.expect("opens")).read_only());
        }
    }

    /// The same for files: on a file system that is mounted read-only, and one that is immutable.
    #[test]
    fn files_that_cannot_be_written() {
        let large = LargeSectors::mount();
        let dir = tempfile::tempdir_in(large.dir.path()).expect("a directory");
        let path = dir.path().join("image");
        std::fs::write(&path, [0; 4096]).expect("space");
        let place = dir.path().to_str().expect("ASCII");
        command("mount", &["--bind", place, place]);
        command("mount", &["-o", "remount,bind,ro", place]);
        let opened = |auto_read_only| {
            FileDriver::open_file(FileOptions {
                auto_read_only,
                ..options(&path, true)
            })
        };
        let (refused, auto) = (opened(false), opened(true));
        command("umount", &["-l", place]);
        let error = refused.expect_err("it cannot be written");
        let expected = format!("Could not open '{}': Read-only file system", path.display());
        assert_eq!((error.errno, error.desc), (libc::EROFS, expected));
        assert!(node(auto.expect("opens")).read_only());

        command("chattr", &["+i", path.to_str().expect("ASCII")]);
        let (refused, auto) = (opened(false), opened(true));
        command("chattr", &["-i", path.to_str().expect("ASCII")]);
        assert_eq!(refused.expect_err("immutable").errno, libc::EPERM);
        assert!(node(auto.expect("opens")).read_only());
    }

    /// A failure of the storage, for policy, and none of the guest.
    #[test]
    fn a_device_that_becomes_read_only_fails_writes() {
        let bench = Bench::new();
        let file = image(MIB);
        let looped = Loop::attach(&[], file.path());
        let disk = node(device(&looped.0, |_| {}).expect("opens"));
        command("blockdev", &["--setro", &looped.0]);
        for op in [
            Op::write(4096, pattern(1, 4096)),
            Op::zeroes(8192, 4096, false),
            Op::zeroes(8192, 4096, true),
        ] {
            let error = bench.run(&disk, op).expect_err("read-only");
            assert!(
                matches!(error.errno(), libc::EPERM | libc::EROFS | libc::EACCES),
                "{error}"
            );
            assert_eq!(error.kind(), block::ErrorKind::Permission);
        }
        bench.run(&disk, Op::read(0, 4096)).expect("read");
        command("blockdev", &["--setrw", &looped.0]);
        bench
            .run(&disk, Op::write(4096, pattern(1, 4096)))
            .expect("the same again");
    }

    fn queue(device: &str, name: &str) -> u32 {
        let device = device.trim_start_matches("/dev/");
        let text = std::fs::read_to_string(format!("/sys/block/{device}/queue/{name}"));
        text.expect("sysfs").trim().parse().expect("a number")
    }

    /// The guest was told of 512 bytes, whatever the device liked.
    #[test]
    fn what_a_device_likes_is_known_through_filters() {
        let file = image(MIB);
        for sector in [512u32, 4096] {
            let size = sector.to_string();
            let looped = Loop::attach(&["--sector-size", &size], file.path());
            for direct in [false, true] {
                let opened = device(&looped.0, |options| options.cache_direct = direct);
                let disk = filters(node(opened.expect("opens")));
                let Limits {
                    physical_block,
                    minimum_io,
                    optimal_io,
                    alignment_offset,
                    discard_alignment,
                    ..
                } = disk.driver().limits();
                assert_eq!(physical_block, queue(&looped.0, "physical_block_size"));
                assert!(physical_block >= sector);
                assert_eq!(minimum_io, queue(&looped.0, "minimum_io_size"));
                assert_eq!(optimal_io, queue(&looped.0, "optimal_io_size"));
                assert_eq!(alignment_offset, 0);
                assert_eq!(discard_alignment, queue(&looped.0, "discard_granularity"));
            }
        }
    }

    /// All of it once more, without io_uring.
    #[test]
    fn again_on_threads() {
        testkit::engine::again_on_threads();
    }
}
