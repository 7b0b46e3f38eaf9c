//! `raw` on real files: what it writes lies in its window, and nothing of what lies beside it is ever seen.
//!
//! Needs tmpfs.

mod common;

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::os::unix::fs::FileExt;
    use std::path::Path;
    use std::sync::Arc;

    use block::fault::{FaultEvent, InjectError};
    use block::{Access, ErrorKind, Limits, Node, NodeInfo, Operation, Stored};
    use serde_json::{Value, json};
    use standfast_drivers::file::Discard;
    use standfast_drivers::{
        Blkdebug, BlkdebugOptions, FileDriver, FileOptions, NullCo, NullOptions, OpenError, Raw,
        RawOptions,
    };
    use testkit::Tmpfs;
    use testkit::rng::Rng;

    use super::common::format::{above, file, filter, options};
    use super::common::{Bench, Op, pattern};

    /// No multiple of a block, of anybody.
    const LENGTH: u64 = (200 << 10) + 512;
    const KIB: u64 = 1 << 10;

    fn index(bytes: u64) -> usize {
        usize::try_from(bytes).expect("small")
    }

    fn window(file: &Arc<Node>, offset: u64, size: Option<u64>) -> Result<Raw, OpenError> {
        Raw::new(RawOptions {
            node_name: "raw0".into(),
            file: Arc::clone(file),
            offset,
            size,
            discard: true,
            info: NodeInfo::default(),
        })
    }

    fn raw(file: &Arc<Node>, offset: u64, size: Option<u64>) -> Arc<Node> {
        Node::new("raw0", Box::new(window(file, offset, size).expect("opens")))
    }

    fn unmapping(path: &Path, direct: bool) -> Arc<Node> {
        let driver = FileDriver::open_file(FileOptions {
            discard: Discard::Unmap,
            ..options(path, direct)
        });
        Node::new("file0", Box::new(driver.expect("opens")))
    }

    /// Calls `f` with an image that is full of a pattern, on each kind of file system, buffered or not.
    fn on_each(mut f: impl FnMut(&tempfile::NamedTempFile, bool)) {
        let tmpfs = Tmpfs::new(16 << 20).expect("a tmpfs");
        let disk = Path::new(env!("CARGO_TARGET_TMPDIR"));
        for (dir, direct) in [(tmpfs.path(), false), (disk, false), (disk, true)] {
            let image = tempfile::NamedTempFile::new_in(dir).expect("a file");
            let content = pattern(0, index(LENGTH));
            image.as_file().write_all_at(&content, 0).expect("space");
            f(&image, direct);
        }
    }

    fn content(image: &tempfile::NamedTempFile) -> Vec<u8> {
        std::fs::read(image.path()).expect("readable")
    }

    fn random(rng: &mut Rng, length: u64) -> Op {
        let offset = rng.below(length);
        let bytes = 1 + rng.below((length - offset).min(30_000));
        match rng.below(5) {
            0 => Op::read(offset, bytes),
            1 => Op::zeroes(offset, bytes, true),
            2 => Op::zeroes(offset, bytes, false),
            3 => Op::discard(offset, bytes),
            _ => Op::write(offset, pattern(rng.below(1000), index(bytes))),
        }
    }

    #[test]
    fn all_that_happens_lies_in_the_window() {
        let bench = Bench::new();
        let mut rng = Rng::new(7);
        let mut run = |image: &tempfile::NamedTempFile, direct, offset: u64, size: Option<u64>| {
            let disk = raw(&unmapping(image.path(), direct), offset, size);
            let length = disk.driver().length();
            let rest = (LENGTH - offset) / 512 * 512;
            assert_eq!(length, size.unwrap_or(rest));
            let place = index(offset)..index(offset + length);
            let mut model = content(image);
            for round in 0..60 {
                let op = random(&mut rng, length);
                let what = format!("{round}: {} of {} at {}", op.op, op.bytes, op.offset);
                let at = index(offset + op.offset);
                let range: Range<usize> = at..at + index(op.bytes);
                let got = bench.run(&disk, op.clone()).expect("inside");
                let now = content(image);
                match op.op {
                    Operation::Read => assert!(got == model[range.clone()], "{what}"),
                    Operation::Write => model[range.clone()].copy_from_slice(&op.data),
                    Operation::WriteZeroes { .. } => model[range.clone()].fill(0),
                    // Advice.
                    _ => model[range.clone()].copy_from_slice(&now[range.clone()]),
                }
                assert_eq!(now.len(), model.len(), "{what}");
                assert!(now == model, "{what}");
            }
            bench.run(&disk, Op::flush()).expect("durable");
            let original = pattern(0, index(LENGTH));
            assert!(model[..place.start] == original[..place.start]);
            assert!(model[place.end..] == original[place.end..]);
        };
        for (offset, size) in [
            (0, Some(64 * KIB)),
            (4096, Some(64 * KIB)),
            (512, Some(100 * KIB)),
            (100, Some(64 * KIB + 512)),
            (LENGTH - 512, Some(512)),
            (0, None),
            (12 * KIB, None),
            (100, None),
        ] {
            on_each(|image, direct| run(image, direct, offset, size));
        }
    }

    /// A guest cannot, and a parent that may make it longer cannot either: what lies behind is neither written
    /// nor read. A format that grows until there is no room left once had EINVAL for that instead of ENOSPC: the write was
    /// not held, as it is on a device, and the guest's file system became read-only.
    #[test]
    fn what_lies_behind_is_out_of_reach() {
        let bench = Bench::new();
        on_each(|image, direct| {
            let file = file(image.path(), direct);
            let raw = filter(
                "raw0",
                window(&file, 4096, Some(8192)).expect("opens"),
                true,
            );
            let format = above(&raw, true);
            for (op, errno) in [
                (Op::write(8192, pattern(1, 512)), libc::ENOSPC),
                (Op::write(4096, pattern(1, 8192)), libc::ENOSPC),
                (Op::zeroes(8192, 512, true), libc::ENOSPC),
                (Op::write(u64::MAX - 511, pattern(1, 512)), libc::EINVAL),
            ] {
                for (disk, errno) in [(&raw, libc::EINVAL), (&format, errno)] {
                    let error = bench.run(disk, op.clone()).expect_err("outside");
                    assert_eq!(error.errno(), errno, "{} at {}", op.op, op.offset);
                }
            }
            bench.run(&raw, Op::read(8192, 512)).expect_err("outside");
            bench
                .run(&format, Op::discard(0, 1 << 40))
                .expect("what is inside");
            let behind = bench.run(&format, Op::read(8192, 4096)).expect("zeroes");
            assert_eq!(behind, vec![0; 4096], "and not what the image has there");
            assert!(content(image)[12288..] == pattern(0, index(LENGTH))[12288..]);
            assert_eq!(content(image).len() as u64, LENGTH);
        });
    }

    #[test]
    fn without_a_size_it_grows_with_its_child() {
        let bench = Bench::new();
        on_each(|image, direct| {
            for offset in [0, 4096] {
                let file = file(image.path(), direct);
                let raw = filter("raw0", window(&file, offset, None).expect("opens"), true);
                let end = raw.driver().length();
                let format = above(&raw, true);
                let write = Op::write(end, pattern(3, 8192));
                let alone = above(
                    &filter("raw0", window(&file, offset, None).expect("opens"), false),
                    true,
                );
                bench
                    .run(&alone, write.clone())
                    .expect_err("it may not make it longer");
                bench.run(&format, write).expect("space");
                let longer = raw.driver().length();
                assert!(longer >= end + 8192, "{longer}");
                assert_eq!(file.driver().length(), longer + offset);
                let read = bench.run(&raw, Op::read(end, 8192)).expect("there");
                assert!(read == pattern(3, 8192));
                image.as_file().set_len(LENGTH).expect("as before");
            }
        });
    }

    #[test]
    fn its_length_is_changed_with_that_of_its_child() {
        let image = tempfile::NamedTempFile::new().expect("a file");
        image.as_file().set_len(LENGTH).expect("sparse");
        let file = file(image.path(), false);
        let moved = raw(&file, 4096, None);
        assert_eq!(moved.resized_length(8192).expect("possible"), 8192);
        moved.resize(8192).expect("a file can");
        assert_eq!(
            (moved.driver().length(), file.driver().length()),
            (8192, 12288)
        );
        assert_eq!(content(&image).len(), 12288);
        let too_large = moved.resize(u64::MAX / 2 - 100).expect_err("too large");
        assert_eq!(
            too_large.to_string(),
            "Disk size too large for the chosen offset"
        );
        let fixed = raw(&file, 0, Some(4096));
        for refused in [fixed.resized_length(8192).err(), fixed.resize(4096).err()] {
            let refused = refused.expect("refused").to_string();
            assert_eq!(refused, "Cannot resize fixed-size raw disks");
        }
        let null = Node::new("null0", Box::new(NullCo::new(NullOptions::default())));
        let refused = raw(&null, 0, None).resize(4096).expect_err("refused");
        assert_eq!(
            refused.to_string(),
            "Image format driver does not support resize"
        );
    }

    #[test]
    fn a_window_that_does_not_fit_is_refused() {
        let image = tempfile::NamedTempFile::new().expect("a file");
        image.as_file().set_len(1 << 20).expect("sparse");
        let file = file(image.path(), false);
        for (offset, size, desc) in [
            (
                2 << 20,
                None,
                "Offset (2097152) cannot be greater than size of the containing file (1048576)",
            ),
            (
                0,
                Some(2 << 20),
                "The sum of offset (0) and size (2097152) has to be smaller or equal to the  actual size of \
                 the containing file (1048576)",
            ),
            (
                512,
                Some(u64::MAX - 511),
                "The sum of offset (512) and size (18446744073709551104) has to be smaller or equal to the  \
                 actual size of the containing file (1048576)",
            ),
            (0, Some(1000), "Specified size is not multiple of 512"),
        ] {
            let error = window(&file, offset, size).expect_err("refused");
            assert_eq!(error.desc, desc);
        }
        for (offset, size, length) in [(1 << 20, None, 0), (0, Some(0), 0), (100, Some(512), 512)] {
            assert_eq!(raw(&file, offset, size).driver().length(), length);
        }
        // Others may have changed the image until it comes into use.
        let fits = raw(&file, 512 << 10, Some(512 << 10));
        fits.activate(Access::NONE)
            .expect("it is as long as it was");
        file.resize(1 << 19).expect("a file can");
        let error = fits.activate(Access::NONE).expect_err("it is too short");
        assert!(
            error.to_string().starts_with("The sum of offset"),
            "{error}"
        );
    }

    #[test]
    fn it_tells_where_things_are_stored() {
        let image = tempfile::Builder::new()
            .tempfile_in(env!("CARGO_TARGET_TMPDIR"))
            .expect("a file");
        image.as_file().set_len(1 << 20).expect("sparse");
        image
            .as_file()
            .write_all_at(&[1; 65536], 64 * KIB)
            .expect("space");
        let disk = raw(&file(image.path(), false), 32 * KIB, Some(128 * KIB));
        let extents = pollster::block_on(disk.block_status(0..1 << 30)).expect("known");
        let shown: Vec<_> = extents
            .iter()
            .map(|extent| (extent.bytes / KIB, extent.data))
            .collect();
        assert_eq!(shown, [(32, false), (64, true), (32, false)]);
        let stored = Stored::In {
            node: "file0".into(),
            offset: 64 * KIB,
        };
        assert_eq!(extents[1].stored, stored);
    }

    /// As with QEMU, `discard` is the node's own to say.
    #[test]
    fn discards_reach_the_child_if_that_was_asked_for() {
        let bench = Bench::new();
        let plan = InjectError {
            event: FaultEvent::None,
            errno: libc::EIO,
            ..InjectError::default()
        };
        let null = Node::new("null0", Box::new(NullCo::new(NullOptions::default())));
        let debug = Blkdebug::new(BlkdebugOptions {
            node_name: "debug0".into(),
            image: null,
            inject_error: vec![plan],
            set_state: Vec::new(),
            align: None,
        });
        let debug = Node::new("debug0", Box::new(debug.expect("opens")));
        for discard in [false, true] {
            let raw = Raw::new(RawOptions {
                node_name: "raw0".into(),
                file: Arc::clone(&debug),
                offset: 4096,
                size: None,
                discard,
                info: NodeInfo::default(),
            });
            let raw = Node::new("raw0", Box::new(raw.expect("opens")));
            assert_eq!(
                bench.run(&raw, Op::discard(0, 4096)).is_err(),
                discard,
                "it reaches what fails"
            );
            let Limits {
                discard: shown,
                unmap_zeroes,
                ..
            } = raw.driver().limits();
            assert_eq!((shown, unmap_zeroes), (discard, discard));
            for op in [
                Op::write(0, pattern(1, 512)),
                Op::read(0, 512),
                Op::zeroes(0, 512, true),
                Op::flush(),
            ] {
                let error = bench.run(&raw, op).expect_err("it fails");
                assert_eq!(error.kind(), ErrorKind::Failed);
                let place = match error.to_string().contains("flush") {
                    true => "node 'debug0': flush",
                    false => "node 'debug0' at 4096+512: ",
                };
                assert!(error.to_string().starts_with(place), "{error}");
            }
        }
    }

    #[test]
    fn its_name_is_that_of_its_child_or_describes_it() {
        let image = tempfile::NamedTempFile::new().expect("a file");
        image.as_file().set_len(1 << 20).expect("sparse");
        let path = image.path().to_str().expect("ASCII");
        let file = file(image.path(), false);
        let name = |node: &Node| node.driver().info().filename;
        assert_eq!(name(&raw(&file, 0, None)), path);
        let moved = raw(&file, 512, None);
        let described = |node: &Node| {
            let name = name(node);
            let json = name.strip_prefix("json:").expect("a description");
            serde_json::from_str::<Value>(json).expect("JSON")
        };
        let expected = json!({ "driver": "raw", "offset": 512,
            "file": { "driver": "file", "filename": path } });
        assert_eq!(described(&moved), expected);
        let above = raw(&raw(&file, 512, None), 0, None);
        assert_eq!(
            described(&above),
            json!({ "driver": "raw", "file": expected })
        );
    }

    /// Alignments are the storage's, wherever the window begins there.
    #[test]
    fn alignments_count_from_where_the_storage_begins() {
        let image = tempfile::NamedTempFile::new().expect("a file");
        image.as_file().set_len(1 << 20).expect("sparse");
        let file = file(image.path(), false);
        let outer = raw(&file, 4096 + 512, None);
        let inner = raw(&outer, 1024, Some(4096));
        let origins = [&file, &outer, &inner].map(|node| node.driver().limits().origin);
        assert_eq!(origins, [0, 4608, 5632]);
    }

    /// A daemon that is started again with another window is not taken for one that serves the same image.
    #[test]
    fn another_window_is_another_image() {
        let image = tempfile::NamedTempFile::new().expect("a file");
        image.as_file().set_len(1 << 20).expect("sparse");
        let file = file(image.path(), false);
        let of = |offset, size| raw(&file, offset, size).image();
        assert_eq!(of(0, None), file.image());
        assert_eq!(of(0, Some(4096)), file.image());
        assert!(of(512, None).is_same(&of(512, Some(4096))));
        assert!(!of(512, None).is_same(&of(1024, None)));
        assert!(!of(512, None).is_same(&file.image()));
    }

    /// All of it once more, without io_uring.
    #[test]
    fn again_on_threads() {
        testkit::engine::again_on_threads();
    }
}
