//! The header of a qcow2 image with all that follows it, and entries of its tables, which anybody may have made.
//!
//! The input is the beginning of an image. What is understood is written back as it was, and read again as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use qcow2::format::l2::EntryRules;
use qcow2::format::{
    BitmapEntry, BitmapsExtension, GuestOffset, Header, HostCluster, L1Entry, L2Entry,
    RefcountTableEntry, SnapshotEntry, extension, refcount,
};

fuzz_target!(|bytes: &[u8]| {
    let Ok(header) = Header::parse(bytes) else {
        return;
    };
    if let Err(error) = header.check() {
        assert!(!error.to_string().is_empty());
    }
    if let Some(written) = header.encode() {
        let again = Header::parse(&written).expect("it is ours");
        let placed = Header {
            backing_offset: again.backing_offset,
            ..header.clone()
        };
        assert_eq!(again, placed);
    }
    entries(&header, bytes);
    snapshots(bytes);
    bitmaps(&header, bytes);
});

/// The bytes as tables of all kinds.
fn entries(header: &Header, bytes: &[u8]) {
    let geometry = header.geometry;
    let rules = EntryRules {
        geometry,
        version: header.version,
        external_data: header.features.has_external_data(),
    };
    for index in 0..bytes.len() / geometry.l2_entry_bytes() {
        let entry = L2Entry::read(bytes, index, &geometry).expect("it is inside");
        if let Ok(cluster) = entry.decode(&rules) {
            assert_eq!(L2Entry::encode(&cluster, &geometry), Some(entry));
        }
        let entry = L1Entry(entry.descriptor);
        if let Ok(table) = entry.table(&geometry) {
            let table = table.unwrap_or_default();
            assert!(geometry.is_cluster_start(table));
            assert_eq!(L1Entry::new(table, entry.is_copied()), entry);
        }
        let entry = RefcountTableEntry(entry.0);
        if let Ok(block) = entry.block(&geometry) {
            assert!(geometry.is_cluster_start(block.unwrap_or_default()));
        }
        let place = geometry.place(GuestOffset(entry.0));
        assert!(place.l2 < geometry.l2_entries() && place.within < geometry.cluster_size());
        let (_, within) = geometry.refcount_place(HostCluster(entry.0));
        assert!(within < geometry.refcounts_per_block());
    }
    let order = geometry.refcount_order();
    let mut block = bytes.to_vec();
    for index in 0..(bytes.len() * 8) >> order {
        let known = refcount::get(&block, index, order).expect("it is inside");
        assert!(refcount::set(&mut block, index, order, known));
    }
    assert_eq!(block, bytes);
}

fn snapshots(bytes: &[u8]) {
    let mut rest = bytes;
    while let Ok((entry, used)) = SnapshotEntry::parse(rest) {
        let (again, length) = SnapshotEntry::parse(&entry.encode()).expect("it is ours");
        assert_eq!((again, length), (entry, used));
        rest = rest.get(used..).unwrap_or_default();
    }
}

fn bitmaps(header: &Header, bytes: &[u8]) {
    let Some(data) = header.extension(extension::BITMAPS) else {
        return;
    };
    if let Ok(known) = BitmapsExtension::parse(data) {
        assert_eq!(known.encode(), data);
    }
    let mut rest = bytes;
    while let Ok((entry, used)) = BitmapEntry::parse(rest) {
        let (again, length) = BitmapEntry::parse(&entry.encode()).expect("it is ours");
        assert_eq!((again, length), (entry, used));
        rest = &rest[used..];
    }
}
