//! A little image format with a map, counts, zero flags and a write-back cache: the correct one, and mutants of it, each with
//! one mistake that has been made in the field.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use block::range_lock::{Mode, RangeLock};
use block::{
    BlockError, Capabilities, Child, Driver, Io, IoFuture, Node, NodeInfo, Operation, OwnIo,
    OwnedBuffer, Resize, Result, Unwritten,
};
use parking_lot::Mutex;
use standfast_sweep::{Finding, Format, SECTOR, look};

use crate::layout::{
    BYTES, CLUSTER, ENTRY, Header, PER_CLUSTER, REFS, USED, ZERO, check, create, entry_of, host_of,
    put_word,
};

/// The one mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    None,
    /// The entry is in the table before the data are written.
    EntryBeforeData,
    /// Padding and entry reach the disk in any order.
    NoFlushBeforeEntry,
    /// The map is written before the counts.
    CountAfterPointer,
    /// What was discarded is used again at once.
    ReuseAtOnce,
    /// What is free is used again, and then discarded.
    DiscardAfterReuse,
    /// A flush is passed on, and that is all.
    FlushSkipsMetadata,
    /// A table is clean when it has been written, whatever becomes of the flush.
    FailedFlushIsClean,
    /// A failed allocation keeps its cluster.
    NoUndo,
    /// A failed allocation gives back its cluster, and keeps its entry.
    EntryStays,
    /// The place and the length of the map are in two sectors.
    SwitchInTwoSectors,
    /// The first write to a cluster that was zeroed leaves the rest as it was.
    StaleRest,
    /// A write and the zeroing of the same cluster do not know of each other.
    NoLock,
    /// A cluster that is read may be given to others.
    ReadWithoutLock,
    /// Nothing is written back at a stop.
    StopSkipsMetadata,
    /// The old map is free before the switch is durable.
    OldMapFreedEarly,
    /// A write that must be durable is passed on as one.
    FuaSkipsMetadata,
    /// A longer disk shows what was beyond its end.
    StaleTail,
}

#[derive(Debug, Default)]
struct Tables {
    map: Vec<u64>,
    refs: Vec<u8>,
    dirty_map: BTreeSet<usize>,
    dirty_refs: BTreeSet<usize>,
    free: BTreeSet<u64>,
    end: u64,
    /// Nothing points to them in memory; the disk may.
    unlinked: Vec<u64>,
    /// Counted down in memory.
    dropped: Vec<u64>,
    /// Of one mutant: to be discarded although they may be in use.
    late: Vec<u64>,
}

impl Tables {
    fn set_entry(&mut self, number: u64, entry: u64) {
        self.map[number as usize] = entry;
        self.dirty_map.insert(number as usize * ENTRY / SECTOR);
    }

    fn set_count(&mut self, cluster: u64, count: u8) {
        self.refs[cluster as usize] = count;
        self.dirty_refs.insert(cluster as usize / SECTOR);
    }

    fn allocate(&mut self) -> u64 {
        let cluster = self.free.pop_first().unwrap_or_else(|| {
            self.end += 1;
            self.end - 1
        });
        self.set_count(cluster, 1);
        cluster
    }

    fn give_back(&mut self, cluster: u64) {
        self.set_count(cluster, 0);
        self.free.insert(cluster);
    }

    /// Sectors of the map, as they are now.
    fn map_sector(&self, sector: usize) -> Vec<u8> {
        let mut bytes = vec![0; SECTOR];
        let per_sector = SECTOR / ENTRY;
        for place in 0..per_sector {
            let entry = self
                .map
                .get(sector * per_sector + place)
                .copied()
                .unwrap_or(0);
            put_word(&mut bytes, place * ENTRY, entry);
        }
        bytes
    }

    fn refs_sector(&self, sector: usize) -> Vec<u8> {
        self.refs[sector * SECTOR..(sector + 1) * SECTOR].to_vec()
    }

    fn is_clean(&self) -> bool {
        self.dirty_map.is_empty()
            && self.dirty_refs.is_empty()
            && self.unlinked.is_empty()
            && self.dropped.is_empty()
    }
}

/// What one flush writes.
struct Written {
    map: BTreeMap<usize, Vec<u8>>,
    refs: BTreeMap<usize, Vec<u8>>,
    unlinked: Vec<u64>,
    dropped: Vec<u64>,
}

#[derive(Debug)]
pub struct Toy {
    file: Child,
    mutant: Mutant,
    header: Mutex<Header>,
    tables: Mutex<Tables>,
    ranges: RangeLock,
    flushing: RangeLock,
    unsettled: Mutex<Option<(Header, Header)>>,
}

impl Toy {
    fn open(file: Arc<Node>, mutant: Mutant) -> std::result::Result<Self, String> {
        let file = Child::of(&"toy".into(), "file", file);
        let read = |at: u64, bytes: u64| {
            let mut buffer = OwnedBuffer::new(bytes as usize).map_err(|e| e.to_string())?;
            let read = look::now(file.submit(Io::read(at, buffer.lend())))?;
            read.map_err(|error| error.to_string())?;
            Ok::<_, String>(buffer.to_vec())
        };
        let header = Header::of(&read(0, BYTES)?, mutant == Mutant::SwitchInTwoSectors)?;
        let refs = read(REFS * BYTES, BYTES)?;
        if header.map_at > 1 << 16
            || header.map_clusters > 64
            || header.map_clusters * PER_CLUSTER < header.entries()
        {
            return Err("the map does not fit".to_owned());
        }
        let map = read(header.map_at * BYTES, header.map_clusters * BYTES)?;
        let map = (0..header.entries() as usize)
            .map(|number| entry_of(&map, number))
            .collect();
        let used = refs
            .iter()
            .rposition(|&count| count > 0)
            .map_or(0, |last| last as u64 + 1);
        let free = (0..used)
            .filter(|&cluster| refs[cluster as usize] == 0)
            .collect();
        let tables = Tables {
            map,
            refs,
            free,
            end: used,
            ..Tables::default()
        };
        Ok(Self {
            file,
            mutant,
            header: Mutex::new(header),
            tables: Mutex::new(tables),
            ranges: RangeLock::default(),
            flushing: RangeLock::default(),
            unsettled: Mutex::new(None),
        })
    }

    /// The parts of a range, cluster by cluster: number, first byte inside, part of the request.
    fn parts(offset: u64, bytes: u64) -> Vec<(u64, u64, Range<u64>)> {
        let mut parts = Vec::new();
        let mut at = 0;
        while at < bytes {
            let (number, inside) = ((offset + at) / BYTES, (offset + at) % BYTES);
            let length = (BYTES - inside).min(bytes - at);
            parts.push((number, inside, at..at + length));
            at += length;
        }
        parts
    }

    fn clusters(io: &Io<'_>) -> Range<u64> {
        io.offset / BYTES..(io.offset + io.bytes).div_ceil(BYTES)
    }

    fn entry(&self, number: u64) -> u64 {
        self.tables.lock().map[number as usize]
    }

    async fn read(&self, io: Io<'_>) -> Result<()> {
        let _range = match self.mutant {
            Mutant::ReadWithoutLock => None,
            _ => Some(self.ranges.lock(Self::clusters(&io), Mode::Shared).await),
        };
        for (number, inside, part) in Self::parts(io.offset, io.bytes) {
            let part = io.slice(part);
            let entry = self.entry(number);
            match host_of(entry) {
                Some(host) if entry & ZERO == 0 => {
                    self.file
                        .submit(Io::read(host * BYTES + inside, part.buffers))
                        .await?;
                }
                _ => part.buffers.fill_zero(),
            }
        }
        Ok(())
    }

    async fn write(&self, io: Io<'_>) -> Result<()> {
        let clusters = Self::clusters(&io);
        let shared = self.ranges.lock(clusters.clone(), Mode::Shared).await;
        let plain = clusters
            .clone()
            .all(|number| self.entry(number) & (USED | ZERO) == USED);
        if plain || self.mutant == Mutant::NoLock {
            return self.write_parts(io).await;
        }
        drop(shared);
        let _range = self.ranges.lock(clusters, Mode::Exclusive).await;
        self.write_parts(io).await
    }

    async fn write_parts(&self, io: Io<'_>) -> Result<()> {
        for (number, inside, part) in Self::parts(io.offset, io.bytes) {
            let part = io.slice(part);
            let entry = self.entry(number);
            match host_of(entry) {
                Some(host) if entry & ZERO == 0 => {
                    self.file
                        .submit(Io::write(host * BYTES + inside, part.buffers))
                        .await?;
                }
                host => self.first_write(number, inside, part, host).await?,
            }
        }
        Ok(())
    }

    /// The first write to a cluster that reads as zeroes.
    async fn first_write(
        &self,
        number: u64,
        inside: u64,
        part: Io<'_>,
        kept: Option<u64>,
    ) -> Result<()> {
        let host = kept.unwrap_or_else(|| self.tables.lock().allocate());
        let entry = host << 2 | USED;
        if matches!(self.mutant, Mutant::EntryBeforeData | Mutant::EntryStays) {
            self.tables.lock().set_entry(number, entry);
        }
        let written = if self.mutant == Mutant::StaleRest {
            self.file
                .submit(Io::write(host * BYTES + inside, part.buffers))
                .await
        } else {
            let mut whole = OwnedBuffer::zeroed(BYTES as usize)?;
            part.buffers
                .copy_to(&mut whole[inside as usize..(inside + part.bytes) as usize]);
            self.file
                .submit(Io::write(host * BYTES, whole.lend()))
                .await
        };
        let mut tables = self.tables.lock();
        if written.is_err() {
            if kept.is_none() {
                match self.mutant {
                    Mutant::NoUndo => {}
                    _ => tables.give_back(host),
                }
            }
            if self.mutant == Mutant::EntryBeforeData {
                let before = kept.map_or(0, |host| host << 2 | USED | ZERO);
                tables.set_entry(number, before);
            }
            return written;
        }
        tables.set_entry(number, entry);
        Ok(())
    }

    fn unlink(&self, number: u64, to: u64) {
        let mut tables = self.tables.lock();
        let before = tables.map[number as usize];
        if before == to {
            return;
        }
        tables.set_entry(number, to);
        if let Some(host) = host_of(before).filter(|_| host_of(to).is_none()) {
            match self.mutant {
                Mutant::ReuseAtOnce => tables.give_back(host),
                _ => tables.unlinked.push(host),
            }
        }
    }

    async fn zero(&self, io: Io<'_>) -> Result<()> {
        let mode = match self.mutant {
            Mutant::NoLock => Mode::Shared,
            _ => Mode::Exclusive,
        };
        let _range = self.ranges.lock(Self::clusters(&io), mode).await;
        let length = self.header.lock().sectors * SECTOR as u64;
        for (number, inside, part) in Self::parts(io.offset, io.bytes) {
            let part = io.slice(part);
            let entry = self.entry(number);
            let is_whole =
                inside == 0 && (part.bytes == BYTES || part.offset + part.bytes == length);
            let to = match io.op {
                Operation::Discard => Some(0),
                Operation::WriteZeroes { unmap: true } => Some(ZERO),
                _ => host_of(entry).map_or(Some(ZERO), |host| Some(host << 2 | USED | ZERO)),
            };
            match (to.filter(|_| is_whole), io.op) {
                (Some(to), _) => self.unlink(number, to),
                (None, Operation::Discard) => {}
                (None, _) => {
                    if let Some(host) = host_of(entry).filter(|_| entry & ZERO == 0) {
                        let at = host * BYTES + inside;
                        self.file
                            .submit(Io::write_zeroes(at, part.bytes, false))
                            .await?;
                    }
                }
            }
        }
        Ok(())
    }

    async fn put(&self, at: u64, bytes: &[u8]) -> Result<()> {
        let mut buffer = OwnedBuffer::new(bytes.len())?;
        buffer.copy_from_slice(bytes);
        self.file.submit(Io::write(at, buffer.lend())).await
    }

    async fn sync(&self) -> Result<()> {
        self.file.submit(Io::flush()).await
    }

    async fn put_refs(&self, written: &Written) -> Result<()> {
        for (sector, bytes) in &written.refs {
            self.put(REFS * BYTES + (sector * SECTOR) as u64, bytes)
                .await?;
        }
        Ok(())
    }

    async fn put_map(&self, written: &Written) -> Result<()> {
        let at = self.header.lock().map_at * BYTES;
        for (sector, bytes) in &written.map {
            self.put(at + (sector * SECTOR) as u64, bytes).await?;
        }
        Ok(())
    }

    /// Data and counts, and then the map. Whatever fails is to be written again.
    async fn put_tables(&self, written: &Written) -> Result<()> {
        match self.mutant {
            Mutant::NoFlushBeforeEntry => {
                self.put_refs(written).await?;
                self.put_map(written).await?;
                return self.sync().await;
            }
            Mutant::CountAfterPointer => {
                self.sync().await?;
                self.put_map(written).await?;
                self.sync().await?;
                self.put_refs(written).await?;
                return self.sync().await;
            }
            _ => {}
        }
        self.put_refs(written).await?;
        self.sync().await?;
        if !written.map.is_empty() {
            self.put_map(written).await?;
            self.sync().await?;
        }
        Ok(())
    }

    async fn flush(&self) -> Result<()> {
        let _turn = self.flushing.lock(0..1, Mode::Exclusive).await;
        self.settle().await?;
        let written = {
            let mut tables = self.tables.lock();
            let map = std::mem::take(&mut tables.dirty_map);
            let refs = std::mem::take(&mut tables.dirty_refs);
            Written {
                map: map
                    .into_iter()
                    .map(|sector| (sector, tables.map_sector(sector)))
                    .collect(),
                refs: refs
                    .into_iter()
                    .map(|sector| (sector, tables.refs_sector(sector)))
                    .collect(),
                unlinked: std::mem::take(&mut tables.unlinked),
                dropped: std::mem::take(&mut tables.dropped),
            }
        };
        if let Err(error) = self.put_tables(&written).await {
            let mut tables = self.tables.lock();
            if self.mutant != Mutant::FailedFlushIsClean {
                tables.dirty_map.extend(written.map.into_keys());
                tables.dirty_refs.extend(written.refs.into_keys());
            }
            tables.unlinked.extend(written.unlinked);
            tables.dropped.extend(written.dropped);
            return Err(error);
        }
        // Counted down on the disk: the storage may have it, and then whoever wants it.
        let late = std::mem::take(&mut self.tables.lock().late);
        if self.mutant == Mutant::DiscardAfterReuse {
            let mut tables = self.tables.lock();
            tables.free.extend(&written.dropped);
            tables.late.extend(&written.dropped);
        }
        for cluster in late.iter().chain(&written.dropped) {
            if self.mutant != Mutant::DiscardAfterReuse || late.contains(cluster) {
                // If it cannot be discarded it is used again as it is.
                let _ = self.file.submit(Io::discard(cluster * BYTES, BYTES)).await;
            }
        }
        let mut tables = self.tables.lock();
        if self.mutant != Mutant::DiscardAfterReuse {
            tables.free.extend(written.dropped);
        }
        for cluster in written.unlinked {
            tables.set_count(cluster, 0);
            tables.dropped.push(cluster);
        }
        Ok(())
    }

    async fn flush_all(&self) -> Result<()> {
        // What has been unlinked is counted down, then given back.
        for _ in 0..4 {
            self.flush().await?;
            if self.tables.lock().is_clean() {
                break;
            }
        }
        Ok(())
    }

    async fn put_header(&self, header: Header) -> Result<()> {
        let torn = self.mutant == Mutant::SwitchInTwoSectors;
        let bytes = header.bytes(torn);
        let bytes = if torn { &bytes[..] } else { &bytes[..SECTOR] };
        self.put(0, bytes).await?;
        self.sync().await
    }

    async fn switch(&self, before: Header, after: Header) -> Result<()> {
        let switched = self.put_header(after).await;
        match switched {
            Ok(()) => *self.header.lock() = after,
            Err(_) => *self.unsettled.lock() = Some((before, after)),
        }
        switched
    }

    async fn change_length(&self, sectors: u64) -> Result<()> {
        self.flush_all().await?;
        let before = *self.header.lock();
        let mut after = Header { sectors, ..before };
        if sectors <= before.sectors {
            for number in after.entries()..before.entries() {
                self.unlink(number, 0);
            }
            self.flush_all().await?;
            self.switch(before, after).await?;
            self.tables.lock().map.truncate(after.entries() as usize);
            return Ok(());
        }
        // What lies beyond the end in the last cluster has not been the guest's.
        let inside = before.sectors % CLUSTER * SECTOR as u64;
        if inside > 0 && self.mutant != Mutant::StaleTail {
            let entry = self.entry(before.sectors / CLUSTER);
            if let Some(host) = host_of(entry).filter(|_| entry & ZERO == 0) {
                let zeroes = Io::write_zeroes(host * BYTES + inside, BYTES - inside, false);
                self.file.submit(zeroes).await?;
            }
        }
        let needed = after.entries().div_ceil(PER_CLUSTER);
        if needed <= before.map_clusters {
            self.flush_all().await?;
            self.switch(before, after).await?;
            self.tables.lock().map.resize(after.entries() as usize, 0);
            return Ok(());
        }
        let map = {
            let mut tables = self.tables.lock();
            after.map_at = tables.end;
            after.map_clusters = needed;
            for cluster in after.map_at..after.map_at + needed {
                tables.set_count(cluster, 1);
            }
            tables.end += needed;
            let sectors = (needed * CLUSTER) as usize;
            (0..sectors)
                .flat_map(|sector| tables.map_sector(sector))
                .collect::<Vec<u8>>()
        };
        if self.mutant == Mutant::OldMapFreedEarly {
            let mut tables = self.tables.lock();
            let old = before.map_at..before.map_at + before.map_clusters;
            old.for_each(|cluster| tables.set_count(cluster, 0));
        }
        let moved = async {
            self.put(after.map_at * BYTES, &map).await?;
            self.flush().await?;
            self.put_header(after).await
        };
        if let Err(error) = moved.await {
            *self.unsettled.lock() = Some((before, after));
            return Err(error);
        }
        *self.header.lock() = after;
        let mut tables = self.tables.lock();
        tables.map.resize(after.entries() as usize, 0);
        let old = before.map_at..before.map_at + before.map_clusters;
        tables.unlinked.extend(old);
        Ok(())
    }

    /// A header that could not be written may be on the disk nevertheless: before anything else is written there is the one
    /// of before again, and what only the other one needed is free.
    async fn settle(&self) -> Result<()> {
        let unsettled = *self.unsettled.lock();
        if let Some((before, after)) = unsettled {
            self.put_header(before).await?;
            *self.unsettled.lock() = None;
            if after.map_at != before.map_at {
                let new = after.map_at..after.map_at + after.map_clusters;
                self.tables.lock().unlinked.extend(new);
            }
        }
        Ok(())
    }
}

impl Driver for Toy {
    fn name(&self) -> &'static str {
        "toy"
    }

    fn info(&self) -> NodeInfo {
        NodeInfo::default()
    }

    fn length(&self) -> u64 {
        self.header.lock().sectors * SECTOR as u64
    }

    fn submit<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        IoFuture::new(async move {
            match io.op {
                Operation::Read => self.read(io).await?,
                Operation::Write => self.write(io).await?,
                Operation::Discard | Operation::WriteZeroes { .. } => self.zero(io).await?,
                Operation::Flush if self.mutant == Mutant::FlushSkipsMetadata => {
                    self.sync().await?
                }
                Operation::Flush => self.flush().await?,
            }
            if io.fua {
                match self.mutant {
                    Mutant::FuaSkipsMetadata => self.sync().await?,
                    _ => self.flush().await?,
                }
            }
            Ok(())
        })
    }

    fn children(&self) -> Vec<&Child> {
        vec![&self.file]
    }

    fn capabilities(&self) -> Capabilities<'_> {
        Capabilities {
            resize: Some(self),
            own_io: Some(self),
            ..Capabilities::default()
        }
    }
}

impl OwnIo for Toy {
    fn write_back(&self) -> IoFuture<'_> {
        if self.mutant == Mutant::StopSkipsMetadata {
            return IoFuture::ready(Ok(()));
        }
        IoFuture::new(self.flush_all())
    }

    fn unwritten(&self) -> Option<Unwritten> {
        let is_clean = self.tables.lock().is_clean() && self.unsettled.lock().is_none();
        let blind = self.mutant == Mutant::StopSkipsMetadata;
        (!is_clean && !blind).then(|| Unwritten {
            bytes: SECTOR as u64,
            what: "tables".to_owned(),
        })
    }
}

impl Resize for Toy {
    fn resized_length(&self, length: u64) -> Result<u64> {
        Ok(length)
    }

    fn resize(&self, length: u64) -> Result<()> {
        let changed = look::now(self.change_length(length / SECTOR as u64));
        changed.map_err(|text| BlockError::new(libc::EIO, text))?
    }
}

/// The toy, or a mutant of it.
#[derive(Debug)]
pub struct ToyFormat(pub Mutant);

impl ToyFormat {
    fn is_torn(&self) -> bool {
        self.0 == Mutant::SwitchInTwoSectors
    }
}

impl Format for ToyFormat {
    fn name(&self) -> String {
        format!("toy ({:?})", self.0)
    }

    fn create(&self, sectors: u64) -> Vec<u8> {
        create(sectors, self.is_torn())
    }

    fn open(&self, file: Arc<Node>) -> std::result::Result<Arc<Node>, String> {
        Ok(Node::new("toy", Box::new(Toy::open(file, self.0)?)))
    }

    fn check(&self, disk: &[u8]) -> Vec<Finding> {
        check(disk, self.is_torn())
    }

    fn cluster(&self) -> u64 {
        CLUSTER
    }

    fn resizes_to(&self) -> Option<u64> {
        Some(160)
    }
}
