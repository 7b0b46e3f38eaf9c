//! The flag of what may be written in place: it is set where the stored refcount is 1, and nowhere else.

use super::finding::{Problem, Table};
use super::walk::{Spot, Walk};
use crate::format::l1::{self, L1Entry};
use crate::format::l2::L2Entry;
use crate::format::{Geometry, HostOffset};

impl Walk<'_> {
    /// Those of the disk's tables; nobody looks at those of snapshots.
    pub fn copied_flags(&mut self) {
        let table = self.image.header.l1_offset.0;
        let numbers = std::mem::take(&mut self.l1);
        for (number, index) in numbers.iter().zip(0..) {
            let entry = L1Entry(*number);
            if entry.offset().0 != 0 {
                let spot = Spot::entry(Table::L1, table, index, l1::ENTRY_BYTES);
                self.copied_flag(entry.offset(), entry.is_copied(), spot);
            }
        }
        self.l1 = numbers;
        if self.image.header.features.has_external_data() {
            return;
        }
        let tables = std::mem::take(&mut self.l2_tables);
        for (offset, leads) in &tables {
            if leads.active > 0 && self.is_inside(*offset, self.geometry().cluster_size()) {
                self.copied_flags_of(*offset);
            }
        }
        self.l2_tables = tables;
    }

    fn copied_flags_of(&mut self, offset: u64) {
        let geometry = self.geometry();
        // Not counted as a table that is read once.
        let table =
            crate::storage::read_table(self.image.storage, offset, geometry.cluster_bytes());
        let Ok(table) = table else {
            return;
        };
        for index in 0..geometry.l2_entries() {
            let Some(entry) = L2Entry::read(&table, index, &geometry) else {
                break;
            };
            if let Some((host, copied)) = in_place(entry, &geometry) {
                let spot = Spot::entry(Table::L2, offset, index as u64, geometry.l2_entry_bytes());
                self.copied_flag(host, copied, spot);
            }
        }
    }

    fn copied_flag(&mut self, host: HostOffset, copied: bool, spot: Spot) {
        let geometry = self.geometry();
        if !geometry.is_cluster_start(host) || !self.is_inside(host.0, geometry.cluster_size()) {
            // That was told before.
            return;
        }
        if copied != self.usage.is_stored_one(geometry.cluster_of(host).0) {
            self.corrupt(spot, Problem::Copied { host, copied });
        }
    }
}

/// The cluster that an entry may write in place, and whether its flag says so.
pub fn in_place(entry: L2Entry, geometry: &Geometry) -> Option<(HostOffset, bool)> {
    let host = entry.offset();
    let counts = !entry.is_compressed() && host.0 != 0 && geometry.is_cluster_start(host);
    counts.then_some((host, entry.is_copied()))
}
