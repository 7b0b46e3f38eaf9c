//! L1 and L2 tables: what they lead to.

use super::finding::{Problem, Table};
use super::usage::Use;
use super::walk::{Leads, Spot, Stop, Walk};
use crate::format::EntryError;
use crate::format::l1::{self, COPIED, L1Entry};
use crate::format::l2::{Cluster, L2Entry};
use crate::format::{CompressedCluster, HostOffset};

impl Walk<'_> {
    /// The L1 table of the disk.
    pub fn active_l1(&mut self) -> Result<(), Stop> {
        let header = &self.image.header;
        let (offset, entries) = (header.l1_offset.0, header.l1_entries);
        self.l1 = self.l1_table(Table::L1, offset, entries)?;
        Ok(())
    }

    /// Reads an L1 table, and remembers to which L2 tables it leads.
    pub fn l1_table(&mut self, table: Table, offset: u64, entries: u32) -> Result<Vec<u64>, Stop> {
        let spot = Spot::whole(table, HostOffset(offset));
        let bytes = u64::from(entries) * l1::ENTRY_BYTES as u64;
        if !self.mark(spot, offset, bytes, Use::L1Table, 1)? {
            return Ok(Vec::new());
        }
        let Some(content) = self.read(spot, offset, bytes) else {
            return Ok(Vec::new());
        };
        let (numbers, _) = content.as_chunks();
        let numbers: Vec<_> = numbers
            .iter()
            .map(|number| u64::from_be_bytes(*number))
            .collect();
        drop(content);
        for (number, index) in numbers.iter().zip(0..) {
            let entry = L1Entry(*number);
            if entry.0 == 0 {
                continue;
            }
            let spot = Spot::entry(table, offset, index, l1::ENTRY_BYTES);
            if let Err(error) = entry.table(&self.geometry()) {
                self.corrupt_way(spot, Problem::Entry(error));
            }
            match entry.offset().0 {
                0 if entry.is_copied() => {
                    self.corrupt(spot, Problem::Entry(EntryError::CopiedNothing));
                }
                0 => {}
                l2 => self.lead_to(l2, spot, table == Table::L1)?,
            }
        }
        Ok(numbers)
    }

    /// All L2 tables, each once.
    pub fn follow_l2_tables(&mut self) -> Result<(), Stop> {
        let tables = std::mem::take(&mut self.l2_tables);
        for (offset, leads) in &tables {
            self.l2_table(*offset, leads)?;
        }
        self.l2_tables = tables;
        Ok(())
    }

    fn l2_table(&mut self, offset: u64, leads: &Leads) -> Result<(), Stop> {
        let geometry = self.geometry();
        let bytes = geometry.cluster_size();
        if !self.mark(leads.first, offset, bytes, Use::L2Table, leads.all)? {
            return Ok(());
        }
        let spot = Spot::whole(Table::L2, HostOffset(offset));
        let Some(table) = self.read(spot, offset, bytes) else {
            return Ok(());
        };
        // Where the cluster before ends.
        let mut next = None;
        for index in 0..geometry.l2_entries() {
            let Some(entry) = L2Entry::read(&table, index, &geometry) else {
                break;
            };
            if entry == L2Entry::default() {
                continue;
            }
            let spot = Spot::entry(Table::L2, offset, index as u64, geometry.l2_entry_bytes());
            self.l2_entry(entry, spot, leads, index, &mut next)?;
        }
        Ok(())
    }

    fn l2_entry(
        &mut self,
        entry: L2Entry,
        spot: Spot,
        leads: &Leads,
        index: usize,
        next: &mut Option<u64>,
    ) -> Result<(), Stop> {
        let decoded = entry.decode(&self.image.rules());
        let cluster = match decoded {
            Ok(cluster) => cluster,
            Err(error) => {
                self.corrupt(spot, Problem::Entry(error));
                match still_used(entry, error, self) {
                    Some(cluster) => cluster,
                    None => return Ok(()),
                }
            }
        };
        match cluster {
            Cluster::Unallocated => Ok(()),
            Cluster::Compressed(data) => {
                self.report.layout.compressed += leads.active;
                self.report.layout.allocated += leads.active;
                self.report.layout.fragmented += leads.active;
                let host = data.offset.0;
                self.mark(spot, host, data.bytes, Use::Compressed, leads.all)?;
                Ok(())
            }
            Cluster::Zero {
                preallocated: None, ..
            }
            | Cluster::Subclusters { host: None, .. } => Ok(()),
            Cluster::Zero {
                preallocated: Some(host),
                ..
            }
            | Cluster::Data { host, .. }
            | Cluster::Subclusters {
                host: Some(host), ..
            } => self.data(host.0, spot, leads, index, next),
        }
    }

    fn data(
        &mut self,
        host: u64,
        spot: Spot,
        leads: &Leads,
        index: usize,
        next: &mut Option<u64>,
    ) -> Result<(), Stop> {
        let geometry = self.geometry();
        self.report.layout.allocated += leads.active;
        if next.is_some_and(|next| next != host) {
            self.report.layout.fragmented += leads.active;
        }
        *next = Some(host.saturating_add(geometry.cluster_size()));
        if !self.image.header.features.has_external_data() {
            // One between two clusters may be in the last one, as far as that goes.
            let end = self.clusters() << geometry.cluster_bits();
            let bytes = match geometry.is_cluster_start(HostOffset(host)) || host >= end {
                true => geometry.cluster_size(),
                false => geometry.cluster_size().min(end - host),
            };
            self.mark(spot, host, bytes, Use::Data, leads.all)?;
            return Ok(());
        }
        let guest = geometry.guest_offset(leads.first.index.unwrap_or(0), index);
        if let Some(guest) = guest.filter(|guest| guest.0 != host) {
            let (host, guest) = (HostOffset(host), guest.0);
            self.corrupt(spot, Problem::NotInPlace { host, guest });
        }
        Ok(())
    }
}

/// What an entry that cannot be uses all the same: what it may have meant is not to be given to anybody else.
fn still_used(entry: L2Entry, error: EntryError, walk: &Walk<'_>) -> Option<Cluster> {
    match error {
        EntryError::CompressedCopied => {
            let descriptor = entry.descriptor & !COPIED;
            let bitmap = 0;
            let entry = L2Entry { descriptor, bitmap };
            entry.decode(&walk.image.rules()).ok()
        }
        EntryError::CompressedBitmap(_) => {
            let entry = L2Entry { bitmap: 0, ..entry };
            entry.decode(&walk.image.rules()).ok()
        }
        EntryError::Reserved(_) if entry.is_compressed() => {
            // The offset does not fit; the rest of it is somewhere.
            let geometry = walk.geometry();
            let host = HostOffset(entry.offset().0);
            let bytes = geometry.cluster_size();
            Some(Cluster::Compressed(CompressedCluster {
                offset: host,
                bytes,
            }))
        }
        EntryError::Reserved(_)
        | EntryError::Unaligned(_)
        | EntryError::ZeroFlag
        | EntryError::AllocatedAndZero(_) => {
            let host = entry.offset();
            (host.0 != 0).then_some(Cluster::Data {
                host,
                copied: false,
            })
        }
        EntryError::CompressedExternal
        | EntryError::NoCluster(_)
        | EntryError::NotInPlace(_)
        | EntryError::CopiedNothing => None,
    }
}
