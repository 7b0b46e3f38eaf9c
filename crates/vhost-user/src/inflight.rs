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

mod part;

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crate::ring;
use crate::shared::{Area, MapError, Mapping, sealed_memfd};
use crate::trailer::{self, Label, Layout, UnknownVersion};
use part::stride;
pub(crate) use part::{Marked, PartError, QueueRegion};

/// What GET_INFLIGHT_FD and SET_INFLIGHT_FD say about a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionSpec {
    /// Its size in bytes.
    pub bytes: u64,
    /// Where it begins in its file, in bytes.
    pub offset: u64,
    /// Number of queues.
    pub queues: u16,
    /// Descriptors of each.
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
}

/// The region of one life of a device.
#[derive(Debug)]
pub(crate) struct Region {
    mapping: Arc<Mapping>,
    layout: Layout,
    /// None in a region of an older daemon.
    trailer: Option<Area>,
    /// What the trailer said when the region was handed in.
    note: u8,
    /// None in a region of an older daemon.
    label: Option<Label>,
}

impl Region {
    /// A fresh region, for GET_INFLIGHT_FD; `name` is that of its memory.
    pub fn create(
        name: &str,
        queues: u16,
        queue_size: u16,
        note: u8,
        label: &[u8],
    ) -> Result<(RegionSpec, File), InflightError> {
        let layout = Layout { queues, queue_size };
        let parts = bytes_of(layout);
        let end = parts + trailer::LABEL_BYTES as u64;
        let bytes = end + trailer::BYTES as u64;
        let spec = RegionSpec {
            bytes,
            offset: 0,
            queues,
            queue_size,
        };
        check(&spec, layout, bytes)?;
        let failed = |source| InflightError::Create { bytes, source };
        let file = sealed_memfd(name, bytes);
        let file = File::from(file.map_err(|errno| failed(errno.into()))?);
        (file.write_all_at(&trailer::fresh(layout, note), end)).map_err(failed)?;
        (file.write_all_at(&trailer::fresh_label(label), parts)).map_err(failed)?;
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
        let (layout, note) = found.unwrap_or((said, 0));
        let room = trailer.as_ref().map_or(0, trailer::label_room);
        let behind = trailer.as_ref().map_or(0, |_| trailer::BYTES + room);
        check(spec, layout, bytes_of(layout) + behind as u64)?;
        let label = label_of(&mapping, room);
        Ok(Self {
            mapping,
            layout,
            trailer,
            note,
            label,
        })
    }

    /// What the class of the device had noted in it when it was handed in; 0 if nothing.
    pub fn note(&self) -> u8 {
        self.note
    }

    /// Notes something else; false if there is no place for it.
    pub fn set_note(&self, note: u8) -> bool {
        let Some(trailer) = &self.trailer else {
            return false;
        };
        trailer::set_note(trailer, note);
        true
    }

    /// What the class of the device has it labelled with; none if it is not.
    pub fn label(&self) -> Option<Vec<u8>> {
        self.label.as_ref()?.read()
    }

    /// Labels it anew, if it has a place for that.
    pub fn set_label(&self, label: &[u8]) {
        if let Some(place) = &self.label {
            place.write(label);
        }
    }

    /// Whether the client has taken memory of it away that was accessed here.
    #[inline]
    pub fn is_poisoned(&self) -> bool {
        self.mapping.is_poisoned()
    }

    /// The part of one queue, which has `size` descriptors; none if the region has no room for it.
    pub fn queue(&self, queue: u16, size: u16) -> Result<Option<QueueRegion>, PartError> {
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
        area.filter(|_| queue < queues)
            .is_some_and(|area| part::has_marks(&area, queue_size))
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

/// The place for a label of `room` bytes before the trailer, if there is one.
fn label_of(mapping: &Arc<Mapping>, room: usize) -> Option<Label> {
    let start = mapping.len().checked_sub(trailer::BYTES + room)?;
    let area = mapping.area(start, room).filter(|_| room > 0)?;
    Label::new(area, room)
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

#[cfg(test)]
mod tests {
    use super::part::{HEADER_BYTES, LAST_BATCH, STATE_BYTES, VERSION_PLACE};
    use super::*;
    use proptest::prelude::*;
    use std::sync::atomic::Ordering;

    fn state(head: usize) -> usize {
        HEADER_BYTES + STATE_BYTES * head
    }

    fn region(queues: u16, size: u16) -> (Region, File, RegionSpec) {
        let (spec, file) = Region::create("test", queues, size, 0, b"").unwrap();
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
        assert_eq!(spec.bytes, 384 + 1024 + 64);
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
        let again = region.queue(0, 8).unwrap();
        assert!(again.unwrap().recover(5009).is_err());
    }

    #[test]
    fn hostile_regions_are_refused() {
        let (region, file, spec) = region(1, 8);
        let area = region.mapping.area(0, region.mapping.len()).unwrap();
        let mut part = region.queue(0, 8).unwrap().unwrap();
        assert!(part.recover(0).unwrap().is_empty());
        assert!(matches!(part.recover(9), Err(PartError::UsedIndex { .. })));
        area.store_u16(2 * LAST_BATCH, 8, Ordering::Relaxed);
        assert!(matches!(
            part.recover(1),
            Err(PartError::LastBatch { head: 8, .. })
        ));
        // A list that runs in a circle ends with the batch.
        area.store_u16(2 * LAST_BATCH, 0, Ordering::Relaxed);
        assert!(part.recover(8).unwrap().is_empty());
        area.store_u64(state(3) + 8, u64::MAX, Ordering::Relaxed);
        area.store_u8(state(3), 0xff, Ordering::Relaxed);
        assert_eq!(heads(&part.recover(8).unwrap()), [3]);
        assert!(matches!(
            region.queue(0, 4),
            Err(PartError::Descriptors { found: 8, size: 4 })
        ));
        area.store_u16(2 * VERSION_PLACE, 2, Ordering::Relaxed);
        assert!(matches!(
            region.queue(0, 8),
            Err(PartError::Version { version: 2 })
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
    fn the_note_is_read_once_and_written_at_once() {
        let (spec, file) = Region::create("test", 2, 8, 1, b"").unwrap();
        let region = Region::open(&spec, &file).unwrap();
        assert_eq!(region.note(), 1);
        for note in [0, 1, 2, 0xff] {
            assert!(region.set_note(note));
            let again = Region::open(&spec, &file).unwrap();
            assert_eq!(again.note(), note);
            assert_eq!(region.note(), 1);
        }
        let at = area_len(&spec) - trailer::BYTES;
        let area = region.mapping.area(0, region.mapping.len()).unwrap();
        area.store_u8(at + 14, 3, Ordering::Relaxed);
        let again = Region::open(&spec, &file).unwrap();
        assert_eq!(again.note(), 3);
        // Nothing is written where there is no trailer.
        area.store_u8(at, 0, Ordering::Relaxed);
        let old = Region::open(&spec, &file).unwrap();
        assert_eq!(old.note(), 0);
        assert!(!old.set_note(1));
        assert_eq!(area.load_u8(at + 14, Ordering::Relaxed), 3);
    }

    /// What is read is all of what was said last, or nothing; an older daemon has no place for it.
    #[test]
    fn labels() {
        let (spec, file) = Region::create("test", 2, 8, 1, b"first").unwrap();
        let region = Region::open(&spec, &file).unwrap();
        let read = || Region::open(&spec, &file).unwrap().label();
        assert_eq!(read().as_deref(), Some(&b"first"[..]));
        for label in [&b"second one"[..], b"x", &[7; trailer::LABEL_BYTES_MAX]] {
            region.set_label(label);
            assert_eq!(read().as_deref(), Some(label));
        }
        for nothing in [&b""[..], &[7; trailer::LABEL_BYTES_MAX + 1]] {
            region.set_label(nothing);
            assert_eq!(read(), None);
        }
        region.set_label(b"third");
        let area = region.mapping.area(0, region.mapping.len()).unwrap();
        let at = area_len(&spec) - trailer::BYTES - trailer::LABEL_BYTES;
        area.store_u16(at, u16::MAX, Ordering::Relaxed);
        assert_eq!(read(), None);
        area.store_u16(at, 5, Ordering::Relaxed);
        assert_eq!(read().as_deref(), Some(&b"third"[..]));
        let room = area_len(&spec) - trailer::BYTES + 16;
        for hostile in [0, 1, 2, 3] {
            area.store_u16(room, hostile, Ordering::Relaxed);
            let old = Region::open(&spec, &file).unwrap();
            old.set_label(b"longer than there is room for");
            assert_eq!(old.label(), None);
        }
        area.store_u16(room, u16::MAX, Ordering::Relaxed);
        let error = Region::open(&spec, &file).unwrap_err();
        assert!(matches!(error, InflightError::Spec { .. }), "{error}");
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
            (queues, 0, "1472 bytes at offset 0 for 0 queues of 8"),
            (queues, 3, "it needs 1664 bytes"),
            (queues, u16::MAX, "for 65535 queues of 8"),
            (size, 0, "for 2 queues of 0"),
            (size, 16, "it needs 1728 bytes"),
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
        let more = RegionSpec { queues: 16, ..spec };
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
