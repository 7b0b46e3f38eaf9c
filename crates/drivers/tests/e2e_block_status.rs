//! Block status of real files, as another program sees them (`qemu-img map`), and of storage that hangs.
//!
//! Needs root, tmpfs, loop devices, FUSE and qemu-img.

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::ops::Range;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::FileExt;
    use std::path::Path;
    use std::process::Command;
    use std::sync::Arc;

    use block::{Extent, Node, Stored};
    use proptest::prelude::*;
    use proptest::test_runner::{Config, TestRunner};
    use standfast_drivers::{Blkdebug, BlkdebugOptions, FileDriver, FileOptions};
    use testkit::{Ext4, Tmpfs};

    const BLOCK: u64 = 4096;
    const BLOCKS: u64 = 256;

    #[derive(Clone, Debug)]
    enum Change {
        Write(Range<u64>),
        Punch(Range<u64>),
        Preallocate(Range<u64>),
    }

    /// In blocks.
    fn some_blocks() -> impl Strategy<Value = Range<u64>> {
        (0..BLOCKS, 1..24u64).prop_map(|(start, count)| start..(start + count).min(BLOCKS))
    }

    fn change() -> impl Strategy<Value = Change> {
        prop_oneof![
            3 => some_blocks().prop_map(Change::Write),
            1 => some_blocks().prop_map(Change::Punch),
            1 => some_blocks().prop_map(Change::Preallocate),
        ]
    }

    fn some_bytes() -> impl Strategy<Value = Range<u64>> {
        let bytes = BLOCKS * BLOCK;
        (0..bytes, 1..bytes / 2).prop_map(|(start, count)| start..start + count)
    }

    fn apply(file: &File, change: &Change) {
        let allocate = |range: &Range<u64>, mode: i32| {
            let (at, bytes) = (range.start * BLOCK, (range.end - range.start) * BLOCK);
            let (at, bytes) = (at.cast_signed(), bytes.cast_signed());
            // SAFETY: the descriptor is open; no memory is involved.
            let result = unsafe { libc::fallocate(file.as_raw_fd(), mode, at, bytes) };
            assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        };
        match change {
            Change::Write(range) => {
                let bytes = usize::try_from((range.end - range.start) * BLOCK).expect("small");
                file.write_all_at(&vec![7; bytes], range.start * BLOCK)
                    .expect("space");
            }
            Change::Punch(range) => {
                allocate(
                    range,
                    libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                );
            }
            Change::Preallocate(range) => allocate(range, libc::FALLOC_FL_KEEP_SIZE),
        }
    }

    /// What is said of a run of bytes: where it begins and ends, present, data, zero, offset.
    type Said = (Range<u64>, bool, bool, bool, Option<u64>);

    /// What two ways of cutting the same into pieces have in common.
    fn joined(said: impl Iterator<Item = Said>) -> Vec<Said> {
        let mut all: Vec<Said> = Vec::new();
        for (range, present, data, zero, offset) in said {
            if let Some((last, ..)) = all
                .last_mut()
                .filter(|last| (last.1, last.2, last.3) == (present, data, zero))
            {
                assert_eq!(last.end, range.start, "a gap");
                last.end = range.end;
            } else {
                all.push((range, present, data, zero, offset));
            }
        }
        all
    }

    /// What the stranger says of a range.
    fn strangers(path: &Path, range: &Range<u64>) -> Vec<Said> {
        let output = Command::new("qemu-img")
            .args(["map", "-U", "-f", "raw", "--output=json"])
            .arg(format!("--start-offset={}", range.start))
            .arg(format!("--max-length={}", range.end - range.start))
            .arg(path)
            .output()
            .expect("qemu-img is needed for this test");
        assert!(output.status.success(), "{output:?}");
        let extents: Vec<serde_json::Value> =
            serde_json::from_slice(&output.stdout).expect("a list");
        joined(extents.iter().map(|extent| {
            let number = |name: &str| extent[name].as_u64();
            let says = |name: &str| extent[name].as_bool().expect("a boolean");
            let start = number("start").expect("a number");
            let end = start + number("length").expect("a number");
            let offset = number("offset");
            (
                start..end,
                says("present"),
                says("data"),
                says("zero"),
                offset,
            )
        }))
    }

    /// What the node says of a range, asked again and again.
    fn ours(node: &Node, range: Range<u64>) -> Vec<Said> {
        let mut all = Vec::new();
        let said = |at, extent: &Extent| {
            let Stored::In { node, offset } = &extent.stored else {
                panic!("{extent:?} is in a file");
            };
            assert_eq!(&**node, "file0", "whoever stores it");
            let range = at..at + extent.bytes;
            let Extent {
                allocated,
                data,
                zero,
                ..
            } = *extent;
            all.push((range, allocated, data, zero, Some(*offset)));
        };
        pollster::block_on(node.extents(range, said)).expect("known");
        joined(all.into_iter())
    }

    fn open(path: &Path) -> Arc<Node> {
        let driver = FileDriver::open_file(FileOptions {
            node_name: "file0".into(),
            filename: path.to_str().expect("ASCII").to_owned(),
            ..FileOptions::default()
        });
        Node::new("file0", Box::new(driver.expect("opens")))
    }

    /// A filter on it: it says what its child says.
    fn filtered(image: Arc<Node>) -> Arc<Node> {
        let driver = Blkdebug::new(BlkdebugOptions {
            node_name: "filter0".into(),
            image,
            inject_error: Vec::new(),
            set_state: Vec::new(),
            align: None,
        });
        Node::new("filter0", Box::new(driver.expect("opens")))
    }

    fn agree(dir: &Path) {
        let path = dir.join("image");
        let changes = prop::collection::vec(change(), 0..16);
        let ranges = prop::collection::vec(some_bytes(), 1..4);
        let mut runner = TestRunner::new(Config {
            cases: 24,
            failure_persistence: None,
            ..Config::default()
        });
        let agreed = runner.run(&(changes, ranges), |(changes, ranges)| {
            let file = File::create(&path).expect("a file");
            file.set_len(BLOCKS * BLOCK).expect("sparse");
            for change in &changes {
                apply(&file, change);
            }
            // What has not been written yet may be anything in between.
            file.sync_all().expect("written");
            let node = filtered(open(&path));
            for range in ranges {
                let range = range.start & !511..range.end.next_multiple_of(512);
                let within = range.start..range.end.min(BLOCKS * BLOCK);
                prop_assert_eq!(ours(&node, range), strangers(&path, &within));
            }
            Ok(())
        });
        agreed.unwrap_or_else(|error| panic!("{error}"));
    }

    #[test]
    fn a_stranger_agrees_on_tmpfs() {
        let tmpfs = Tmpfs::new(16 << 20).expect("a tmpfs");
        agree(tmpfs.path());
    }

    #[test]
    fn a_stranger_agrees_on_ext4() {
        let ext4 = Ext4::new(32 << 20).expect("an ext4");
        agree(ext4.path());
    }

    /// An image that ends within a sector: what the node has behind it reads as zeroes. Behind the end
    /// of the node there is nothing.
    #[test]
    fn the_end_of_an_odd_image() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        file.as_file().write_all_at(&[1; 4100], 0).expect("space");
        let node = open(file.path());
        let said = ours(&node, 0..1 << 20);
        let end = said.last().expect("something").0.end;
        assert_eq!(end, 4608);
        let (last, .., zero, _) = said.last().expect("something");
        assert!(*zero && last.start >= 4100, "{said:?}");
        assert_eq!(ours(&node, 4608..9000), []);
        assert_eq!(ours(&node, 100..100), []);
    }
}
