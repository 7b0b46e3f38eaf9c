//! Images that QEMU has made, read by the driver. Needs qemu-img and qemu-io (Debian: qemu-utils).

mod common;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::ops::Range;
    use std::path::Path;

    use block::{Extent, Stored};
    use serde_json::Value;
    use standfast_qcow2::CacheSizes;
    use testkit::qcow2_image::{self, DISK_BYTES, KINDS};
    use testkit::{Place, Rng};

    use super::common::{Bench, is_read_only};

    fn ranges(seed: u64, count: usize, longest: u64) -> Vec<Range<u64>> {
        let mut rng = Rng::new(seed);
        let one = |_| {
            let start = rng.below(DISK_BYTES);
            let bytes = 1 + rng.below(longest.min(DISK_BYTES - start));
            start..start + bytes
        };
        (0..count).map(one).collect()
    }

    fn part<'a>(content: &'a [u8], range: &Range<u64>) -> &'a [u8] {
        let index = |at: u64| usize::try_from(at).unwrap();
        &content[index(range.start)..index(range.end)]
    }

    /// Whole, and in pieces of any place and length, many at once; with all tables remembered, and hardly any.
    #[test]
    fn what_qemu_has_written_is_read() {
        let place = Place::new();
        let path = place.file("disk.qcow2");
        for kind in KINDS {
            qcow2_image::make(&path, kind).unwrap();
            let content = qcow2_image::content(&path).unwrap();
            let small = CacheSizes {
                l2: Some(512),
                l2_entry: Some(512),
                ..CacheSizes::default()
            };
            for caches in [CacheSizes::default(), small] {
                let bench = Bench::new();
                let node = bench.open(&path, caches).unwrap();
                assert_eq!(node.driver().length(), DISK_BYTES);
                assert!(is_read_only(&node));
                let all = 0..DISK_BYTES;
                let read = bench.whole(&node);
                assert!(read == part(&content, &all), "{kind}");
                let many = ranges(3, 80, 9000);
                let long = ranges(5, 8, 600_000);
                for ranges in [many, long] {
                    let read = bench.read(&node, ranges.clone());
                    for (range, read) in ranges.iter().zip(read) {
                        let read = read.unwrap();
                        assert!(read == part(&content, range), "{kind} {range:?}");
                    }
                }
            }
        }
    }

    /// What is said of the bytes is what they are, is where they are, and is what qemu-img map says.
    #[test]
    fn the_status_is_what_qemu_says() {
        let place = Place::new();
        let path = place.file("disk.qcow2");
        for kind in KINDS {
            qcow2_image::make(&path, kind).unwrap();
            let content = qcow2_image::content(&path).unwrap();
            let file = fs::read(&path).unwrap();
            let bench = Bench::new();
            let node = bench.open(&path, CacheSizes::default()).unwrap();
            let mut extents: Vec<(u64, Extent)> = Vec::new();
            let each = |at, extent: &Extent| extents.push((at, extent.clone()));
            pollster::block_on(node.extents(0..DISK_BYTES, each)).unwrap();
            let mut reached = 0;
            for (at, extent) in &extents {
                assert_eq!(*at, reached, "{kind}");
                reached += extent.bytes;
                let here = part(&content, &(*at..reached));
                if extent.zero {
                    assert!(here.iter().all(|byte| *byte == 0), "{kind} {at}");
                }
                if let (true, Stored::In { node, offset }) = (extent.data, &extent.stored) {
                    assert_eq!(&**node, "file0");
                    // The last cluster need not be there as a whole.
                    let end = (*offset + extent.bytes).min(file.len() as u64);
                    let stored = part(&file, &(*offset..end));
                    let (first, rest) = here.split_at(stored.len());
                    let zero = rest.iter().all(|byte| *byte == 0);
                    assert!(first == stored && zero, "{kind} {at}");
                }
            }
            assert_eq!(reached, DISK_BYTES);
            compare_with_qemu(&path, kind, &extents);
        }
    }

    fn compare_with_qemu(path: &Path, kind: &str, extents: &[(u64, Extent)]) {
        let arguments = ["map", "-fqcow2", "--output=json", path.to_str().unwrap()];
        let map = qcow2_image::run("qemu-img", &arguments).unwrap();
        let map: Vec<Value> = serde_json::from_str(&map).unwrap();
        for one in &map {
            let number = |name: &str| one[name].as_u64();
            let start = number("start").unwrap();
            let end = start + number("length").unwrap();
            for at in (start..end).step_by(512) {
                let found = extents
                    .iter()
                    .find(|(from, extent)| from + extent.bytes > at);
                let (from, extent) = found.unwrap();
                let said = (extent.allocated, extent.zero, extent.data);
                let flag = |name: &str| one[name] == true;
                let qemu = (flag("present"), flag("zero"), flag("data"));
                // It also looks for holes in the file, where metadata was preallocated.
                if !kind.contains("preallocation") {
                    assert_eq!(said, qemu, "{kind} {at} {one}");
                }
                if let (Stored::In { offset, .. }, Some(qemu)) = (&extent.stored, number("offset"))
                {
                    assert_eq!(offset + (at - from), qemu + (at - start), "{kind} {at}");
                }
            }
        }
        assert!(!map.is_empty(), "{kind}");
    }

    /// Internal snapshots and bitmaps are in nobody's way.
    #[test]
    fn snapshots_and_bitmaps_do_not_disturb() {
        let place = Place::new();
        let path = place.file("disk.qcow2");
        let name = path.to_str().unwrap();
        qcow2_image::make(&path, KINDS[0]).unwrap();
        let run = |program: &str, arguments: &[&str]| {
            let all = [arguments, &[name]].concat();
            qcow2_image::run(program, &all).unwrap();
        };
        run("qemu-img", &["snapshot", "-c", "before"]);
        run("qemu-io", &["-fqcow2", "-c", "write -q -P 77 64k 3M"]);
        qcow2_image::run("qemu-img", &["bitmap", "--add", "-g", "1M", name, "b0"]).unwrap();
        let content = qcow2_image::content(&path).unwrap();
        let bench = Bench::new();
        let node = bench.open(&path, CacheSizes::default()).unwrap();
        let read = bench.whole(&node);
        assert!(read == content);
        let format = node.driver().info().format.unwrap();
        let [bitmap] = &format.qcow2.bitmaps[..] else {
            panic!("{format:?}")
        };
        let known = (
            &*bitmap.name,
            bitmap.granularity,
            bitmap.auto,
            bitmap.in_use,
        );
        assert_eq!(known, ("b0", 1 << 20, true, false));
        assert_eq!((format.cluster_size, format.dirty), (65536, false));
    }

    /// In version 2 there is no bit for it.
    #[test]
    fn options_that_an_old_image_cannot_keep_are_refused() {
        let place = Place::new();
        let path = place.file("disk.qcow2");
        let name = path.to_str().unwrap();
        let bench = Bench::new();
        for (compat, refused) in [("0.10", true), ("1.1", false)] {
            let compat = format!("compat={compat}");
            let arguments = ["create", "-qfqcow2", "-o", &compat, name, "1M"];
            qcow2_image::run("qemu-img", &arguments).unwrap();
            let lazy = |wanted| bench.open_as(&path, |options| options.lazy_refcounts = wanted);
            lazy(None).unwrap();
            lazy(Some(false)).unwrap();
            let lazy = lazy(Some(true));
            let kept = bench.open_as(&path, |options| options.discard_no_unref = true);
            for (opened, words) in [(lazy, "Lazy refcounts"), (kept, "discard-no-unref")] {
                let said = opened.err().map(|error| error.desc);
                let fits = said.as_ref().is_some_and(|said| said.starts_with(words));
                assert_eq!(
                    (said.is_some(), fits),
                    (refused, refused),
                    "{compat}: {said:?}"
                );
            }
        }
    }

    /// What cannot be read yet is refused, and the text names what it is and what helps.
    #[test]
    fn what_is_not_there_yet_is_refused_by_name() {
        let place = Place::new();
        let path = place.file("disk.qcow2");
        let name = path.to_str().unwrap();
        let bench = Bench::new();
        let refused = || {
            let error = bench.open(&path, CacheSizes::default()).unwrap_err();
            error.to_string()
        };
        let create = |arguments: &[&str]| {
            let all = [&["create", "-qfqcow2"], arguments].concat();
            // It measures how quick the machine is for LUKS, which it cannot say of one that is busy.
            let made = (0..20).find_map(|_| match qcow2_image::run("qemu-img", &all) {
                Err(error) if error.to_string().contains("accurate CPU usage") => None,
                made => Some(made),
            });
            made.expect("the machine is not that busy").unwrap();
        };
        let data = place.name("data.raw");
        let secret = "secret,id=s,data=abc123";
        let base = place.name("base.qcow2");
        create(&[&base, "1M"]);
        for (arguments, words) in [
            (
                vec!["-Fqcow2", "-b", &base, name],
                ["backing file", "say which node"],
            ),
            (
                vec!["-o", &format!("data_file={data}"), name, "1M"],
                ["'data-file' is required", "for this image"],
            ),
            (
                vec![
                    "--object",
                    secret,
                    "-oencrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
                    name,
                    "1M",
                ],
                ["LUKS", "qemu-img convert"],
            ),
        ] {
            create(&arguments);
            let said = refused();
            assert!(words.iter().all(|word| said.contains(word)), "{said}");
        }
        create(&[name, "1M"]);
        let sound = fs::read(&path).unwrap();
        // Bit 5 has no name; bit 63 gets one.
        for (bytes, word) in [
            (vec![(79, 0x20)], "feature bit 5"),
            (
                vec![
                    (72, 0x80),
                    (120, 0),
                    (121, 63),
                    (122, b'q'),
                    (123, b'y'),
                    (124, 0),
                ],
                "qy",
            ),
            (vec![(0, 0)], "not in qcow2 format"),
            (vec![(7, 4)], "version 4"),
            (vec![(39, 0)], "L1 table"),
            (vec![(44, 9)], "L1 table"),
        ] {
            let mut image = sound.clone();
            for (at, byte) in bytes {
                image[at] = byte;
            }
            fs::write(&path, image).unwrap();
            let said = refused();
            assert!(said.contains(word), "{said}");
        }
        // Known to be wrong or behind: that is no reason not to read.
        for (bit, dirty, corrupt) in [(1, true, false), (2, false, true)] {
            let mut image = sound.clone();
            image[79] = bit;
            fs::write(&path, image).unwrap();
            let node = bench.open(&path, CacheSizes::default()).unwrap();
            let info = node.driver().info();
            let format = info.format.unwrap();
            assert_eq!((format.dirty, format.qcow2.corrupt), (dirty, Some(corrupt)));
            assert_eq!(info.warning.is_some(), corrupt);
        }
        let caches = CacheSizes {
            l2_entry: Some(1000),
            ..CacheSizes::default()
        };
        let error = bench.open(&path, caches).unwrap_err();
        assert!(error.desc.contains("power of two"), "{error}");
    }

    /// An entry that cannot be is an error of the request that meets it, and of no other; it names the table.
    #[test]
    fn a_corrupt_entry_is_named() {
        let place = Place::new();
        let path = place.file("disk.qcow2");
        let name = path.to_str().unwrap();
        let create = ["create", "-qfqcow2", "-ocluster_size=64k", name, "1G"];
        qcow2_image::run("qemu-img", &create).unwrap();
        let write = ["-fqcow2", "-c", "write -q -P 5 0 256k", name];
        qcow2_image::run("qemu-io", &write).unwrap();
        let sound = fs::read(&path).unwrap();
        let be64 = |at: usize| u64::from_be_bytes(sound[at..at + 8].try_into().unwrap());
        let l1 = usize::try_from(be64(40)).unwrap();
        let l2 = usize::try_from(be64(l1) & 0x00ff_ffff_ffff_fe00).unwrap();
        for (at, entry, words) in [
            (
                l2 + 8,
                0x8000_0000_0005_0200,
                "L2 table at 0x40000, entry 1: offset 0x50200",
            ),
            (
                l2 + 8,
                0x8000_0000_0005_0002,
                "entry 1: the reserved bits 0x2",
            ),
            (
                l2 + 8,
                0x8000_7000_0000_0000,
                "0x700000000000 of the file, which ends before",
            ),
            (
                l2 + 8,
                0x4000_7000_0000_0000,
                "0x700000000000 of the file, which ends before",
            ),
            (
                l2 + 8,
                0x4000_0000_0000_0003,
                "compressed cluster at 0x3 (L2 entry 1",
            ),
            (
                l1,
                0x8000_7000_0000_0000,
                "L2 table at 0x700000000000: the file ends",
            ),
            (l1, 0x8000_0000_0004_0200, "entry 0: offset 0x40200"),
        ] {
            let mut image = sound.clone();
            image[at..at + 8].copy_from_slice(&u64::to_be_bytes(entry));
            fs::write(&path, image).unwrap();
            let bench = Bench::new();
            let node = bench.open(&path, CacheSizes::default()).unwrap();
            let ranges = vec![0x1_0000..0x1_0200, 0x2_0000..0x3_0000, 0xf_0000..0x11_0000];
            let mut read = bench.read(&node, ranges).into_iter();
            let error = read.next().unwrap().unwrap_err();
            assert_eq!(error.errno(), libc::EIO);
            assert_eq!(error.context().node.as_deref(), Some("disk0"));
            let said = error.to_string();
            assert!(said.contains(words), "{said} / {words}");
            let rest: Vec<_> = read.collect();
            let readable = rest.iter().all(Result::is_ok);
            assert_eq!(readable, at != l1, "{words}");
        }
    }

    /// Whatever is changed in the tables and the header: nothing panics or hangs, and memory is bounded.
    #[test]
    fn broken_images_are_read_or_refused() {
        let place = Place::new();
        let path = place.file("disk.qcow2");
        let rounds = if testkit_soaks() { 20_000 } else { 60 };
        for kind in [
            "cluster_size=4k,compression_type=zstd",
            "cluster_size=16k,extended_l2=on",
        ] {
            qcow2_image::make(&path, kind).unwrap();
            let sound = fs::read(&path).unwrap();
            let be64 = |at: usize| u64::from_be_bytes(sound[at..at + 8].try_into().unwrap());
            let l1 = usize::try_from(be64(40)).unwrap();
            let l2 = usize::try_from(be64(l1) & 0x00ff_ffff_ffff_fe00).unwrap();
            let mut rng = Rng::new(11);
            let bench = Bench::new();
            let mut opened = 0;
            for _ in 0..rounds {
                let mut image = sound.clone();
                for _ in 0..=rng.below(3) {
                    let (begin, length) = [(0, 120), (l1, 64), (l2, 4096), (0, image.len())]
                        [usize::try_from(rng.below(4)).unwrap()];
                    let at = begin + usize::try_from(rng.below(length as u64)).unwrap();
                    if let Some(byte) = image.get_mut(at) {
                        *byte = rng.next_u64().to_le_bytes()[0];
                    }
                }
                fs::write(&path, image).unwrap();
                let Ok(node) = bench.open(&path, CacheSizes::default()) else {
                    continue;
                };
                opened += 1;
                let length = node.driver().length();
                let ranges = (0..8).map(|_| {
                    let start = rng.below(length.min(DISK_BYTES));
                    start..(start + 70_000).min(length)
                });
                for read in bench.read(&node, ranges.collect()) {
                    let errno = read.err().map(|error| error.errno());
                    assert!(matches!(errno, None | Some(libc::EIO)), "{errno:?}");
                }
                let _ = pollster::block_on(node.block_status(0..length));
            }
            assert!(opened > rounds / 4, "{opened}");
        }
    }

    fn testkit_soaks() -> bool {
        std::env::var_os("STANDFAST_SOAK").is_some_and(|value| value == "1")
    }
}
