//! What options make, against the check of the format, which knows nothing of how they were made.

use proptest::prelude::*;

use crate::check::{Limits, check};
use crate::create::{CreateError, CreateOptions, Layout, Preallocation, Version};
use crate::format::{CompressionType, Header};
use crate::image::Image;

const MIB: u64 = 1 << 20;

/// The file, without what is in guest clusters.
pub fn image(layout: &Layout) -> Vec<u8> {
    let mut all = vec![0; usize::try_from(layout.end()).unwrap()];
    all[..layout.header().len()].copy_from_slice(layout.header());
    let cluster = layout.cluster_bytes();
    for table in layout.tables() {
        let at = usize::try_from(table).unwrap() * cluster;
        layout.fill(table, &mut all[at..at + cluster]);
    }
    all.truncate(usize::try_from(layout.length()).unwrap());
    all
}

/// Nothing is wrong with what they make, and all of it is in use.
fn assert_clean(options: &CreateOptions) {
    let layout = Layout::new(options).unwrap();
    let file = image(&layout);
    let opened = Image::open(&file).unwrap();
    let report = check(&opened, &Limits::default());
    assert!(report.is_clean(), "{options:?}: {:?}", report.findings);
    assert_eq!(report.image_end, layout.end(), "{options:?}");
    assert_eq!(opened.header.size, options.size);
    let (mapped, of) = (report.layout.allocated, report.layout.total);
    match options.preallocation() {
        Preallocation::Off => assert_eq!(mapped, 0),
        // Of subclusters none is allocated.
        _ if options.extended_l2 => {}
        _ => assert_eq!(mapped, of, "{options:?}"),
    }
}

#[test]
fn each_geometry_is_clean() {
    for (cluster_bytes, sizes) in [
        (512, [0, 512, 33 << 10, 3 * MIB + 512]),
        (4096, [512, 4096, 2 * MIB + 4096, 9 * MIB]),
        (64 << 10, [512, 64 << 10, 512 * MIB, 513 * MIB]),
        (2 * MIB, [0, 512, 2 * MIB, 1 << 40]),
    ] {
        for size in sizes {
            for refcount_bits in [1, 8, 16, 64] {
                let mut options = CreateOptions {
                    cluster_bytes,
                    refcount_bits,
                    ..CreateOptions::new(size)
                };
                assert_clean(&options);
                if size <= 9 * MIB {
                    options.preallocation = Preallocation::Metadata;
                    assert_clean(&options);
                }
            }
        }
    }
}

/// Refcounts of 64 bits and clusters of 512 bytes: blocks that count blocks, and a table of several clusters.
#[test]
fn refcounts_count_themselves() {
    let options = CreateOptions {
        cluster_bytes: 512,
        refcount_bits: 64,
        preallocation: Preallocation::Falloc,
        ..CreateOptions::new(3 * MIB)
    };
    assert_clean(&options);
    let layout = Layout::new(&options).unwrap();
    let header = Header::parse(layout.header()).unwrap();
    assert!(header.refcount_table_clusters > 1);
}

#[test]
fn what_cannot_be_is_refused() {
    let base = CreateOptions::new(MIB);
    let refused = |change: &dyn Fn(&mut CreateOptions)| {
        let mut options = base.clone();
        change(&mut options);
        Layout::new(&options).expect_err("there is none such")
    };
    let old = |options: &mut CreateOptions| options.version = Version::V2;
    type Change<'a> = &'a dyn Fn(&mut CreateOptions);
    let cases: [(Change<'_>, CreateError); 17] = [
        (&|o| o.size = 1000, CreateError::Size),
        (&|o| o.size = 1 << 63, CreateError::Negative),
        (&|o| o.cluster_bytes = 0, CreateError::ClusterSize),
        (&|o| o.cluster_bytes = 3 << 10, CreateError::ClusterSize),
        (&|o| o.cluster_bytes = 4 * MIB, CreateError::ClusterSize),
        (&|o| o.cluster_bytes = 1 << 33, CreateError::ClusterSize),
        (&|o| o.refcount_bits = 0, CreateError::RefcountBits),
        (&|o| o.refcount_bits = 128, CreateError::RefcountBits),
        (
            &|o| {
                o.extended_l2 = true;
                o.cluster_bytes = 8 << 10;
            },
            CreateError::ExtendedL2Cluster,
        ),
        (
            &|o| o.backing_format = Some("raw".to_owned()),
            CreateError::FormatWithoutBacking,
        ),
        (
            &|o| {
                o.backing_file = Some(b"x".to_vec());
                o.preallocation = Preallocation::Metadata;
            },
            CreateError::BackingPreallocated,
        ),
        (
            &|o| o.backing_file = Some(vec![b'x'; 1024]),
            CreateError::BackingNameLong,
        ),
        (
            &|o| {
                o.backing_file = Some(vec![b'x'; 400]);
                o.cluster_bytes = 512;
            },
            CreateError::HeaderFull,
        ),
        (&|o| o.data_file_raw = true, CreateError::RawWithoutDataFile),
        (
            &|o| {
                o.data_file_raw = true;
                o.data_file = Some(b"d".to_vec());
                o.backing_file = Some(b"x".to_vec());
            },
            CreateError::RawWithBacking,
        ),
        (
            &|o| {
                old(o);
                o.lazy_refcounts = true;
            },
            CreateError::LazyRefcountsVersion,
        ),
        (
            &|o| {
                old(o);
                o.compression = CompressionType::Zstd;
            },
            CreateError::CompressionVersion,
        ),
    ];
    for (change, error) in cases {
        assert_eq!(refused(change), error);
    }
    let small = |o: &mut CreateOptions| {
        o.cluster_bytes = 512;
        o.size = (128 << 30) + 512;
    };
    let text = "Could not resize image: The image size is too large: with clusters of 512 bytes it is \
                137438953472 bytes at most";
    assert_eq!(refused(&small).to_string(), text);
    let all = |o: &mut CreateOptions| {
        o.size = 1 << 51;
        o.preallocation = Preallocation::Metadata;
    };
    assert!(matches!(
        refused(&all),
        CreateError::TooLargeToPreallocate { .. }
    ));
}

fn any_options() -> impl Strategy<Value = CreateOptions> {
    let size = prop_oneof![
        any::<u64>(),
        (0u64..1 << 44).prop_map(|size| size / 512 * 512),
        (0u64..20 * MIB).prop_map(|size| size / 512 * 512),
    ];
    let cluster = prop_oneof![any::<u64>(), (9u32..22).prop_map(|bits| 1 << bits)];
    let refcounts = prop_oneof![any::<u64>(), (0u32..7).prop_map(|order| 1 << order)];
    let name = || proptest::option::weighted(0.3, proptest::collection::vec(any::<u8>(), 0..1100));
    let modes = prop_oneof![
        3 => Just(Preallocation::Off),
        1 => Just(Preallocation::Metadata),
        1 => Just(Preallocation::Falloc),
        1 => Just(Preallocation::Full),
    ];
    let format = proptest::option::weighted(0.3, "[a-z0-9]{0,300}");
    (
        (size, cluster, refcounts, modes),
        (name(), format, name()),
        any::<[bool; 5]>(),
    )
        .prop_map(
            |((size, cluster_bytes, refcount_bits, preallocation), names, flags)| {
                let (backing_file, backing_format, data_file) = names;
                let [old, data_file_raw, extended_l2, lazy_refcounts, zstd] = flags;
                CreateOptions {
                    size,
                    version: if old { Version::V2 } else { Version::V3 },
                    cluster_bytes,
                    backing_file,
                    backing_format,
                    data_file,
                    data_file_raw,
                    extended_l2,
                    preallocation,
                    lazy_refcounts,
                    refcount_bits,
                    compression: match zstd {
                        true => CompressionType::Zstd,
                        false => CompressionType::Deflate,
                    },
                }
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Whatever is asked for, there is an answer; and what is made is an image.
    #[test]
    fn any_options_make_an_image_or_are_refused(options in any_options()) {
        if let Ok(layout) = Layout::new(&options) {
            let mut cluster = vec![0xee; layout.cluster_bytes()];
            for table in layout.tables().step_by(9973) {
                layout.fill(table, &mut cluster);
            }
            let header = Header::parse(layout.header()).unwrap();
            header.check().unwrap();
            prop_assert_eq!(header.size, options.size);
            prop_assert_eq!(header.compression_type().unwrap(), options.compression);
            if layout.end() < MIB {
                assert_clean(&options);
            }
        }
    }
}
