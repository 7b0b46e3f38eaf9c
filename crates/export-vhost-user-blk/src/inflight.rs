//! The inflight region: what has been taken from the rings and not yet been completed, in memory
//! that the client keeps. It survives this process; whoever starts the ring next goes by it.
//!
//! The layout is that of split virtqueues in the vhost-user specification: per queue a header
//! (features, version, number of descriptors, head of the last batch, used index) and one state per
//! descriptor (inflight, next, counter). Behind the queues' parts is [`crate::trailer`]. Everything in
//! it may be anything: the client, or a former process that died in the middle of an update, has
//! written it.
//!
//! A part has room for the largest queue that the export serves, whatever the client asks for: QEMU
//! asks with its `queue-size`, and on virtio-mmio the driver makes larger queues than that.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};

use block::WriteCache;

use crate::ring;
use crate::shared::{Area, Cells, MapError, Mapping, sealed_memfd};
use crate::trailer::{self, Layout, UnknownVersion};

const VERSION: u16 = 1;
/// Places of 16 bits in the header.
const VERSION_PLACE: usize = 4;
const DESCRIPTORS: usize = 5;
const LAST_BATCH: usize = 6;
const USED: usize = 7;
const HEADER_BYTES: usize = 16;
const STATE_BYTES: usize = 16;
/// Places in a state, in units of their own size: of 8, 16 and 64 bits.
const MARK: usize = 0;
const NEXT: usize = 3;
const COUNTER: usize = 1;
/// Parts of different queues share no cache line.
const ALIGN: usize = 64;

/// What GET_INFLIGHT_FD and SET_INFLIGHT_FD say about a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionSpec {
    pub bytes: u64,
    pub offset: u64,
    pub queues: u16,
    pub queue_size: u16,
}

/// Why a region cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InflightError {
    #[error("inflight region: {0}")]
    Map(#[from] MapError),
    #[error("inflight region: cannot make a memfd of {bytes} bytes: {source}")]
    Create { bytes: u64, source: std::io::Error },
    #[error(
        "inflight region of {bytes} bytes at offset {offset} for {queues} queues of {queue_size}: \
         it needs {needed} bytes, an offset that is a multiple of 8, and a queue size up to {}",
        ring::SIZE_MAX
    )]
    Spec {
        bytes: u64,
        offset: u64,
        queues: u16,
        queue_size: u16,
        needed: u64,
    },
    #[error(transparent)]
    Trailer(#[from] UnknownVersion),
    #[error("inflight region: version {version}, supported is {VERSION}")]
    Version { version: u16 },
    #[error("inflight region: made for {found} descriptors, the queue has {size}")]
    Descriptors { found: u16, size: u16 },
    #[error(
        "inflight region: its used index {noted} and that of the ring, {used}, are more than the \
         queue size {size} apart"
    )]
    UsedIndex { noted: u16, used: u16, size: u16 },
    #[error("inflight region: the last batch names descriptor {head}, the queue has {size}")]
    LastBatch { head: u16, size: u16 },
}

/// A head that is marked as in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Marked {
    /// Orders heads as they were taken.
    pub counter: u64,
    pub head: u16,
}

/// The region of one life of a device.
#[derive(Debug)]
pub(crate) struct Region {
    mapping: Arc<Mapping>,
    layout: Layout,
    /// None in a region of an older daemon.
    trailer: Option<Area>,
    /// What the trailer said when the region was handed in.
    write_cache: WriteCache,
}

impl Region {
    /// A fresh region, for GET_INFLIGHT_FD.
    pub fn create(
        queues: u16,
        queue_size: u16,
        write_cache: WriteCache,
    ) -> Result<(RegionSpec, File), InflightError> {
        let layout = Layout { queues, queue_size };
        let parts = bytes_of(layout);
        let bytes = parts + trailer::BYTES as u64;
        let spec = RegionSpec {
            bytes,
            offset: 0,
            queues,
            queue_size,
        };
        check(&spec, layout, bytes)?;
        let failed = |source| InflightError::Create { bytes, source };
        let file = sealed_memfd("vhost-user-blk-inflight", bytes);
        let file = File::from(file.map_err(|errno| failed(errno.into()))?);
        (file.write_all_at(&trailer::fresh(layout, write_cache), parts)).map_err(failed)?;
        Ok((spec, file))
    }

    /// Maps the region that a client hands in.
    pub fn open(spec: &RegionSpec, file: &File) -> Result<Self, InflightError> {
        let said = Layout {
            queues: spec.queues,
            queue_size: spec.queue_size,
        };
        // The least that any region has, before it is mapped.
        check(spec, said, 0)?;
        let mapping = Mapping::of_file(file.as_fd(), spec.offset, spec.bytes)?;
        let mut trailer = trailer_of(&mapping);
        let found = trailer.as_ref().map(trailer::read).transpose()?.flatten();
        trailer = trailer.filter(|_| found.is_some());
        let (layout, write_cache) = found.unwrap_or((said, WriteCache::Unknown));
        let behind = found.map_or(0, |_| trailer::BYTES as u64);
        check(spec, layout, bytes_of(layout) + behind)?;
        Ok(Self {
            mapping,
            layout,
            trailer,
            write_cache,
        })
    }

    /// What was recorded in it when it was handed in.
    pub fn write_cache(&self) -> WriteCache {
        self.write_cache
    }

    /// Records it; false if there is no place for it.
    pub fn set_write_cache(&self, write_cache: WriteCache) -> bool {
        let Some(trailer) = &self.trailer else {
            return false;
        };
        trailer::set_write_cache(trailer, write_cache);
        true
    }

    /// Whether the client has taken memory of it away that was accessed here.
    pub fn is_poisoned(&self) -> bool {
        self.mapping.is_poisoned()
    }

    /// The part of one queue, which has `size` descriptors; none if the region has no room for it.
    pub fn queue(&self, queue: u16, size: u16) -> Result<Option<QueueRegion>, InflightError> {
        let Layout { queues, queue_size } = self.layout;
        if queue >= queues || size > queue_size {
            return Ok(None);
        }
        let stride = stride(queue_size);
        let area = self.mapping.area(stride * usize::from(queue), stride);
        area.map(|area| QueueRegion::new(&area, size)).transpose()
    }

    /// Whether anything of a queue is marked: a former device may have had it in flight.
    pub fn has_marks(&self, queue: u16) -> bool {
        let Layout { queues, queue_size } = self.layout;
        let stride = stride(queue_size);
        let area = self.mapping.area(stride * usize::from(queue), stride);
        area.filter(|_| queue < queues).is_some_and(|area| {
            let states =
                area.cells::<[AtomicU8; STATE_BYTES]>(HEADER_BYTES, usize::from(queue_size));
            let mut states = states.iter();
            states.any(|marks| marks[MARK].load(Ordering::Acquire) != 0)
        })
    }

    /// Which queues it has parts for.
    pub fn layout(&self) -> Layout {
        self.layout
    }
}

/// The last bytes of a region, if they can be a trailer.
fn trailer_of(mapping: &Arc<Mapping>) -> Option<Area> {
    let start = mapping.len().checked_sub(trailer::BYTES)?;
    mapping
        .area(start, trailer::BYTES)
        .filter(|area| area.is_aligned(align_of::<AtomicU64>()))
}

fn stride(queue_size: u16) -> usize {
    (HEADER_BYTES + STATE_BYTES * usize::from(queue_size)).next_multiple_of(ALIGN)
}

/// Bytes of all parts.
fn bytes_of(Layout { queues, queue_size }: Layout) -> u64 {
    // At most 65535 * (16 + 16 * 65535 + 64): no overflow.
    stride(queue_size) as u64 * u64::from(queues)
}

/// Whether a region can have this layout, which needs `needed` bytes.
fn check(spec: &RegionSpec, layout: Layout, needed: u64) -> Result<(), InflightError> {
    let RegionSpec { bytes, offset, .. } = *spec;
    let Layout { queues, queue_size } = layout;
    let sizes = queues > 0 && queue_size > 0 && queue_size <= ring::SIZE_MAX;
    if !sizes || bytes < needed || !offset.is_multiple_of(8) {
        return Err(InflightError::Spec {
            bytes,
            offset,
            queues,
            queue_size,
            needed,
        });
    }
    Ok(())
}

/// One queue's part of a region.
#[derive(Debug)]
pub(crate) struct QueueRegion {
    header: Cells<AtomicU16>,
    /// The states, seen as numbers of each size; no byte is accessed as more than one of them.
    marks: Cells<[AtomicU8; STATE_BYTES]>,
    nexts: Cells<[AtomicU16; STATE_BYTES / 2]>,
    counters: Cells<[AtomicU64; STATE_BYTES / 8]>,
    size: u16,
    next_counter: u64,
    /// Nobody has used it before, so its used index says nothing.
    fresh: bool,
}

impl QueueRegion {
    fn new(area: &Area, size: u16) -> Result<Self, InflightError> {
        let states = usize::from(size);
        let mut this = Self {
            header: area.cells(0, HEADER_BYTES / 2),
            marks: area.cells(HEADER_BYTES, states),
            nexts: area.cells(HEADER_BYTES, states),
            counters: area.cells(HEADER_BYTES, states),
            size,
            next_counter: 0,
            fresh: false,
        };
        let (version, found) = (this.load(VERSION_PLACE), this.load(DESCRIPTORS));
        this.fresh = (version, found) == (0, 0);
        match (version, found) {
            _ if this.fresh => {
                this.store(DESCRIPTORS, size);
                this.store(VERSION_PLACE, VERSION);
            }
            (VERSION, _) if found == size => {}
            (VERSION, _) => return Err(InflightError::Descriptors { found, size }),
            _ => return Err(InflightError::Version { version }),
        }
        Ok(this)
    }

    fn load(&self, place: usize) -> u16 {
        u16::from_le(self.header[place].load(Ordering::Acquire))
    }

    fn store(&self, place: usize, value: u16) {
        self.header[place].store(value.to_le(), Ordering::Release);
    }

    /// Whether no device has ever used it.
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// What is in flight, oldest first, at the start of a ring whose used index is `used`. Finishes
    /// what an interrupted batch has left undone.
    pub fn recover(&mut self, used: u16) -> Result<Vec<Marked>, InflightError> {
        if std::mem::take(&mut self.fresh) {
            // The ring may be older than the region: after a migration, say.
            self.set_used(used);
        }
        let noted = self.load(USED);
        let batch = used.wrapping_sub(noted);
        let size = self.size;
        if batch > size {
            return Err(InflightError::UsedIndex { noted, used, size });
        }
        if batch > 0 {
            // The used index was published, but perhaps not all marks of that batch were removed.
            let mut head = self.load(LAST_BATCH);
            for _ in 0..batch {
                if head >= size {
                    return Err(InflightError::LastBatch { head, size });
                }
                self.unmark(head);
                let next = &self.nexts[usize::from(head)][NEXT];
                head = u16::from_le(next.load(Ordering::Acquire));
            }
            self.set_used(used);
        }
        let mut marked: Vec<_> = (0..size)
            .zip(self.marks.iter().zip(&*self.counters))
            .filter(|(_, (marks, _))| marks[MARK].load(Ordering::Acquire) != 0)
            .map(|(head, (_, counters))| Marked {
                counter: u64::from_le(counters[COUNTER].load(Ordering::Acquire)),
                head,
            })
            .collect();
        marked.sort_by_key(|marked| (marked.counter, marked.head));
        self.next_counter = marked.last().map_or(0, |last| last.counter.wrapping_add(1));
        Ok(marked)
    }

    /// A head has been taken; returns its counter.
    pub fn mark(&mut self, head: u16) -> u64 {
        let counter = self.next_counter;
        self.next_counter = counter.wrapping_add(1);
        let head = usize::from(head);
        self.counters[head][COUNTER].store(counter.to_le(), Ordering::Relaxed);
        self.marks[head][MARK].store(1, Ordering::Release);
        counter
    }

    /// A head is about to be published as used. Comes after its used element and before the index.
    pub fn add_to_batch(&self, head: u16) {
        let last = self.header[LAST_BATCH].load(Ordering::Relaxed);
        self.nexts[usize::from(head)][NEXT].store(last, Ordering::Release);
        self.store(LAST_BATCH, head);
    }

    /// A head has been published as used.
    pub fn unmark(&self, head: u16) {
        self.marks[usize::from(head)][MARK].store(0, Ordering::Release);
    }

    /// The batch is done.
    pub fn set_used(&self, used: u16) {
        self.store(USED, used);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn state(head: usize) -> usize {
        HEADER_BYTES + STATE_BYTES * head
    }

    fn region(queues: u16, size: u16) -> (Region, File, RegionSpec) {
        let (spec, file) = Region::create(queues, size, WriteCache::Unknown).unwrap();
        (Region::open(&spec, &file).unwrap(), file, spec)
    }

    fn heads(marked: &[Marked]) -> Vec<u16> {
        marked.iter().map(|marked| marked.head).collect()
    }

    #[test]
    fn parts_of_queues_are_apart() {
        assert_eq!(stride(3), 64);
        assert_eq!(stride(4), 128);
        let (region, _file, spec) = region(3, 4);
        assert_eq!(spec.bytes, 384 + 64);
        for queue in 0..3 {
            let mut part = region.queue(queue, 4).unwrap().unwrap();
            assert!(part.recover(0).unwrap().is_empty());
            part.mark(3);
        }
        assert_eq!(
            heads(&region.queue(2, 4).unwrap().unwrap().recover(0).unwrap()),
            [3]
        );
        assert!(region.queue(3, 4).unwrap().is_none());
        assert!(region.queue(0, 5).unwrap().is_none());
    }

    #[test]
    fn marks_come_back_in_the_order_they_were_made() {
        let (region, _file, _) = region(1, 8);
        let mut part = region.queue(0, 8).unwrap().unwrap();
        for head in [5, 0, 7, 2] {
            part.mark(head);
        }
        part.add_to_batch(0);
        part.unmark(0);
        part.set_used(1);
        let mut again = region.queue(0, 8).unwrap().unwrap();
        assert_eq!(heads(&again.recover(1).unwrap()), [5, 7, 2]);
        assert_eq!(again.mark(1), 4, "counters go on");
    }

    #[test]
    fn a_fresh_region_for_a_ring_that_has_been_used() {
        let (region, _file, _) = region(1, 8);
        assert!(
            region
                .queue(0, 8)
                .unwrap()
                .unwrap()
                .recover(5000)
                .unwrap()
                .is_empty()
        );
        assert!(
            region
                .queue(0, 8)
                .unwrap()
                .unwrap()
                .recover(5000)
                .unwrap()
                .is_empty()
        );
        let again = region.queue(0, 8).unwrap();
        assert!(again.unwrap().recover(5009).is_err());
    }

    #[test]
    fn hostile_regions_are_refused() {
        let (region, file, spec) = region(1, 8);
        let area = region.mapping.area(0, region.mapping.len()).unwrap();
        let mut part = region.queue(0, 8).unwrap().unwrap();
        assert!(part.recover(0).unwrap().is_empty());
        assert!(matches!(
            part.recover(9),
            Err(InflightError::UsedIndex { .. })
        ));
        area.store_u16(2 * LAST_BATCH, 8, Ordering::Relaxed);
        assert!(matches!(
            part.recover(1),
            Err(InflightError::LastBatch { head: 8, .. })
        ));
        // A list that runs in a circle ends with the batch.
        area.store_u16(2 * LAST_BATCH, 0, Ordering::Relaxed);
        assert!(part.recover(8).unwrap().is_empty());
        area.store_u64(state(3) + 8, u64::MAX, Ordering::Relaxed);
        area.store_u8(state(3), 0xff, Ordering::Relaxed);
        assert_eq!(heads(&part.recover(8).unwrap()), [3]);
        assert!(matches!(
            region.queue(0, 4),
            Err(InflightError::Descriptors { found: 8, size: 4 })
        ));
        area.store_u16(2 * VERSION_PLACE, 2, Ordering::Relaxed);
        assert!(matches!(
            region.queue(0, 8),
            Err(InflightError::Version { version: 2 })
        ));
        for wrong in [
            RegionSpec { bytes: 127, ..spec },
            RegionSpec { offset: 4, ..spec },
            RegionSpec { queues: 0, ..spec },
            RegionSpec {
                queue_size: 0,
                ..spec
            },
            RegionSpec {
                queue_size: 32769,
                bytes: u64::MAX,
                ..spec
            },
        ] {
            let error = Region::open(&wrong, &file).unwrap_err();
            assert!(matches!(error, InflightError::Spec { .. }), "{error}");
        }
        let longer = RegionSpec {
            bytes: 65536,
            ..spec
        };
        assert!(matches!(
            Region::open(&longer, &file),
            Err(InflightError::Map(_))
        ));
    }

    /// QEMU hands back what it asked for, not what it was given; only the length is ours.
    #[test]
    fn the_trailer_knows_better_than_the_client() {
        let (region, file, spec) = region(2, 64);
        for queue in 0..2 {
            let mut part = region.queue(queue, 64).unwrap().unwrap();
            part.recover(0).unwrap();
            part.mark(63 - queue);
        }
        for (queues, queue_size) in [(2, 64), (1, 4), (2, 16), (16, 64), (2, 1024)] {
            let said = RegionSpec {
                queues,
                queue_size,
                ..spec
            };
            let again = Region::open(&said, &file).unwrap();
            for queue in 0..2 {
                let mut part = again.queue(queue, 64).unwrap().unwrap();
                assert_eq!(heads(&part.recover(0).unwrap()), [63 - queue]);
            }
        }
    }

    #[test]
    fn the_write_cache_is_read_once_and_written_at_once() {
        let (spec, file) = Region::create(2, 8, WriteCache::WriteBack).unwrap();
        let region = Region::open(&spec, &file).unwrap();
        assert_eq!(region.write_cache(), WriteCache::WriteBack);
        for cache in WriteCache::ALL {
            assert!(region.set_write_cache(cache));
            let again = Region::open(&spec, &file).unwrap();
            assert_eq!(again.write_cache(), cache);
            assert_eq!(region.write_cache(), WriteCache::WriteBack);
        }
        let at = area_len(&spec) - trailer::BYTES;
        let area = region.mapping.area(0, region.mapping.len()).unwrap();
        area.store_u8(at + 14, 3, Ordering::Relaxed);
        let again = Region::open(&spec, &file).unwrap();
        assert_eq!(again.write_cache(), WriteCache::WriteThrough);
        // Nothing is written where there is no trailer.
        area.store_u8(at, 0, Ordering::Relaxed);
        let old = Region::open(&spec, &file).unwrap();
        assert_eq!(old.write_cache(), WriteCache::Unknown);
        assert!(!old.set_write_cache(WriteCache::WriteBack));
        assert_eq!(area.load_u8(at + 14, Ordering::Relaxed), 3);
    }

    #[test]
    fn hostile_trailers() {
        let (region, file, spec) = region(2, 8);
        let area = region.mapping.area(0, region.mapping.len()).unwrap();
        let at = area_len(&spec) - trailer::BYTES;
        let mut good = [0; 8];
        file.read_exact_at(&mut good, u64::try_from(at).unwrap() + 8)
            .unwrap();
        let (version, queues, size) = (at + 8, at + 10, at + 12);
        for (place, value, expected) in [
            (queues, 0, "448 bytes at offset 0 for 0 queues of 8"),
            (queues, 3, "it needs 640 bytes"),
            (queues, u16::MAX, "for 65535 queues of 8"),
            (size, 0, "for 2 queues of 0"),
            (size, 16, "it needs 704 bytes"),
            (size, u16::MAX, "for 2 queues of 65535"),
            (version, 0, "version 0"),
            (version, 2, "version 2"),
        ] {
            area.store_u16(place, value, Ordering::Relaxed);
            let error = Region::open(&spec, &file).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            for (index, chunk) in good.as_chunks::<2>().0.iter().enumerate() {
                let value = u16::from_le_bytes(*chunk);
                area.store_u16(version + 2 * index, value, Ordering::Relaxed);
            }
        }
        // Fewer: whatever else is there is not looked at.
        area.store_u16(queues, 1, Ordering::Relaxed);
        let fewer = Region::open(&spec, &file).unwrap();
        assert!(fewer.queue(1, 8).unwrap().is_none());
        // No trailer, as in a region of an older daemon: the client's word counts.
        area.store_u8(at, 0, Ordering::Relaxed);
        let old = Region::open(&spec, &file).unwrap();
        assert!(old.queue(1, 8).unwrap().is_some() && old.queue(2, 8).unwrap().is_none());
        let more = RegionSpec { queues: 4, ..spec };
        let error = Region::open(&more, &file).unwrap_err();
        assert!(matches!(error, InflightError::Spec { .. }), "{error}");
        // What is shorter than a trailer has none.
        let short = RegionSpec {
            queues: 1,
            queue_size: 2,
            bytes: 63,
            ..spec
        };
        assert!(Region::open(&short, &file).is_err());
    }

    fn area_len(spec: &RegionSpec) -> usize {
        usize::try_from(spec.bytes).unwrap()
    }

    proptest! {
        /// A process may die between any two stores of a batch: what is in flight afterwards is
        /// what the driver has not seen as used.
        #[test]
        fn a_batch_can_be_interrupted_anywhere(
            taken in proptest::sample::subsequence((0u16..16).collect::<Vec<_>>(), 1..16).prop_shuffle(),
            earlier in 0usize..4,
            batch in 1usize..8,
            stop_after in 0usize..30,
        ) {
            let (region, _file, _) = region(1, 16);
            let mut part = region.queue(0, 16).unwrap().unwrap();
            for &head in &taken {
                part.mark(head);
            }
            let earlier = earlier.min(taken.len());
            let batch = batch.min(taken.len() - earlier);
            let (mut used, mut steps) = (0, 0);
            for (done, stops) in [(&taken[..earlier], usize::MAX), (&taken[earlier..earlier + batch], stop_after)] {
                let mut alive = || { steps += 1; steps <= stops };
                for &head in done {
                    if alive() { part.add_to_batch(head); }
                }
                if alive() { used += u16::try_from(done.len()).unwrap(); }
                for &head in done {
                    if alive() { part.unmark(head); }
                }
                if alive() { part.set_used(used); }
                steps = 0;
            }
            let expected = &taken[usize::from(used)..];
            let found = region.queue(0, 16).unwrap().unwrap().recover(used).unwrap();
            prop_assert_eq!(heads(&found), expected);
        }
    }
}
