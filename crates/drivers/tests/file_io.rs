//! `file` on real files: what is written is read, whatever the request looks like.

mod common;

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;

    use block::{Access, Driver, ErrorKind, Node, Permissions};
    use proptest::prelude::*;
    use standfast_drivers::file::Discard;
    use standfast_drivers::{FileDriver, FileOptions};

    use super::common::{Bench, Op, node, pattern};

    const LENGTH: u64 = 1 << 20;

    struct Image {
        file: tempfile::NamedTempFile,
    }

    impl Image {
        fn new(length: u64) -> Self {
            // Not /tmp: that could be a tmpfs, on which O_DIRECT asks for nothing.
            let file = tempfile::Builder::new()
                .prefix("standfast-")
                .tempfile_in(env!("CARGO_TARGET_TMPDIR"))
                .expect("a temporary file");
            file.as_file().set_len(length).expect("sparse");
            Self { file }
        }

        fn options(&self) -> FileOptions {
            FileOptions {
                node_name: "disk0".into(),
                filename: self.file.path().to_str().expect("ASCII").to_owned(),
                discard: Discard::Unmap,
                ..FileOptions::default()
            }
        }

        fn open(&self, direct: bool) -> Arc<Node> {
            let driver = FileDriver::open_file(FileOptions {
                cache_direct: direct,
                ..self.options()
            });
            node(driver.expect("opens"))
        }

        fn content(&self) -> Vec<u8> {
            std::fs::read(self.file.path()).expect("readable")
        }
    }

    #[test]
    fn reads_back_what_was_written() {
        let bench = Bench::new();
        for direct in [false, true] {
            for fua in [false, true] {
                let image = Image::new(LENGTH);
                let disk = image.open(direct);
                let data = pattern(1, 8192);
                let mut write = Op::write(4096, data.clone());
                write.fua = fua;
                bench.run(&disk, write).expect("written");
                bench.run(&disk, Op::flush()).expect("flushed");
                assert_eq!(bench.run(&disk, Op::read(4096, 8192)).expect("read"), data);
                assert_eq!(image.content()[4096..12288], data);
            }
        }
    }

    #[test]
    fn zeroes_and_discards_do_what_they_say() {
        let bench = Bench::new();
        for direct in [false, true] {
            let image = Image::new(LENGTH);
            let disk = image.open(direct);
            let mut model = pattern(2, 1 << 20);
            bench
                .run(&disk, Op::write(0, model.clone()))
                .expect("written");
            for (offset, bytes, unmap) in [
                (0u64, 65536u64, true),
                (100_352, 512, false),
                (131_072, 131_072, false),
                (300_001, 12_345, true),
            ] {
                bench
                    .run(&disk, Op::zeroes(offset, bytes, unmap))
                    .expect("zeroed");
                let range = usize::try_from(offset).expect("small")
                    ..usize::try_from(offset + bytes).expect("small");
                model[range].fill(0);
            }
            let allocated = disk.driver().actual_size().expect("known");
            bench
                .run(&disk, Op::discard(524_289, 131_072))
                .expect("discarded");
            let after = disk.driver().actual_size().expect("known");
            // The filesystem may need a block of its own to remember the holes.
            assert!(after < allocated - 100_000, "{allocated} {after}");
            let stats = disk.discard_stats().expect("kept");
            assert_eq!((stats.nb_ok, stats.bytes_ok), (1, 126_976));
            let content = bench.run(&disk, Op::read(0, LENGTH)).expect("read");
            assert!(content[..524_289] == model[..524_289]);
            assert!(content[655_361..] == model[655_361..]);
        }
    }

    #[test]
    fn ignored_discards_leave_everything() {
        let bench = Bench::new();
        let image = Image::new(LENGTH);
        let options = FileOptions {
            discard: Discard::Ignore,
            ..image.options()
        };
        let disk = node(FileDriver::open_file(options).expect("opens"));
        assert!(!disk.driver().limits().discard);
        let data = pattern(3, 1 << 20);
        bench
            .run(&disk, Op::write(0, data.clone()))
            .expect("written");
        let allocated = disk.driver().actual_size();
        bench.run(&disk, Op::discard(0, LENGTH)).expect("ignored");
        assert!(bench.run(&disk, Op::read(0, LENGTH)).expect("read") == data);
        bench
            .run(&disk, Op::zeroes(0, LENGTH, true))
            .expect("zeroed");
        assert_eq!(disk.driver().actual_size(), allocated, "nothing unmapped");
        assert!(
            bench
                .run(&disk, Op::read(0, LENGTH))
                .expect("read")
                .iter()
                .all(|&byte| byte == 0)
        );
    }

    /// Zeroes would be a lie that a guest's filesystem takes for its own metadata.
    #[test]
    fn truncated_behind_our_back_is_an_error() {
        let bench = Bench::new();
        for direct in [false, true] {
            let image = Image::new(LENGTH);
            let disk = image.open(direct);
            image.file.as_file().set_len(8192).expect("truncated");
            for (offset, bytes) in [(4096, 8192), (8192, 4096), (65536, 512)] {
                let error = bench
                    .run(&disk, Op::read(offset, bytes))
                    .expect_err("short");
                assert_eq!(error.errno(), libc::EIO);
                let text = error.to_string();
                assert!(text.contains("has been truncated"), "{text}");
                assert!(text.starts_with("node 'disk0' at "), "{text}");
            }
            bench
                .run(&disk, Op::read(0, 8192))
                .expect("what is there can be read");
        }
    }

    #[test]
    fn more_buffers_than_the_kernel_takes_at_once() {
        let bench = Bench::new();
        for (direct, unit) in [(false, 16), (true, 512), (true, 100)] {
            let image = Image::new(LENGTH);
            let disk = image.open(direct);
            let data = pattern(4, unit * 1500);
            let mut write = Op::write(0, data.clone());
            write.split = vec![unit; 1500];
            let mut read = Op::read(0, data.len() as u64);
            read.split = vec![unit; 1500];
            bench.run(&disk, write).expect("written");
            assert!(bench.run(&disk, read).expect("read") == data);
            assert!(image.content()[..data.len()] == data);
        }
    }

    /// The end of a file that is no multiple of the storage's blocks, with O_DIRECT.
    #[test]
    fn odd_length_keeps_its_tail() {
        let bench = Bench::new();
        for direct in [false, true] {
            let image = Image::new(10_000);
            image
                .file
                .as_file()
                .write_all_at(&pattern(5, 10_000), 0)
                .expect("space");
            let disk = image.open(direct);
            assert_eq!(disk.driver().length(), 10_240);
            let mut model = pattern(5, 10_000);
            assert!(bench.run(&disk, Op::read(0, 10_000)).expect("read") == model);
            bench
                .run(&disk, Op::write(9_000, vec![9; 1_000]))
                .expect("written");
            model[9_000..].fill(9);
            assert!(bench.run(&disk, Op::read(8_999, 1_001)).expect("read") == model[8_999..]);
            assert_eq!(disk.driver().length(), 10_240);
            let content = image.content();
            assert!(content[..10_000] == model);
            assert!(content[10_000..].iter().all(|&byte| byte == 0));
            let error = bench
                .run(&disk, Op::read(10_239, 2))
                .expect_err("beyond the node");
            assert_eq!(error.kind(), ErrorKind::Invalid);
        }
    }

    #[test]
    fn grows_and_shrinks() {
        let bench = Bench::new();
        let image = Image::new(LENGTH);
        let disk = image.open(true);
        disk.resize(2 * LENGTH).expect("grown");
        assert_eq!(disk.driver().length(), 2 * LENGTH);
        bench
            .run(&disk, Op::write(2 * LENGTH - 4096, pattern(6, 4096)))
            .expect("written");
        disk.resize(LENGTH).expect("shrunk");
        assert_eq!(image.content().len() as u64, LENGTH);
        assert!(bench.run(&disk, Op::read(LENGTH, 512)).is_err());
    }

    /// Writes that share a block but no byte, on two iothreads at once: none may undo another.
    #[test]
    fn neighbours_in_one_block_survive_each_other() {
        let image = Image::new(LENGTH);
        let disk = image.open(true);
        let block = u64::from(disk.driver().limits().request_alignment);
        assert!(block >= 512, "the test directory is on a real filesystem");
        let benches = [Bench::new(), Bench::new()];
        let part = block / 8;
        for round in 1..=20u8 {
            std::thread::scope(|scope| {
                for (half, bench) in (0u64..).zip(&benches) {
                    let disk = &disk;
                    scope.spawn(move || {
                        let ops = (0..64)
                            .filter(|index| index % 2 == half)
                            .map(|index| {
                                let data = vec![round; usize::try_from(part).expect("small")];
                                Op::write(index * part, data)
                            })
                            .chain(
                                // Whole blocks beside them.
                                (8..12).map(|index| {
                                    let data = vec![round; usize::try_from(block).expect("small")];
                                    Op::write((index * 2 + half) * block, data)
                                }),
                            )
                            .collect();
                        for result in bench.run_all(disk, ops) {
                            result.expect("written");
                        }
                    });
                }
            });
            let bytes = usize::try_from(8 * block).expect("small");
            let content = image.content();
            assert!(content[..bytes].iter().all(|&byte| byte == round));
            assert!(
                content[2 * bytes..3 * bytes]
                    .iter()
                    .all(|&byte| byte == round)
            );
        }
    }

    prop_compose! {
        fn any_op()(
            kind in 0..5,
            offset in 0..LENGTH,
            bytes in prop_oneof![1..600u64, 1..70_000u64, Just(4096u64), Just(LENGTH)],
            round in prop::option::of(prop::sample::select(vec![512u64, 4096])),
            split in prop::collection::vec(0..9000usize, 0..5),
            skew in prop::sample::select(vec![0usize, 0, 1, 4, 512]),
            fua: bool,
            seed: u64,
        ) -> Op {
            let (offset, bytes) = match round {
                None => (offset, bytes),
                Some(unit) => (offset & !(unit - 1), bytes.next_multiple_of(unit)),
            };
            let bytes = bytes.min(LENGTH - offset);
            let mut op = match kind {
                0 => Op::read(offset, bytes),
                1 | 2 => Op::write(offset, pattern(seed % 10_000, usize::try_from(bytes).expect("small"))),
                3 => Op::zeroes(offset, bytes, seed % 2 == 0),
                _ => Op::flush(),
            };
            op.split = split;
            op.skew = skew;
            op.fua = fua && kind != 0;
            op
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
        #[test]
        fn odd_requests_against_a_model(
            direct: bool,
            ops in prop::collection::vec(any_op(), 1..24),
        ) {
            let bench = Bench::new();
            let image = Image::new(LENGTH);
            let disk = image.open(direct);
            let mut model = vec![0u8; 1 << 20];
            for op in ops {
                let range = usize::try_from(op.offset).expect("small")
                    ..usize::try_from(op.offset + op.bytes).expect("small");
                let got = bench.run(&disk, op.clone());
                let got = match got {
                    Ok(got) => got,
                    Err(error) => return Err(TestCaseError::fail(format!("{error:?}"))),
                };
                match op.op {
                    block::Operation::Read => prop_assert!(got == model[range], "{:?}", op.offset),
                    block::Operation::Write => model[range].copy_from_slice(&op.data),
                    block::Operation::WriteZeroes { .. } => model[range].fill(0),
                    _ => {}
                }
            }
            prop_assert!(image.content() == model);
        }
    }

    #[test]
    fn opening_says_in_qemus_words_what_is_wrong() {
        let open = |options: FileOptions| {
            FileDriver::open_file(options)
                .expect_err("must not open")
                .desc
        };
        let at = |filename: &str| FileOptions {
            filename: filename.to_owned(),
            ..FileOptions::default()
        };
        assert_eq!(
            open(at("/nonexistent")),
            "Could not open '/nonexistent': No such file or directory"
        );
        assert_eq!(open(at("/")), "Could not open '/': Is a directory");
        assert_eq!(
            open(FileOptions {
                read_only: true,
                ..at("/")
            }),
            "'file' driver requires '/' to be a regular file"
        );
        assert_eq!(
            open(at("/dev/zero")),
            "'file' driver requires '/dev/zero' to be a regular file"
        );
        assert_eq!(
            open(FileOptions {
                force_share: true,
                ..at("/nonexistent")
            }),
            "force-share=on can only be used with read-only images"
        );
        let image = Image::new(512);
        let name = image.options().filename;
        assert_eq!(
            FileDriver::open_host_device(image.options())
                .expect_err("no device")
                .desc,
            format!(
                "'host_device' driver requires '{name}' to be either a character or block device"
            )
        );
        let link = format!("{name}\0");
        assert!(open(at(&link)).starts_with("Could not open '"));
    }

    #[test]
    fn locks_and_warnings() {
        let image = Image::new(4096);
        let access = Access {
            held: Permissions::WRITE,
            shared: Permissions::ALL,
        };
        let open = |options| {
            let driver = FileDriver::open_file(options).expect("opens");
            let locked = driver.capabilities().image_locks.expect("it has some");
            locked.lock(access).map(|()| driver)
        };
        let first = open(image.options()).expect("nobody else is there");
        let error = open(image.options()).expect_err("locked");
        let name = image.options().filename;
        let words = format!("Failed to get \"write\" lock on '{name}'");
        assert_eq!(error.desc, words);
        assert_eq!(
            error.hint,
            Some(format!(
                "Is another process using the image [{}]?",
                image.options().filename
            ))
        );
        open(FileOptions {
            read_only: true,
            force_share: true,
            ..image.options()
        })
        .expect("a reader that does not mind");
        let buffered = node(first);
        let warning = buffered.driver().info().warning.expect("buffered");
        assert!(warning.contains("cache.direct=on"), "{warning}");
        drop(buffered);
        assert_eq!(image.open(true).driver().info().warning, None);
        let fresh = File::open(image.file.path()).expect("exists");
        assert_eq!(fresh.metadata().expect("works").len(), 4096);
    }

    /// All of it once more, without io_uring.
    #[test]
    fn again_on_threads() {
        testkit::engine::again_on_threads();
    }
}
