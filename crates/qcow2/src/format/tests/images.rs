//! What qemu-img makes.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::super::*;

/// What qemu-img says it has made, and what we read of it: all combinations that it makes.
#[test]
fn images_of_qemu_img_are_what_they_were_made_as() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("image.qcow2");
    let mut made = 0;
    for cluster_bits in [9u32, 12, 14, 16, 17, 21] {
        for order in [0u32, 1, 3, 4, 6] {
            for kind in 0..6u32 {
                let extended = kind == 1 || kind == 4;
                let zstd = kind == 2 || kind == 4;
                let old = kind == 5;
                if (extended && cluster_bits < 14) || (old && order != 4) {
                    continue;
                }
                let options = format!(
                    "cluster_size={},refcount_bits={},compat={}{}{}{}",
                    1 << cluster_bits,
                    1 << order,
                    if old { "0.10" } else { "1.1" },
                    if extended { ",extended_l2=on" } else { "" },
                    if zstd { ",compression_type=zstd" } else { "" },
                    if kind == 3 { ",lazy_refcounts=on" } else { "" },
                );
                create(&path, &options);
                let file = fs::read(&path).expect("it was made");
                let header = Header::parse(&file).expect("QEMU has made it");
                assert_eq!(header.check(), Ok(()), "{options}");
                assert_eq!(header.version, if old { 2 } else { 3 });
                let geometry = Geometry::new(cluster_bits, order, extended).expect("in range");
                assert_eq!(header.geometry, geometry, "{options}");
                assert_eq!(header.size, 5 << 20);
                assert_eq!(header.features.has_lazy_refcounts(), kind == 3);
                let expected = match zstd {
                    true => CompressionType::Zstd,
                    false => CompressionType::Deflate,
                };
                assert_eq!(header.compression_type(), Ok(expected));
                if !old {
                    // QEMU leaves the names out of small clusters.
                    let name = header.feature_name(0);
                    let named = (cluster_bits >= 14).then_some("dirty bit");
                    assert_eq!(name.as_deref(), named);
                    // QEMU pads the header with zeroes to the end of its cluster.
                    let encoded = header.encode().expect("it fits");
                    assert_eq!(file.get(..encoded.len()), Some(&*encoded), "{options}");
                }
                refcounts_cover(&header, &file);
                made += 1;
            }
        }
    }
    assert!(made > 100, "{made}");
}

/// Each cluster of a new image is used once.
fn refcounts_cover(header: &Header, file: &[u8]) {
    let geometry = header.geometry;
    let clusters = geometry.clusters_for(file.len() as u64);
    let table_at = usize::try_from(header.refcount_table_offset.0).expect("in the file");
    for cluster in 0..clusters {
        let (index, within) = geometry.refcount_place(HostCluster(cluster));
        let at = table_at + usize::try_from(index).expect("small") * 8;
        let entry = bytes::be64(file, at).expect("in the file");
        let block = RefcountTableEntry(entry).block(&geometry).expect("sound");
        let block = usize::try_from(block.expect("there is one").0).expect("in the file");
        let refcount = refcount::get(&file[block..], within, geometry.refcount_order());
        assert_eq!(refcount, Some(1), "cluster {cluster} of {header:?}");
    }
}

#[test]
fn backing_files_snapshots_and_bitmaps_of_qemu_img() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("image.qcow2");
    create(&path, "cluster_size=64k");
    run("qemu-img", &["snapshot", "-c", "first", name(&path)]);
    run("qemu-img", &["snapshot", "-c", "second one", name(&path)]);
    run("qemu-img", &["bitmap", "--add", name(&path), "b0"]);
    let file = fs::read(&path).expect("it was made");
    let header = Header::parse(&file).expect("QEMU has made it");
    assert_eq!((header.check(), header.snapshots), (Ok(()), 2));
    let mut at = usize::try_from(header.snapshots_offset.0).expect("in the file");
    for expected in ["first", "second one"] {
        let (snapshot, used) = SnapshotEntry::parse(&file[at..]).expect("there is one");
        assert_eq!(snapshot.name, expected.as_bytes());
        assert_eq!(snapshot.disk_size(), Some(5 << 20));
        assert_eq!(snapshot.vm_state_size(), 0);
        assert_eq!(snapshot.encode(), file[at..at + used]);
        at += used;
    }
    let bitmaps = header.extension(extension::BITMAPS).expect("it has one");
    let bitmaps = BitmapsExtension::parse(bitmaps).expect("sound");
    assert!(bitmaps.bitmaps == 1 && header.features.has_bitmaps());
    let at = usize::try_from(bitmaps.directory_offset.0).expect("in the file");
    let (entry, used) = BitmapEntry::parse(&file[at..]).expect("there is one");
    assert_eq!(
        (&*entry.name, used as u64),
        (&b"b0"[..], bitmaps.directory_size)
    );
    assert_eq!(entry.encode(), file[at..at + used]);
    let over = dir.path().join("over.qcow2");
    let backed = [
        "create",
        "-qfqcow2",
        "-Fqcow2",
        "-b",
        name(&path),
        name(&over),
    ];
    run("qemu-img", &backed);
    let file = fs::read(&over).expect("it was made");
    let header = Header::parse(&file).expect("QEMU has made it");
    assert_eq!(header.check(), Ok(()));
    assert_eq!(header.backing_name.as_deref(), Some(name(&path).as_bytes()));
    assert_eq!(
        header.extension(extension::BACKING_FORMAT),
        Some(&b"qcow2"[..])
    );
}

fn create(path: &Path, options: &str) {
    let all = ["create", "-qfqcow2", "-o", options, name(path), "5M"];
    run("qemu-img", &all);
}

fn name(path: &Path) -> &str {
    path.to_str().expect("our own name")
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output();
    let output = output.expect("qemu-img can be run");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
}
