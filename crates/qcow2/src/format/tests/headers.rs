//! Headers, and entries of the tables of snapshots and bitmaps.

use proptest::prelude::*;

use super::super::bitmap::{BitmapCluster, BitmapTableEntry};
use super::super::header::MAGIC;
use super::super::*;
use super::geometries;

proptest! {
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
