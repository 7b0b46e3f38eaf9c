//! Entries of L1 and L2 tables: the flag of what may be written in place, and what means nothing.

use std::io;

use super::super::copied::in_place;
use super::super::usage::Use;
use super::counted::{Counted, Fix};
use crate::format::EntryError;
use crate::format::HostOffset;
use crate::format::l1::{self, COPIED, L1Entry, OFFSET_MASK};
use crate::format::l2::{EntryRules, L2Entry, ZERO};
use crate::storage::{WriteAt, read_table};

/// Takes the flag from what has not exactly one reference, and what means nothing from entries. False: nothing
/// was to be done.
pub fn clear(storage: &mut dyn WriteAt, counted: &Counted) -> io::Result<bool> {
    let one = |host| one_reference(counted, host, Fix::All);
    let l1 = |entry: L1Entry| {
        let keeps = entry.offset().0 != 0 && one(entry.offset());
        match entry.is_copied() && !keeps {
            true => L1Entry(entry.0 & !COPIED),
            false => entry,
        }
    };
    let external = counted.header.features.has_external_data();
    let rules = EntryRules {
        geometry: counted.geometry(),
        version: counted.header.version,
        external_data: external,
    };
    change(storage, counted, l1, |entry| {
        if let Err(error) = entry.decode(&rules) {
            return without_nonsense(entry, error);
        }
        match in_place(entry, &rules.geometry) {
            Some((host, true)) if !external && !one(host) => L2Entry {
                descriptor: entry.descriptor & !COPIED,
                ..entry
            },
            _ => entry,
        }
    })
}

/// Sets the flag where there is one reference.
pub fn set(storage: &mut dyn WriteAt, counted: &Counted, fix: Fix) -> io::Result<bool> {
    let one = |host| one_reference(counted, host, fix);
    let l1 = |entry: L1Entry| match entry.offset().0 != 0 && one(entry.offset()) {
        true => L1Entry(entry.0 | COPIED),
        false => entry,
    };
    let external = counted.header.features.has_external_data();
    let geometry = counted.geometry();
    change(storage, counted, l1, |entry| {
        match in_place(entry, &geometry) {
            Some((host, false)) if !external && one(host) => L2Entry {
                descriptor: entry.descriptor | COPIED,
                ..entry
            },
            _ => entry,
        }
    })
}

/// Whether the cluster has one reference, and its refcount says so in the end.
fn one_reference(counted: &Counted, host: HostOffset, fix: Fix) -> bool {
    let geometry = counted.geometry();
    let cluster = geometry.cluster_of(host).0;
    let usage = &counted.usage;
    // One that is not raised stays what it is.
    let ends_right = match fix {
        Fix::Leaks => usage.is_stored(cluster),
        Fix::All => !counted.hidden || !usage.is_stored(cluster) || usage.is_stored_one(cluster),
    };
    geometry.is_cluster_start(host) && usage.count(cluster) == 1 && ends_right
}

/// The entry without what says nothing of data.
const fn without_nonsense(entry: L2Entry, error: EntryError) -> L2Entry {
    let preallocated = match entry.bitmap {
        0 => entry.descriptor & ZERO != 0,
        bitmap => bitmap.trailing_zeros() >= u32::BITS,
    };
    let descriptor = match error {
        EntryError::CompressedCopied | EntryError::CopiedNothing => entry.descriptor & !COPIED,
        EntryError::Unaligned(_) if preallocated => entry.descriptor & !(OFFSET_MASK | COPIED),
        _ => entry.descriptor,
    };
    L2Entry {
        descriptor,
        ..entry
    }
}

/// Changes entries of the disk's tables, and flushes. A table that is also something else keeps what it has: its entries are
/// perhaps another table's, which says by them where the guest's data is. False: all were right.
fn change(
    storage: &mut dyn WriteAt,
    counted: &Counted,
    l1: impl Fn(L1Entry) -> L1Entry,
    l2: impl Fn(L2Entry) -> L2Entry,
) -> io::Result<bool> {
    let geometry = counted.geometry();
    let is_only = |at: u64, what| {
        let cluster = geometry.cluster_of(HostOffset(at)).0;
        counted.usage.is_only(cluster, what)
    };
    let mut changed = false;
    for (number, index) in counted.l1.iter().zip(0..) {
        let new = l1(L1Entry(*number)).0;
        let at = counted.header.l1_offset.0 + index * l1::ENTRY_BYTES as u64;
        if new != *number && is_only(at, Use::L1Table) {
            storage.write_at(at, &new.to_be_bytes())?;
            changed = true;
        }
    }
    for offset in &counted.l2_tables {
        if !geometry.is_cluster_start(HostOffset(*offset)) || !is_only(*offset, Use::L2Table) {
            // What seems to be a table is something else.
            continue;
        }
        let mut table = read_table(storage, *offset, geometry.cluster_bytes())?;
        let mut any = false;
        for index in 0..geometry.l2_entries() {
            let Some(entry) = L2Entry::read(&table, index, &geometry) else {
                break;
            };
            let new = l2(entry);
            if new != entry {
                any |= new.write(&mut table, index, &geometry);
            }
        }
        if any {
            storage.write_at(*offset, &table)?;
            changed = true;
        }
    }
    if changed {
        storage.flush()?;
    }
    Ok(changed)
}
