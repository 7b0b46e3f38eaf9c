//! The state of a check, and what all its parts do: counting references, and saying what was found.

use std::collections::BTreeMap;

use super::finding::{Finding, Problem, Severity, Table};
use super::report::{Limits, Report};
use super::usage::{Marked, NoMemory, Usage, Use};
use crate::format::{Geometry, HostOffset};
use crate::image::Image;
use crate::storage::read_table;

/// The check cannot go on. The report says why.
#[derive(Debug)]
pub struct Stop;

/// An entry, or a whole table.
#[derive(Clone, Copy, Debug)]
pub struct Spot {
    /// The table.
    pub table: Table,
    /// The entry; none: all of it.
    pub index: Option<u64>,
    /// Where it is in the file.
    pub offset: HostOffset,
}

impl Spot {
    /// A whole table.
    pub const fn whole(table: Table, offset: HostOffset) -> Self {
        Self {
            table,
            index: None,
            offset,
        }
    }

    /// An entry of a table that begins at `table_offset`.
    pub const fn entry(table: Table, table_offset: u64, index: u64, bytes: usize) -> Self {
        let offset = table_offset.saturating_add(index.saturating_mul(bytes as u64));
        Self {
            table,
            index: Some(index),
            offset: HostOffset(offset),
        }
    }
}

/// Who leads to an L2 table.
#[derive(Clone, Copy, Debug)]
pub struct Leads {
    /// The first one that was found.
    pub first: Spot,
    /// How many there are.
    pub all: u64,
    /// How many of them are in the L1 table of the disk.
    pub active: u64,
}

/// A block of refcounts that is where one can be.
#[derive(Clone, Copy, Debug)]
pub struct Block {
    /// Its index in the refcount table.
    pub index: u64,
    /// Where it is.
    pub offset: u64,
}

/// What one L2 table takes in [`Walk::l2_tables`], in bytes, roughly.
const LEADS_BYTES: u64 = 128;
/// Tables that lie in each other can have this many bytes more than the file.
const SLACK: u64 = 64 << 20;

/// A check that goes on.
pub struct Walk<'a> {
    pub image: &'a Image<'a>,
    pub usage: Usage,
    pub report: Report,
    /// L2 tables by where they are.
    pub l2_tables: BTreeMap<u64, Leads>,
    /// The L1 table of the disk, as far as it can be read.
    pub l1: Vec<u64>,
    /// The refcount blocks that can be read, in their order.
    pub blocks: Vec<Block>,
    /// Refcounts can be mended only by making all of them anew.
    pub blocks_broken: bool,
    /// Something that is not there is said to be beyond the end of the file.
    pub beyond: bool,
    /// The highest cluster of the file that is used, plus one.
    pub used_end: u64,
    memory: u64,
    table_bytes: u64,
}

impl<'a> Walk<'a> {
    pub fn new(image: &'a Image<'a>, limits: &Limits) -> Self {
        Self {
            image,
            usage: Usage::new(limits.memory),
            report: Report::new(limits),
            l2_tables: BTreeMap::new(),
            l1: Vec::new(),
            blocks: Vec::new(),
            blocks_broken: false,
            beyond: false,
            used_end: 0,
            memory: limits.memory,
            table_bytes: 0,
        }
    }

    /// A whole check.
    pub fn whole(image: &'a Image<'a>, limits: &Limits) -> Self {
        let mut walk = Self::new(image, limits);
        // Where it stopped early, the report says so.
        let _ = walk.run();
        walk
    }

    fn run(&mut self) -> Result<(), Stop> {
        self.run_without_refcounts()?;
        self.refcount_table()?;
        self.compare();
        self.copied_flags();
        let geometry = self.geometry();
        self.report.layout.total = geometry.clusters_for(self.image.header.size);
        self.report.image_end = self.used_end << geometry.cluster_bits();
        Ok(())
    }

    /// Counts all references but those to the refcounts themselves.
    pub fn run_without_refcounts(&mut self) -> Result<(), Stop> {
        self.header()?;
        self.active_l1()?;
        self.snapshots()?;
        self.follow_l2_tables()?;
        self.bitmaps()?;
        self.encryption()
    }

    pub const fn geometry(&self) -> Geometry {
        self.image.header.geometry
    }

    /// Clusters of the file; the last one may be a part.
    pub const fn clusters(&self) -> u64 {
        self.geometry().clusters_for(self.image.length)
    }

    /// Whether all of `bytes` from `offset` on is in the file, whose last cluster counts whole.
    pub fn is_inside(&self, offset: u64, bytes: u64) -> bool {
        let end = offset.checked_add(bytes);
        end.is_some_and(|end| self.geometry().clusters_for(end) <= self.clusters())
    }

    pub fn found(&mut self, spot: Spot, severity: Severity, problem: Problem) {
        self.report.add(Finding {
            severity,
            table: spot.table,
            index: spot.index,
            offset: spot.offset,
            problem,
        });
    }

    pub fn corrupt(&mut self, spot: Spot, problem: Problem) {
        self.found(spot, Severity::Corruption, problem);
    }

    /// As [`Self::corrupt`], of what leads on: references are not known.
    pub fn corrupt_way(&mut self, spot: Spot, problem: Problem) {
        self.report.hidden = true;
        self.corrupt(spot, problem);
    }

    /// Counts `times` references from `spot` to the clusters in which `bytes` from `host` on are. False: they are not
    /// in the file.
    pub fn mark(
        &mut self,
        spot: Spot,
        host: u64,
        bytes: u64,
        what: Use,
        times: u64,
    ) -> Result<bool, Stop> {
        if bytes == 0 {
            return Ok(true);
        }
        if !self.is_inside(host, bytes) {
            let problem = Problem::BeyondEnd {
                host: HostOffset(host),
                bytes,
                length: self.image.length,
            };
            self.corrupt(spot, problem);
            // Its refcount may be right, and nobody has counted it.
            let beyond = !matches!(what, Use::RefcountTable | Use::RefcountBlock);
            self.report.hidden |= beyond;
            self.beyond |= beyond;
            return Ok(false);
        }
        let bits = self.geometry().cluster_bits();
        for cluster in host >> bits..=(host + bytes - 1) >> bits {
            match self.usage.mark(cluster, what, times) {
                Ok(Marked::Fine) => {}
                Ok(Marked::Clash(other)) => {
                    let host = HostOffset(cluster << bits);
                    let this = what;
                    self.corrupt(spot, Problem::Overlap { host, this, other });
                }
                Err(NoMemory) => return Err(self.no_memory()),
            }
        }
        Ok(true)
    }

    pub fn no_memory(&mut self) -> Stop {
        self.report.hidden = true;
        let spot = Spot::whole(Table::Clusters, HostOffset(0));
        self.found(spot, Severity::Error, Problem::Memory(self.memory));
        Stop
    }

    /// Remembers who leads to an L2 table.
    pub fn lead_to(&mut self, table: u64, from: Spot, active: bool) -> Result<(), Stop> {
        let leads = self.l2_tables.entry(table).or_insert(Leads {
            first: from,
            all: 0,
            active: 0,
        });
        leads.all += 1;
        leads.active += u64::from(active);
        match self.l2_tables.len() as u64 * LEADS_BYTES > self.memory {
            true => Err(self.no_memory()),
            false => Ok(()),
        }
    }

    /// Reads a table; none: it is told why not.
    pub fn read(&mut self, spot: Spot, offset: u64, bytes: u64) -> Option<Vec<u8>> {
        self.table_bytes = self.table_bytes.saturating_add(bytes);
        if self.table_bytes > self.image.length.saturating_add(SLACK) {
            self.corrupt_way(
                spot,
                Problem::Rule("the tables are longer than the file: they lie in each other"),
            );
            return None;
        }
        let length = usize::try_from(bytes).unwrap_or(usize::MAX);
        match read_table(self.image.storage, offset, length) {
            Ok(table) => Some(table),
            Err(error) => {
                self.report.hidden = true;
                self.found(
                    spot,
                    Severity::Error,
                    Problem::Unreadable(error.to_string()),
                );
                None
            }
        }
    }
}
