//! Images with persistent bitmaps: those that do not follow what is written here are known as such before anything is, and
//! the others stay what they are.

use std::path::{Path, PathBuf};

use serde_json::Value;
use standfast_qcow2::format::{BitmapsExtension, Header, extension};

use super::{
    Bench, CacheSizes, Disk, KIB, MIB, Medium, Place, Request, Rng, index, is_same, qemu_agrees,
    qemu_check, run,
};

/// With `follows`, of which some bits are set, and `kept`, which is disabled and has the same.
fn make(place: &Place, options: &str) -> PathBuf {
    let path = place.file("disk.qcow2");
    let name = path.to_str().unwrap();
    run(
        "qemu-img",
        &["create", "-qfqcow2", "-o", options, name, "4M"],
    )
    .unwrap();
    let add = |bitmap, more: &[&str]| {
        let all = [&["bitmap", "--add", "-g64k"], more, &[name, bitmap]].concat();
        run("qemu-img", &all).unwrap();
    };
    add("follows", &[]);
    run("qemu-io", &["-fqcow2", "-c", "write -q -P1 1M 200k", name]).unwrap();
    add("kept", &["--disable", "--merge", "follows"]);
    path
}

/// Names and flags, as qemu-img tells them.
fn flags(path: &Path) -> Vec<(String, Vec<String>)> {
    let name = path.to_str().unwrap();
    let info = run("qemu-img", &["info", "--output=json", name]).unwrap();
    let info: Value = serde_json::from_str(&info).unwrap();
    let all = info["format-specific"]["data"]["bitmaps"].as_array();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let one = |bitmap: &Value| {
        let flags = bitmap["flags"].as_array().unwrap();
        (text(&bitmap["name"]), flags.iter().map(text).collect())
    };
    all.unwrap().iter().map(one).collect()
}

fn known(follows: &[&str]) -> Vec<(String, Vec<String>)> {
    let follows = follows.iter().map(ToString::to_string).collect();
    Vec::from([("follows".into(), follows), ("kept".into(), Vec::new())])
}

#[test]
fn those_that_follow_are_in_use_after_a_write() {
    for options in ["cluster_size=64k", "cluster_size=4k", "cluster_size=512"] {
        let place = Place::new();
        let path = make(&place, options);
        let name = path.to_str().unwrap();
        let mut content = testkit::qcow2_image::content(&path).unwrap();
        let before = std::fs::read(&path).unwrap();
        let bench = Bench::new();
        let open = || bench.open_writable(Medium::File, &path, CacheSizes::default());
        // Who reads and flushes writes nothing.
        let node = open().unwrap();
        is_same(&bench.whole(&node), &content, options);
        assert!(
            bench
                .run(&node, vec![Request::Flush])
                .pop()
                .unwrap()
                .is_ok()
        );
        bench.close(node);
        assert!(std::fs::read(&path).unwrap() == before, "{options}");
        assert_eq!(flags(&path), known(&["auto"]), "{options}");

        let mut rng = Rng::new(3);
        let mut disk = Disk {
            bench: &bench,
            node: open().unwrap(),
            content: &mut content,
            rng: &mut rng,
            cluster: 64 * KIB,
        };
        for _ in 0..3 {
            disk.batch(12);
        }
        let format = disk.node.driver().info().format.expect("qcow2");
        let shown: Vec<_> = format.qcow2.bitmaps.iter().map(|one| one.in_use).collect();
        assert_eq!(shown, [true, false], "{options}");
        let node = disk.node;
        bench.close(node);
        assert_eq!(flags(&path), known(&["in-use", "auto"]), "{options}");
        qemu_agrees(&path, &content, options);
        // What was kept can be used: 4 of its bits are set, and it can be read; the other cannot.
        let use_it = |bitmap| {
            let all = ["bitmap", "--add", "--merge", bitmap, name, "merged"];
            run("qemu-img", &all).map_err(|error| error.to_string())
        };
        let refused = use_it("follows").expect_err("it is not to be used");
        assert!(refused.contains("inconsistent"), "{refused}");
        if flags(&path).len() > 2 {
            run("qemu-img", &["bitmap", "--remove", name, "merged"]).unwrap();
        }
        use_it("kept").unwrap();
        for bitmap in ["merged", "follows", "kept"] {
            run("qemu-img", &["bitmap", "--remove", name, bitmap]).unwrap();
        }
        qemu_agrees(&path, &content, options);
    }
}

/// As with QEMU, which cannot do so either with what it does not have in memory, or cannot use.
#[test]
fn the_length_stays_if_a_bitmap_would_not_fit() {
    let place = Place::new();
    let path = make(&place, "cluster_size=64k");
    let name = path.to_str().unwrap();
    let bench = Bench::new();
    let open = || {
        let node = bench.open_writable(Medium::File, &path, CacheSizes::default());
        node.unwrap()
    };
    let refused = |words: &str| {
        let before = std::fs::read(&path).unwrap();
        let node = open();
        let error = node.resize(8 * MIB).expect_err("it is refused").to_string();
        assert!(error.contains(words), "{error}");
        bench.close(node);
        assert!(
            std::fs::read(&path).unwrap() == before,
            "nothing is written"
        );
    };
    refused("Cannot resize qcow2 with persistent bitmaps that were not loaded into memory ('kept'");
    run("qemu-img", &["bitmap", "--remove", name, "kept"]).unwrap();
    // What follows is in use before the length is another one: it does not have to fit.
    let node = open();
    node.resize(8 * MIB).unwrap();
    bench.close(node);
    qemu_check::is_clean(&path, "longer");
    let words = "Bitmap 'follows' is inconsistent and cannot be used";
    refused(words);
    let peer = run("qemu-img", &["resize", name, "16M"]).expect_err("it is refused");
    assert!(peer.to_string().contains(words), "{peer}");
    run("qemu-img", &["bitmap", "--remove", name, "follows"]).unwrap();
    let node = open();
    node.resize(16 * MIB).unwrap();
    bench.close(node);
    qemu_check::is_clean(&path, "longer again");
}

/// What cannot be read cannot be marked.
#[test]
fn a_directory_that_cannot_be_read_is_not_written_beside() {
    let place = Place::new();
    let path = make(&place, "cluster_size=64k");
    let content = testkit::qcow2_image::content(&path).unwrap();
    let mut image = std::fs::read(&path).unwrap();
    let header = Header::parse(&image).unwrap();
    let extension = header.extension(extension::BITMAPS).unwrap();
    let extension = BitmapsExtension::parse(extension).unwrap();
    // The type of the first one.
    image[index(extension.directory_offset.0) + 16] = 9;
    std::fs::write(&path, &image).unwrap();
    let bench = Bench::new();
    let node = bench.open_writable(Medium::File, &path, CacheSizes::default());
    let error = node.expect_err("it is refused").to_string();
    assert!(
        error.contains("Could not read bitmaps") && error.contains("type 9"),
        "{error}"
    );
    assert!(error.contains("read-only=on"), "{error}");
    let node = bench.open(&path, CacheSizes::default()).unwrap();
    is_same(&bench.whole(&node), &content, "read-only");
    drop(node);
    assert!(std::fs::read(&path).unwrap() == image, "nothing is written");
}
