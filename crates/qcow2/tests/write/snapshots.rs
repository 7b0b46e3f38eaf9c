//! Images with internal snapshots, written by us and by QEMU in turns: what a snapshot has stays what it was.

use std::collections::BTreeMap;
use std::path::Path;

use standfast_qcow2::OverlapCheck;
use standfast_qcow2::format::refcount::ENTRY_BYTES;
use standfast_qcow2::format::{Geometry, Header, HostCluster, HostOffset};

use super::{
    Bench, CacheSizes, Disk, KIB, MIB, Medium, Place, Request, Rng, SECTOR, index, is_same,
    qemu_agrees, run,
};

/// What a snapshot has, as QEMU reads it.
fn content_of(place: &Place, path: &Path, snapshot: &str) -> Vec<u8> {
    let raw = place.name("snapshot.raw");
    let (name, select) = (path.to_str().unwrap(), format!("snapshot.name={snapshot}"));
    run("qemu-img", &["convert", "-l", &select, "-Oraw", name, &raw]).unwrap();
    std::fs::read(&raw).unwrap()
}

fn snapshot(path: &Path, what: &str, name: &str) {
    let path = path.to_str().unwrap();
    run("qemu-img", &["snapshot", what, name, path]).unwrap();
}

fn in_turns(options: &str, cluster: u64, seed: u64) {
    let place = Place::new();
    let path = place.file("disk.qcow2");
    let mut rng = Rng::new(seed);
    let mut content = vec![0; index(MIB + 64 * KIB + SECTOR)];
    let bytes = content.len().to_string();
    let name = path.to_str().unwrap();
    let create = ["create", "-qfqcow2", "-o", options, name, &bytes];
    run("qemu-img", &create).unwrap();
    // Some of it compressed.
    let text = place.name("text");
    content[..256 << 10].fill(0x11);
    std::fs::write(&text, vec![0x11; 256 << 10]).unwrap();
    let write = format!("write -q -c -s {text} 0 256k");
    run("qemu-io", &["-fqcow2", "-c", &write, name]).unwrap();
    let mut kept: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let bench = Bench::new();
    for turn in 0..8_u64 {
        let what = format!("{options}, seed {seed}, turn {turn}");
        let some = |rng: &mut Rng| {
            let nth = index(rng.below(kept.len() as u64));
            kept.keys().nth(nth).cloned().unwrap()
        };
        match rng.below(5) {
            3 if kept.len() > 1 => {
                let gone = some(&mut rng);
                snapshot(&path, "-d", &gone);
                kept.remove(&gone);
            }
            4 if !kept.is_empty() => {
                let back = some(&mut rng);
                snapshot(&path, "-a", &back);
                content.clone_from(&kept[&back]);
            }
            _ => {
                let new = format!("s{turn}");
                snapshot(&path, "-c", &new);
                kept.insert(new, content.clone());
            }
        }
        let node = bench.open_writable(Medium::File, &path, CacheSizes::default());
        let node = node.unwrap_or_else(|error| panic!("{what}: {error}"));
        let mut disk = Disk {
            bench: &bench,
            node,
            content: &mut content,
            rng: &mut rng,
            cluster,
        };
        is_same(&bench.whole(&disk.node), disk.content, &what);
        disk.batch(12);
        if !options.contains("0.10") && turn % 3 == 1 {
            disk.resize(2 * MIB);
        }
        disk.batch(12);
        let node = disk.node;
        bench.close(node);
        qemu_agrees(&path, &content, &what);
        for (name, kept) in &kept {
            // As long as the disk is now.
            let found = content_of(&place, &path, name);
            let both = found.len().min(kept.len());
            let what = format!("{what}: snapshot {name}");
            is_same(&found[..both], &kept[..both], &what);
        }
    }
}

#[test]
fn what_snapshots_have_stays() {
    let all = [
        ("cluster_size=64k", 64 * KIB),
        ("cluster_size=4k,refcount_bits=32", 4 * KIB),
        ("cluster_size=16k,extended_l2=on", 16 * KIB),
        ("compat=0.10,cluster_size=4k", 4 * KIB),
        ("cluster_size=512,compression_type=zstd", 512),
    ];
    for (seed, (options, cluster)) in all.into_iter().enumerate() {
        in_turns(options, cluster, 50 + seed as u64);
    }
}

/// In the words of qemu-img, and nothing has changed.
#[test]
fn lengths_that_snapshots_do_not_know_stay() {
    let place = Place::new();
    let path = place.file("disk.qcow2");
    let name = path.to_str().unwrap();
    let create = ["create", "-qfqcow2", "-ocompat=0.10", name, "4M"];
    run("qemu-img", &create).unwrap();
    snapshot(&path, "-c", "one");
    let before = std::fs::read(&path).unwrap();
    let bench = Bench::new();
    let node = bench.open_writable(Medium::File, &path, CacheSizes::default());
    let node = node.unwrap();
    for bytes in [2 * MIB, 8 * MIB] {
        let error = node.resize(bytes).expect_err("it is refused").to_string();
        let peer = run(
            "qemu-img",
            &["resize", "--shrink", name, &bytes.to_string()],
        );
        let peer = peer.expect_err("it is refused").to_string();
        let text = "Can't resize a v2 image which has snapshots";
        assert!(
            error.contains(text) && peer.contains(text),
            "{error} / {peer}"
        );
    }
    assert_eq!(node.driver().length(), 4 * MIB);
    bench.close(node);
    assert!(
        std::fs::read(&path).unwrap() == before,
        "nothing is written"
    );
}

/// The refcount of a cluster is said to be `count`, which it is not.
fn count(image: &mut [u8], geometry: &Geometry, at: HostOffset, count: u16) {
    let header = Header::parse(image).unwrap();
    let HostCluster(cluster) = geometry.cluster_of(at);
    let (block, within) = geometry.refcount_place(HostCluster(cluster));
    let entry = index(header.refcount_table_offset.0 + block * ENTRY_BYTES as u64);
    let block = u64::from_be_bytes(image[entry..entry + 8].try_into().unwrap());
    // 16 bits each.
    let place = index(block) + 2 * within;
    image[place..place + 2].copy_from_slice(&count.to_be_bytes());
}

/// An image whose counts are wrong: a table of a snapshot is about to be given to the guest. It was not known as one.
#[test]
fn tables_of_snapshots_are_given_to_nobody() {
    let place = Place::new();
    let path = place.file("disk.qcow2");
    let name = path.to_str().unwrap();
    run(
        "qemu-img",
        &["create", "-qfqcow2", "-ocluster_size=4k", name, "4M"],
    )
    .unwrap();
    run("qemu-io", &["-fqcow2", "-c", "write -q 0 64k", name]).unwrap();
    snapshot(&path, "-c", "one");
    let mut whole = std::fs::read(&path).unwrap();
    // The last table is not whole.
    whole.resize(whole.len().next_multiple_of(4096), 0);
    let header = Header::parse(&whole).unwrap();
    let number = |at: u64| u64::from_be_bytes(whole[index(at)..index(at) + 8].try_into().unwrap());
    let table = header.snapshots_offset;
    let l1 = HostOffset(number(table.0));
    let l2 = HostOffset(number(l1.0) & 0x00ff_ffff_ffff_fe00);
    let bench = Bench::new();
    for (at, counted, kind, all) in [
        (table, 0, "snapshot table", false),
        (l1, 0, "inactive L1 table", false),
        (l2, 0, "active L2 table", false),
        // The disk lets it go, and the snapshot still has it: nobody is given it.
        (l2, 1, "", true),
    ] {
        let mut image = whole.clone();
        count(&mut image, &header.geometry, at, counted);
        std::fs::write(&path, image).unwrap();
        let node = bench.writable(Medium::File, &path, |options| {
            if all {
                options.overlap = OverlapCheck::ALL;
            }
        });
        let node = node.unwrap();
        // The first of these copies the L2 table, which makes it the snapshot's alone; the others need room.
        let write = |at| Request::Write {
            at,
            data: vec![7; index(64 * KIB)],
        };
        let mut ended = bench.run(&node, vec![write(0)]);
        for number in 1..16 {
            // What is free is given away after a flush.
            ended.extend(bench.run(&node, vec![Request::Flush]));
            ended.extend(bench.run(&node, vec![write(number * 64 * KIB)]));
        }
        match ended.into_iter().find_map(Result::err) {
            None => assert!(kind.is_empty(), "{kind}: it is not noticed"),
            Some(error) => {
                let text = error.to_string();
                let words = format!("overlaps with {kind}");
                assert!(!kind.is_empty() && text.contains(&words), "{kind}: {text}");
            }
        }
        drop(node);
        let after = std::fs::read(&path).unwrap();
        let [was, is] = [&whole, &after].map(|image| &image[index(at.0)..index(at.0) + 4096]);
        assert!(was == is, "{kind}: it has been written");
    }
}
