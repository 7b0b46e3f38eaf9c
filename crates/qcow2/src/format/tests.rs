//! The codecs against each other, and against what qemu-img makes.

use std::fs;
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;

use super::bitmap::{BitmapCluster, BitmapTableEntry};
use super::geometry::{HOST_OFFSET_END, SECTOR};
use super::header::MAGIC;
use super::l2::{EntryRules, subcluster, subclusters_alike};
use super::*;

fn geometries() -> impl Strategy<Value = Geometry> {
    (9u32..=21, 0u32..=6, any::<bool>()).prop_map(|(bits, order, extended)| {
        let extended = extended && bits >= 14;
        Geometry::new(bits, order, extended).expect("in range")
    })
}

fn rules(geometry: Geometry) -> EntryRules {
    EntryRules {
        geometry,
        version: 3,
        external_data: false,
    }
}

/// A cluster that can be in an image of this geometry.
fn clusters(geometry: Geometry) -> BoxedStrategy<Cluster> {
    let size = geometry.cluster_size();
    let hosts = (1..HOST_OFFSET_END / size).prop_map(move |number| HostOffset(number * size));
    let width = 62 - (geometry.cluster_bits() - 8);
    let end = HOST_OFFSET_END.min(1 << width);
    let compressed = (512u64..end - 3 * size, 0..2 * size / SECTOR).prop_map(|(offset, more)| {
        Cluster::Compressed(CompressedCluster {
            offset: HostOffset(offset),
            bytes: (more + 1) * SECTOR - offset % SECTOR,
        })
    });
    if geometry.extended_l2() {
        let subclusters = (
            prop::option::of(hosts),
            any::<bool>(),
            any::<u32>(),
            any::<u32>(),
        )
            .prop_map(|(host, copied, allocated, zero)| Cluster::Subclusters {
                host,
                copied: copied && host.is_some(),
                allocated: if host.is_some() { allocated & !zero } else { 0 },
                zero,
            });
        return prop_oneof![subclusters, compressed].boxed();
    }
    let zero =
        (prop::option::of(hosts.clone()), any::<bool>()).prop_map(|(host, copied)| Cluster::Zero {
            preallocated: host,
            copied: copied && host.is_some(),
        });
    let data = (hosts, any::<bool>()).prop_map(|(host, copied)| Cluster::Data { host, copied });
    prop_oneof![Just(Cluster::Unallocated), zero, data, compressed].boxed()
}

proptest! {
    #[test]
    fn an_entry_says_what_was_put_into_it(
        (geometry, cluster) in geometries().prop_flat_map(|one| (Just(one), clusters(one)))
    ) {
        let entry = L2Entry::encode(&cluster, &geometry).expect("it has room");
        prop_assert_eq!(entry.decode(&rules(geometry)), Ok(cluster));
        let mut table = vec![0xa5; geometry.cluster_bytes()];
        let last = geometry.l2_entries() - 1;
        prop_assert!(entry.write(&mut table, last, &geometry));
        prop_assert!(!entry.write(&mut table, last + 1, &geometry));
        prop_assert_eq!(L2Entry::read(&table, last, &geometry), Some(entry));
        prop_assert_eq!(L2Entry::read(&table, last + 1, &geometry), None);
    }

    /// Whatever bits there are: what is understood is written back as the same bits.
    #[test]
    fn entries_of_any_bits(
        geometry in geometries(), descriptor in any::<u64>(), bitmap in any::<u64>(),
        version in 2u32..=3, external_data in any::<bool>(),
    ) {
        // As random as they are they would nearly all be refused.
        for mask in [u64::MAX, l1::OFFSET_MASK | l1::COPIED | 1, 1 << 62 | l1::COPIED | 0xffff_ffff] {
            let descriptor = descriptor & mask & !(geometry.cluster_size() - 2);
            for bitmap in [0, bitmap & 0xffff_0000_0000_ffff, bitmap] {
                let bitmap = if geometry.extended_l2() { bitmap } else { 0 };
                let entry = L2Entry { descriptor, bitmap };
                let rules = EntryRules { geometry, version, external_data };
                if let Ok(cluster) = entry.decode(&rules) {
                    prop_assert_eq!(L2Entry::encode(&cluster, &geometry), Some(entry));
                }
            }
        }
        let entry = L1Entry(descriptor);
        if let Ok(table) = entry.table(&geometry) {
            prop_assert_eq!(L1Entry::new(table.unwrap_or_default(), entry.is_copied()), entry);
        }
        let entry = RefcountTableEntry(descriptor);
        if let Ok(block) = entry.block(&geometry) {
            prop_assert_eq!(RefcountTableEntry::new(block.unwrap_or_default()), entry);
        }
    }

    #[test]
    fn refcounts_do_not_touch_their_neighbours(
        order in 0u32..=6, values in prop::collection::vec(any::<u64>(), 1..64)
    ) {
        let bits = 1u32 << order;
        let max = u64::MAX >> (64 - bits);
        let mut block = vec![0; (values.len() * bits as usize).div_ceil(8)];
        for (index, value) in values.iter().enumerate() {
            prop_assert!(refcount::set(&mut block, index, order, value & max));
        }
        for (index, value) in values.iter().enumerate() {
            prop_assert_eq!(refcount::get(&block, index, order), Some(value & max));
        }
        if max < u64::MAX {
            let before = block.clone();
            prop_assert!(!refcount::set(&mut block, 0, order, max + 1));
            prop_assert_eq!(&before, &block);
        }
        let beyond = block.len() * 8 / bits as usize;
        prop_assert_eq!(refcount::get(&block, beyond, order), None);
        prop_assert!(!refcount::set(&mut block, beyond, order, 0));
    }

    #[test]
    fn places_lead_back(geometry in geometries(), offset in 0..1u64 << 62, cluster in 0..1u64 << 47) {
        let place = geometry.place(GuestOffset(offset));
        let begin = geometry.guest_offset(place.l1, place.l2).expect("it came from there");
        prop_assert_eq!(begin.0 + place.within, offset);
        prop_assert!(place.l2 < geometry.l2_entries());
        let (table, index) = geometry.refcount_place(HostCluster(cluster));
        prop_assert_eq!(table * geometry.refcounts_per_block() as u64 + index as u64, cluster);
    }

    #[test]
    fn a_header_is_read_as_it_was_written(header in headers()) {
        let mut bytes = header.encode().expect("it fits");
        let read = Header::parse(&bytes).expect("it is one");
        let placed = Header { backing_offset: read.backing_offset, ..header.clone() };
        prop_assert_eq!(&read, &placed);
        prop_assert!(read.encode().is_some_and(|again| again == bytes));
        bytes.resize(header.geometry.cluster_bytes(), 0);
        prop_assert!(Header::parse(&bytes).is_ok_and(|padded| padded == read));
        // What is behind the cluster is not looked at.
        bytes.extend([0xff; 512]);
        prop_assert_eq!(Header::parse(&bytes), Ok(read));
    }

    /// Nothing panics, whatever the bytes are; what is cut off is an error, and never another image.
    #[test]
    fn headers_of_any_bytes(
        header in headers(), at in any::<prop::sample::Index>(), value in any::<u8>(), cut in any::<prop::sample::Index>()
    ) {
        let mut bytes = header.encode().expect("it fits");
        let at = at.index(bytes.len());
        bytes[at] = value;
        if let Ok(read) = Header::parse(&bytes) {
            let _ = read.check();
        }
        bytes.truncate(cut.index(LENGTH_V3));
        prop_assert!(Header::parse(&bytes).is_err() || header.version == 2);
    }

    #[test]
    fn snapshots_and_bitmaps_are_read_as_they_were_written(
        id in prop::collection::vec(any::<u8>(), 0..20),
        name in prop::collection::vec(any::<u8>(), 1..70),
        extra in prop::collection::vec(any::<u8>(), 0..40),
        numbers in any::<[u32; 4]>(), long in any::<[u64; 2]>(), bits in 0u8..=63,
    ) {
        let [l1_entries, date_sec, date_nsec, vm_state_size_32] = numbers;
        let snapshot = SnapshotEntry {
            l1_offset: HostOffset(long[0]), l1_entries, id, name: name.clone(), date_sec, date_nsec,
            vm_clock_nsec: long[1], vm_state_size_32, extra: extra.clone(),
        };
        let mut bytes = snapshot.encode();
        let used = bytes.len();
        for cut in 0..used {
            // Only the padding may be missing.
            let parsed = SnapshotEntry::parse(&bytes[..cut]);
            prop_assert!(parsed.is_err() || used - cut < 8);
        }
        bytes.extend([0xff; 9]);
        prop_assert_eq!(SnapshotEntry::parse(&bytes), Ok((snapshot, used)));
        let bitmap = BitmapEntry {
            table_offset: HostOffset(long[0]), table_entries: l1_entries, flags: numbers[1] & 7,
            kind: bitmap::TYPE_DIRTY, granularity_bits: bits, name, extra,
        };
        let mut bytes = bitmap.encode();
        let used = bytes.len();
        for cut in 0..used {
            prop_assert!(BitmapEntry::parse(&bytes[..cut]).is_err());
        }
        bytes.extend([0xff; 9]);
        prop_assert_eq!(BitmapEntry::parse(&bytes), Ok((bitmap, used)));
        for any in long {
            let geometry = Geometry::new(16, 4, false).expect("the usual one");
            if let Ok(BitmapCluster::Stored(host)) = BitmapTableEntry(any).decode(&geometry) {
                prop_assert!(geometry.is_cluster_start(host) && any == host.0);
            }
        }
    }

    #[test]
    fn subclusters_are_counted_as_they_are(allocated in any::<u32>(), zero in any::<u32>(), from in 0u32..32) {
        let allocated = allocated & !zero;
        let first = subcluster(allocated, zero, from);
        let alike = (from..32).take_while(|at| subcluster(allocated, zero, *at) == first);
        let alike = u32::try_from(alike.count()).expect("at most 32");
        // What differs in a field alone is never said to be alike; all else may be cut.
        prop_assert_eq!(subclusters_alike(allocated, zero, from), alike);
    }
}

fn headers() -> impl Strategy<Value = Header> {
    let extension = (1u32.., prop::collection::vec(any::<u8>(), 0..40))
        .prop_map(|(kind, data)| Extension { kind, data });
    (
        geometries(),
        2u32..=3,
        any::<[u64; 6]>(),
        any::<[u32; 3]>(),
        prop::option::of(prop::collection::vec(any::<u8>(), 0..60)),
        prop::collection::vec(any::<u64>(), 0..3),
        prop::collection::vec(extension, 0..3),
    )
        .prop_map(|(geometry, version, long, short, name, more, extensions)| {
            let geometry = match version {
                2 => Geometry::new(geometry.cluster_bits(), 4, false).expect("in range"),
                _ => geometry,
            };
            let extended = features::EXTENDED_L2;
            let bit = if geometry.extended_l2() { extended } else { 0 };
            let v3 = |value: u64| if version == 3 { value } else { 0 };
            Header {
                version,
                geometry,
                size: long[0],
                crypt_method: [CryptMethod::None, CryptMethod::Aes, CryptMethod::Luks]
                    [short[0] as usize % 3],
                l1_entries: short[0],
                l1_offset: HostOffset(long[1]),
                refcount_table_offset: HostOffset(long[2]),
                refcount_table_clusters: short[1],
                snapshots: short[2],
                snapshots_offset: HostOffset(long[3]),
                backing_offset: HostOffset(0),
                backing_name: name,
                features: Features {
                    incompatible: v3(long[4] & !extended | bit),
                    compatible: v3(long[5]),
                    autoclear: v3(long[4] ^ long[5]),
                },
                additional: match version {
                    2 => Vec::new(),
                    _ => more.into_iter().flat_map(u64::to_be_bytes).collect(),
                },
                extensions,
            }
        })
}

/// An image of which all rules are kept.
fn sound() -> Header {
    Header {
        version: 3,
        geometry: Geometry::new(16, 4, false).expect("the usual one"),
        size: 1 << 30,
        crypt_method: CryptMethod::None,
        l1_entries: 2,
        l1_offset: HostOffset(3 << 16),
        refcount_table_offset: HostOffset(1 << 16),
        refcount_table_clusters: 1,
        snapshots: 0,
        snapshots_offset: HostOffset(0),
        backing_offset: HostOffset(0),
        backing_name: None,
        features: Features::default(),
        additional: vec![0; 8],
        extensions: Vec::new(),
    }
}

#[test]
fn what_the_specification_forbids_is_named() {
    assert_eq!(sound().check(), Ok(()));
    let broken = |what: fn(&mut Header)| {
        let mut header = sound();
        what(&mut header);
        header.check().expect_err("it is broken").to_string()
    };
    for (what, text) in [
        (
            (|header| header.additional[0] = 1) as fn(&mut Header),
            "compression_type 1 and incompatible feature bit 3 not set",
        ),
        (
            |header| header.features.incompatible = features::COMPRESSION_TYPE,
            "compression_type 0 and incompatible feature bit 3 set",
        ),
        (|header| header.additional[0] = 7, "compression_type 7"),
        (
            |header| header.l1_entries = 1,
            "1 entries for a disk of 1073741824 bytes, which needs 2",
        ),
        (
            |header| header.l1_entries = 1 << 30,
            "the L1 table of 8589934592 bytes: more than",
        ),
        (
            |header| header.l1_offset = HostOffset(512),
            "the L1 table at 0x200",
        ),
        (
            |header| header.l1_offset = HostOffset(0),
            "the L1 table at 0x0",
        ),
        (
            |header| header.refcount_table_clusters = 0,
            "no refcount table",
        ),
        (
            |header| header.refcount_table_clusters = 1000,
            "the refcount table of",
        ),
        (
            |header| header.refcount_table_offset = HostOffset(0xffff_ffff_ffff_0000),
            "the refcount table at",
        ),
        (|header| header.snapshots = 1, "the snapshot table at 0x0"),
        (|header| header.snapshots = 70_000, "the snapshot table of"),
        (|header| header.size = 1 << 63, "a disk of"),
        (
            |header| header.features.autoclear = features::BITMAPS,
            "without the bitmaps extension",
        ),
        (
            |header| header.features.autoclear = features::RAW_EXTERNAL,
            "a raw external data file",
        ),
        (
            |header| {
                header.features.autoclear = features::RAW_EXTERNAL;
                header.features.incompatible = features::EXTERNAL_DATA;
                header.backing_name = Some(b"base".to_vec());
            },
            "together with a backing file",
        ),
        (
            |header| {
                header.features.incompatible = features::EXTERNAL_DATA;
                header.snapshots = 1;
            },
            "together with internal snapshots",
        ),
        (|header| header.crypt_method = CryptMethod::Luks, "LUKS"),
        (
            |header| {
                let one = Extension {
                    kind: extension::ENCRYPTION,
                    data: vec![0; 16],
                };
                header.extensions = vec![one];
            },
            "an encryption header together with no LUKS",
        ),
        (
            |header| {
                let one = Extension {
                    kind: extension::BACKING_FORMAT,
                    data: b"raw".to_vec(),
                };
                header.extensions = vec![one.clone(), one];
            },
            "more than once",
        ),
    ] {
        let said = broken(what);
        assert!(said.contains(text), "{said} / {text}");
    }
}

#[test]
fn what_is_no_header_is_refused() {
    let sound = sound().encode().expect("it fits");
    for (at, value, error) in [
        (0, 0, HeaderError::NotQcow2),
        (7, 4, HeaderError::Version(4)),
        (7, 1, HeaderError::Version(1)),
        (23, 8, HeaderError::ClusterBits(8)),
        (23, 22, HeaderError::ClusterBits(22)),
        (35, 3, HeaderError::CryptMethod(3)),
        (99, 7, HeaderError::RefcountOrder(7)),
        (103, 100, HeaderError::Length(100)),
        (103, 108, HeaderError::Length(108)),
        (101, 2, HeaderError::Length(0x20070)),
    ] {
        let mut bytes = sound.clone();
        bytes[at] = value;
        assert_eq!(Header::parse(&bytes), Err(error));
    }
    let mut small = sound.clone();
    (small[23], small[79]) = (13, 16);
    assert_eq!(
        Header::parse(&small),
        Err(HeaderError::ClusterBitsExtended(13))
    );
    assert_eq!(Header::first_cluster(&MAGIC), Err(HeaderError::Short));
    assert_eq!(Header::first_cluster(&sound), Ok(65536));
    // An extension that does not end, and a name outside of the first cluster.
    let mut long = sound.clone();
    long[112..120].copy_from_slice(&[1, 2, 3, 4, 0x7f, 0xff, 0xff, 0xff]);
    let kind = 0x0102_0304;
    assert_eq!(
        Header::parse(&long),
        Err(HeaderError::ExtensionTooLong { kind })
    );
    for (offset, bytes) in [(0x1_0000, 4), (0xffff, 4), (u64::MAX, 1), (200, 1024)] {
        let mut named = sound.clone();
        named.resize(65536, 0);
        named[8..16].copy_from_slice(&offset.to_be_bytes());
        named[16..20].copy_from_slice(&u32::to_be_bytes(bytes));
        let offset = HostOffset(offset);
        assert_eq!(
            Header::parse(&named),
            Err(HeaderError::BackingName { offset, bytes })
        );
    }
}

#[test]
fn what_cannot_be_in_an_entry_is_named() {
    let standard = Geometry::new(16, 4, false).expect("the usual one");
    let extended = Geometry::new(16, 4, true).expect("the usual one");
    let error = |geometry, version, external_data, descriptor, bitmap| {
        let rules = EntryRules {
            geometry,
            version,
            external_data,
        };
        let entry = L2Entry { descriptor, bitmap };
        entry.decode(&rules).expect_err("it cannot be")
    };
    let copied = l1::COPIED;
    for (found, expected) in [
        (
            error(standard, 3, false, 0x5_0002, 0),
            EntryError::Reserved(2),
        ),
        (
            error(standard, 3, false, 1 << 56, 0),
            EntryError::Reserved(1 << 56),
        ),
        (
            error(standard, 3, false, 0x5_0200, 0),
            EntryError::Unaligned(HostOffset(0x5_0200)),
        ),
        (error(standard, 2, false, 1, 0), EntryError::ZeroFlag),
        (error(extended, 3, false, 1, 0), EntryError::ZeroFlag),
        (
            error(standard, 3, true, 1 << 62, 0),
            EntryError::CompressedExternal,
        ),
        (
            error(standard, 3, false, 3 << 62, 0),
            EntryError::CompressedCopied,
        ),
        (
            error(extended, 3, false, 1 << 62, 1),
            EntryError::CompressedBitmap(1),
        ),
        (
            error(extended, 3, false, 0x5_0000, 0x3_0000_0002),
            EntryError::AllocatedAndZero(2),
        ),
        (error(extended, 3, false, 0, 5), EntryError::NoCluster(5)),
        (
            error(standard, 3, false, copied, 0),
            EntryError::CopiedNothing,
        ),
    ] {
        assert_eq!(found, expected);
    }
    // In place of the guest's first cluster an external data file has offset 0.
    let rules = EntryRules {
        geometry: standard,
        version: 3,
        external_data: true,
    };
    let first = L2Entry {
        descriptor: copied,
        bitmap: 0,
    };
    let host = HostOffset(0);
    assert_eq!(
        first.decode(&rules),
        Ok(Cluster::Data { host, copied: true })
    );
    let small = Geometry::new(9, 4, false).expect("the smallest one");
    assert_eq!(
        CompressedCluster::decode(1 << 56, &small),
        Err(EntryError::Reserved(1 << 56))
    );
    assert_eq!(L1Entry(1).table(&standard), Err(EntryError::Reserved(1)));
    assert_eq!(
        RefcountTableEntry(0x200).block(&standard),
        Err(EntryError::Unaligned(HostOffset(0x200)))
    );
}

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
