//! What no write may touch: what snapshots have, and bitmaps that are valid.
//!
//! Nothing of a snapshot ever moves, so all of it is where it was when the image was made, byte for byte. A bitmap that follows
//! all writes is in use as soon as anything was written; one that does not is what it was.

use std::ops::Range;

use standfast_qcow2::format::bitmap::{AUTO, BitmapCluster, BitmapTableEntry, IN_USE};
use standfast_qcow2::format::{
    BitmapEntry, BitmapsExtension, Cluster, L1Entry, L2Entry, SnapshotEntry, extension,
};
use standfast_qcow2::info::info;
use standfast_qcow2::{Image, ReadAt};
use sweep::sector::index;

/// Numbers of a table.
fn table(image: &[u8], at: u64, entries: u64) -> Vec<u64> {
    let mut bytes = vec![0; index(entries * 8)];
    image.read_at(at, &mut bytes).unwrap();
    let (numbers, _) = bytes.as_chunks();
    numbers
        .iter()
        .map(|bytes| u64::from_be_bytes(*bytes))
        .collect()
}

/// What one snapshot has, without its entry.
fn of_snapshot(image: &Image<'_>, disk: &[u8], entry: &SnapshotEntry) -> Vec<Range<u64>> {
    let geometry = image.geometry();
    let size = geometry.cluster_size();
    let (at, entries) = (entry.l1_offset.0, u64::from(entry.l1_entries));
    let mut all = Vec::new();
    all.push(at..at + entries * 8);
    for number in table(disk, at, entries) {
        let Some(l2) = L1Entry(number).table(geometry).unwrap() else {
            continue;
        };
        all.push(l2.0..l2.0 + size);
        let mut bytes = vec![0; geometry.cluster_bytes()];
        disk.read_at(l2.0, &mut bytes).unwrap();
        for number in 0..geometry.l2_entries() {
            let entry = L2Entry::read(&bytes, number, geometry).unwrap();
            let host = match entry.decode(&image.rules()).unwrap() {
                Cluster::Unallocated => continue,
                Cluster::Compressed(data) => {
                    all.push(data.offset.0..data.end());
                    continue;
                }
                Cluster::Zero { preallocated, .. } => preallocated,
                Cluster::Data { host, .. } => Some(host),
                Cluster::Subclusters { host, .. } => host,
            };
            all.extend(host.map(|host| host.0..host.0 + size));
        }
    }
    all
}

/// What all snapshots of an image have.
pub fn of_snapshots(disk: &[u8]) -> Vec<Range<u64>> {
    let image = Image::open(&disk).unwrap();
    let header = &image.header;
    let entries = info(&image).unwrap().snapshots;
    let table = entries.iter().map(|entry| entry.encode().len() as u64);
    let at = header.snapshots_offset.0;
    // Number and place of the table are in the header.
    let mut all = Vec::from([60..72, at..at + table.sum::<u64>()]);
    for entry in &entries {
        all.extend(of_snapshot(&image, disk, entry));
    }
    all
}

/// The directory's entries, with their places.
fn bitmaps(disk: &[u8]) -> Option<Vec<(u64, BitmapEntry)>> {
    let image = Image::open(&disk).ok()?;
    let extension = image.header.extension(extension::BITMAPS)?;
    let extension = BitmapsExtension::parse(extension).ok()?;
    if !image.header.features.has_bitmaps() {
        return None;
    }
    let mut at = extension.directory_offset.0;
    let mut all = Vec::new();
    for _ in 0..extension.bitmaps {
        let (entry, used) = BitmapEntry::parse(disk.get(index(at)..)?).ok()?;
        all.push((at, entry));
        at += used as u64;
    }
    Some(all)
}

/// What is where it was, byte for byte.
fn is_kept(created: &[u8], disk: &[u8], ranges: &[Range<u64>], what: &str) -> Result<(), String> {
    for range in ranges {
        let [mut was, mut is] = [(); 2].map(|()| vec![0; index(range.end - range.start)]);
        created.read_at(range.start, &mut was).unwrap();
        disk.read_at(range.start, &mut is).unwrap();
        if was != is {
            return Err(format!("{what}: the bytes at {range:?} are others"));
        }
    }
    Ok(())
}

/// Whether all of it is kept in `disk`, which was `created` once.
///
/// # Errors
/// What is not, in words.
pub fn look(created: &[u8], disk: &[u8]) -> Result<(), String> {
    is_kept(created, disk, &of_snapshots(created), "snapshots")?;
    let Some(before) = bitmaps(created) else {
        return Ok(());
    };
    let now = bitmaps(disk).ok_or("the bitmaps are gone")?;
    if now.len() != before.len() {
        return Err(format!("{} bitmaps", now.len()));
    }
    let image = Image::open(&created).unwrap();
    let mut is_followed = true;
    for ((at, was), (_, is)) in before.iter().zip(&now) {
        let name = String::from_utf8_lossy(&was.name);
        let marked = BitmapEntry {
            flags: was.flags | IN_USE,
            ..was.clone()
        };
        match was.flags & AUTO != 0 {
            true if *is == *was => is_followed = false,
            true if *is == marked => {}
            false if is == was => {}
            _ => return Err(format!("bitmap {name} at {at:#x}: {is:?}, was {was:?}")),
        }
        let entries = u64::from(was.table_entries);
        let bytes = was.table_offset.0..was.table_offset.0 + entries * 8;
        let mut all = Vec::from([bytes]);
        for entry in table(created, was.table_offset.0, entries) {
            let decoded = BitmapTableEntry(entry).decode(image.geometry()).unwrap();
            if let BitmapCluster::Stored(host) = decoded {
                all.push(host.0..host.0 + image.geometry().cluster_size());
            }
        }
        is_kept(created, disk, &all, &format!("bitmap {name}"))?;
    }
    if is_followed {
        return Ok(());
    }
    // One of them says that nothing has been written.
    let mut other = disk.to_vec();
    for (at, entry) in &before {
        let bytes = entry.encode();
        if let Some(place) = other.get_mut(index(*at)..index(*at) + bytes.len()) {
            place.copy_from_slice(&bytes);
        }
    }
    let longer = other.len().max(created.len());
    other.resize(longer, 0);
    let mut created = created.to_vec();
    created.resize(longer, 0);
    match other == created {
        true => Ok(()),
        false => Err("something was written, and not all bitmaps are in use".to_owned()),
    }
}

/// It finds what it is there for.
#[test]
fn what_was_touched_is_found() {
    let image = crate::images::make("cluster_size=4k", crate::images::Filled::Snapshots, 8, 96);
    let ranges = of_snapshots(&image);
    assert!(ranges.len() > 10, "{ranges:?}");
    assert!(look(&image, &image).is_ok());
    for range in ranges {
        let mut other = image.clone();
        other[index(range.end - 1)] ^= 1;
        assert!(look(&image, &other).is_err(), "{range:?}");
    }
    let image = crate::images::make("cluster_size=4k", crate::images::Filled::Bitmaps, 8, 96);
    let all = bitmaps(&image).unwrap();
    assert!(all.len() > 3);
    assert!(look(&image, &image).is_ok());
    let mut marked = image.clone();
    for (at, entry) in &all {
        let mut other = image.clone();
        other[index(at + 15)] ^= u8::try_from(IN_USE).unwrap();
        let auto = entry.flags & AUTO != 0;
        assert_eq!(look(&image, &other).is_ok(), auto, "{entry:?}");
        if auto {
            marked[index(at + 15)] |= u8::try_from(IN_USE).unwrap();
        }
    }
    let last = image.len() - 1;
    for (mut disk, right) in [(marked, true), (image.clone(), false)] {
        disk[last] ^= 1;
        disk.push(1);
        assert_eq!(look(&image, &disk).is_ok(), right);
    }
}
