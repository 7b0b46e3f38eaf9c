//! Entries of tables, refcounts, and where they are.

use proptest::prelude::*;

use super::super::geometry::{HOST_OFFSET_END, SECTOR};
use super::super::l2::{EntryRules, subcluster, subclusters_alike};
use super::super::*;
use super::geometries;

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
        let plain = entry.table(&geometry).ok().flatten();
        prop_assert_eq!(entry.plain(&geometry), plain);
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
    fn subclusters_are_counted_as_they_are(allocated in any::<u32>(), zero in any::<u32>(), from in 0u32..32) {
        let allocated = allocated & !zero;
        let first = subcluster(allocated, zero, from);
        let alike = (from..32).take_while(|at| subcluster(allocated, zero, *at) == first);
        let alike = u32::try_from(alike.count()).expect("at most 32");
        // What differs in a field alone is never said to be alike; all else may be cut.
        prop_assert_eq!(subclusters_alike(allocated, zero, from), alike);
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
