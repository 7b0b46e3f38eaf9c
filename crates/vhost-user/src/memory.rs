//! The client's memory table: guest memory, mapped.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};

use crate::shared::{Area, MapError, Mapping, Origin};
use crate::sigbus;

/// Gaps that are remembered; older ones are taken for final.
const GAPS_MAX: usize = 509;

/// One region as the client describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionSpec {
    /// First guest physical address.
    pub guest_address: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// Where the client has it mapped: ring addresses are given in these terms.
    pub user_address: u64,
    /// Where it begins in its file.
    pub file_offset: u64,
}

/// Why a memory table is refused.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// A region that cannot be mapped.
    #[error("memory region of {bytes} bytes at guest address {guest_address:#x}: {source}")]
    Map {
        /// First guest physical address.
        guest_address: u64,
        /// Length in bytes.
        bytes: u64,
        /// Why.
        source: MapError,
    },
    /// A region whose address range makes no sense.
    #[error(
        "memory region of {bytes} bytes at guest address {guest_address:#x}, file offset \
         {file_offset:#x}: it wraps around or is not aligned to pages"
    )]
    Range {
        /// First guest physical address.
        guest_address: u64,
        /// Length in bytes.
        bytes: u64,
        /// Where it begins in its file.
        file_offset: u64,
    },
    /// A region to be removed that is not there.
    #[error("memory region of {bytes} bytes at guest address {guest_address:#x}: there is none")]
    NoRegion {
        /// First guest physical address.
        guest_address: u64,
        /// Length in bytes.
        bytes: u64,
    },
    /// Two regions share guest addresses, or there is none.
    #[error("the memory table has no regions, or regions that overlap")]
    Overlap,
}

/// A buffer that is not in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotMapped;

/// A region and where it is mapped.
#[derive(Clone, Debug)]
struct Part {
    spec: RegionSpec,
    mapping: Arc<Mapping>,
}

impl Part {
    fn new(spec: RegionSpec, file: &File) -> Result<Self, MemoryError> {
        if spec.guest_address.checked_add(spec.bytes).is_none()
            || spec.user_address.checked_add(spec.bytes).is_none()
        {
            return Err(spec.range());
        }
        let mapping = Mapping::of_file(file.as_fd(), spec.file_offset, spec.bytes);
        let mapping = mapping.map_err(|source| MemoryError::Map {
            guest_address: spec.guest_address,
            bytes: spec.bytes,
            source,
        })?;
        Ok(Self { spec, mapping })
    }
}

impl RegionSpec {
    fn range(&self) -> MemoryError {
        MemoryError::Range {
            guest_address: self.guest_address,
            bytes: self.bytes,
            file_offset: self.file_offset,
        }
    }

    /// Whether it is this region that is meant: where it begins in its file does not matter.
    fn is_same(&self, other: &Self) -> bool {
        let key = |spec: &Self| (spec.guest_address, spec.bytes, spec.user_address);
        key(self) == key(other)
    }
}

/// Guest memory as one memory table describes it. Mapped until the last user lets go of it, so
/// requests in flight keep the table they were translated with.
#[derive(Debug)]
pub struct Memory {
    table: GuestMemoryMmap,
    /// What `table` points into.
    parts: Vec<Part>,
    /// Guest addresses of regions that were removed and may come back.
    gaps: Vec<Range<u64>>,
    /// Whether a table that this one has replaced was poisoned when its last user let go of it.
    lost: Arc<AtomicBool>,
}

impl Memory {
    /// Maps a memory table.
    ///
    /// # Errors
    /// [`MemoryError`] names the region and what is wrong with it.
    pub fn new(regions: impl IntoIterator<Item = (RegionSpec, File)>) -> Result<Self, MemoryError> {
        let parts: Result<Vec<_>, _> = regions
            .into_iter()
            .map(|(spec, file)| Part::new(spec, &file))
            .collect();
        match parts? {
            parts if parts.is_empty() => Err(MemoryError::Overlap),
            parts => Self::of_parts(parts, Vec::new(), Arc::default()),
        }
    }

    /// No memory at all, to which regions can be added.
    pub fn empty() -> Self {
        Self {
            table: GuestMemoryMmap::new(),
            parts: Vec::new(),
            gaps: Vec::new(),
            lost: Arc::default(),
        }
    }

    /// This memory and one region more.
    ///
    /// # Errors
    /// [`MemoryError`] names the region and what is wrong with it.
    pub fn with(&self, spec: RegionSpec, file: &File) -> Result<Self, MemoryError> {
        let mut parts = self.parts.clone();
        parts.push(Part::new(spec, file)?);
        let (start, end) = (spec.guest_address, spec.guest_address + spec.bytes);
        let before = (self.gaps.iter()).map(|gap| gap.start..gap.end.min(start));
        let behind = (self.gaps.iter()).map(|gap| gap.start.max(end)..gap.end);
        let gaps = before.chain(behind).filter(|gap| !gap.is_empty()).collect();
        Self::of_parts(parts, gaps, Arc::clone(&self.lost))
    }

    /// This memory without one of its regions, which may come back. The file offset does not count.
    ///
    /// # Errors
    /// [`MemoryError::NoRegion`] if it has no such region.
    pub fn without(&self, spec: &RegionSpec) -> Result<Self, MemoryError> {
        let mut parts = self.parts.clone();
        let at = parts.iter().position(|part| part.spec.is_same(spec));
        let at = at.ok_or(MemoryError::NoRegion {
            guest_address: spec.guest_address,
            bytes: spec.bytes,
        })?;
        parts.remove(at);
        let mut gaps = self.gaps.clone();
        if gaps.len() == GAPS_MAX {
            gaps.remove(0);
        }
        gaps.push(spec.guest_address..spec.guest_address + spec.bytes);
        Self::of_parts(parts, gaps, Arc::clone(&self.lost))
    }

    /// This memory, as it is going to stay: what was removed does not come back.
    ///
    /// # Errors
    /// As [`Self::with`]; none is expected, because all of it was accepted before.
    pub fn settled(&self) -> Result<Self, MemoryError> {
        Self::of_parts(self.parts.clone(), Vec::new(), Arc::clone(&self.lost))
    }

    /// Whether something that was removed may come back: a region is moved or resized by removing and
    /// adding it.
    #[inline]
    pub fn is_moving(&self) -> bool {
        !self.gaps.is_empty()
    }

    /// This memory in place of the client's former one, which requests in flight still use.
    #[must_use]
    pub fn replacing(mut self, former: &Self) -> Self {
        self.lost = Arc::clone(&former.lost);
        self
    }

    fn of_parts(
        mut parts: Vec<Part>,
        gaps: Vec<Range<u64>>,
        lost: Arc<AtomicBool>,
    ) -> Result<Self, MemoryError> {
        if parts.is_empty() {
            let mut empty = Self::empty();
            (empty.gaps, empty.lost) = (gaps, lost);
            return Ok(empty);
        }
        parts.sort_by_key(|part| part.spec.guest_address);
        let mut table = Vec::with_capacity(parts.len());
        for Part { spec, mapping } in &parts {
            // SAFETY: `parts` keeps the memory mapped as long as the table exists, and the table
            // is not handed out by value.
            let builder = unsafe {
                MmapRegionBuilder::new(mapping.len())
                    .with_raw_mmap_pointer(mapping.pointer().as_ptr())
            };
            let region = builder
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
                .build()
                .map_err(|_| spec.range())?;
            let region = GuestRegionMmap::new(region, GuestAddress(spec.guest_address));
            table.push(region.ok_or_else(|| spec.range())?);
        }
        Ok(Self {
            table: GuestMemoryMmap::from_regions(table).map_err(|_| MemoryError::Overlap)?,
            parts,
            gaps,
            lost,
        })
    }

    /// Number of regions.
    pub fn regions(&self) -> usize {
        self.parts.len()
    }

    /// Checked access by guest address.
    pub fn table(&self) -> &GuestMemoryMmap {
        &self.table
    }

    /// Whether the client has taken memory away that was accessed here, or in a table that this one
    /// has replaced and that nobody uses any more.
    #[inline]
    pub fn is_poisoned(&self) -> bool {
        sigbus::any_poisoned()
            && (self.parts.iter().any(|part| part.mapping.is_poisoned())
                || self.lost.load(Ordering::Acquire))
    }

    /// Whether the `len` bytes at a guest address are the same bytes of the same files in both.
    pub fn is_same_at(&self, other: &Self, mut guest_address: u64, len: u64) -> bool {
        let mut left = len;
        while left > 0 {
            let (Some((here, mapped)), Some((there, also))) =
                (self.origin(guest_address), other.origin(guest_address))
            else {
                return false;
            };
            if here != there {
                return false;
            }
            let step = left.min(mapped).min(also);
            left -= step;
            // What is left is mapped behind it, or the next round says no.
            guest_address = guest_address.saturating_add(step);
        }
        true
    }

    /// Where a guest address is mapped from, and how many bytes from there on are.
    fn origin(&self, guest_address: u64) -> Option<(Origin, u64)> {
        self.parts.iter().find_map(|Part { spec, mapping }| {
            let offset = guest_address.checked_sub(spec.guest_address)?;
            let left = spec.bytes.checked_sub(offset).filter(|&left| left > 0)?;
            Some((mapping.origin().plus(offset), left))
        })
    }

    /// The guest address of what the client has mapped at `user_address`.
    pub fn guest_address(&self, user_address: u64) -> Option<u64> {
        self.guest_range(user_address, 1)
    }

    /// The guest address of the `len` bytes that the client has mapped at `user_address`, if they lie
    /// inside one region.
    pub fn guest_range(&self, user_address: u64, len: u64) -> Option<u64> {
        self.parts.iter().find_map(|Part { spec, .. }| {
            let offset = user_address.checked_sub(spec.user_address)?;
            let end = offset.checked_add(len)?;
            (end <= spec.bytes).then(|| spec.guest_address + offset)
        })
    }

    /// The `len` bytes at a guest address, which must lie inside one region.
    pub(crate) fn area(self: &Arc<Self>, guest_address: u64, len: usize) -> Option<Area> {
        let pointer = self.contiguous(guest_address, len)?;
        // SAFETY: the bytes lie inside a region, which is mapped as long as the memory exists.
        Some(unsafe { Area::new(pointer, len, Arc::clone(self)) })
    }

    fn contiguous(&self, guest_address: u64, len: usize) -> Option<NonNull<u8>> {
        let region = self.table.find_region(GuestAddress(guest_address))?;
        let offset = usize::try_from(guest_address - region.start_addr().0).ok()?;
        if len > region.size() - offset {
            return None;
        }
        // SAFETY: the offset lies inside the region's mapping.
        NonNull::new(unsafe { region.as_ptr().add(offset) })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.is_poisoned() {
            self.lost.store(true, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::sealed_memfd;
    use std::sync::atomic::Ordering;

    fn spec(guest_address: u64, bytes: u64, user_address: u64, file_offset: u64) -> RegionSpec {
        RegionSpec {
            guest_address,
            bytes,
            user_address,
            file_offset,
        }
    }

    fn file(bytes: u64) -> File {
        File::from(sealed_memfd("test", bytes).unwrap())
    }

    #[test]
    fn addresses_of_the_client_and_areas() {
        let memory = Arc::new(
            Memory::new([
                (spec(0x2000, 0x1000, 0x9000, 0), file(0x1000)),
                (spec(0x1000, 0x1000, 0x5000, 0x1000), file(0x2000)),
            ])
            .unwrap(),
        );
        assert_eq!(memory.guest_address(0x5010), Some(0x1010));
        assert_eq!(memory.guest_address(0x9fff), Some(0x2fff));
        assert_eq!(memory.guest_address(0x6000), None);
        assert!(memory.area(0x1f00, 0x101).is_none());
        let area = memory.area(0x2000, 8).unwrap();
        area.store_u64(0, 7, Ordering::Relaxed);
        drop(memory);
        assert_eq!(area.load_u64(0, Ordering::Relaxed), 7);
    }

    #[test]
    fn regions_come_and_go() {
        let low = spec(0x1000, 0x1000, 0x5000, 0);
        let high = spec(0x2000, 0x1000, 0x9000, 0);
        let memory = Memory::empty().with(high, &file(0x1000)).unwrap();
        let both = memory.with(low, &file(0x1000)).unwrap();
        assert_eq!(both.regions(), 2);
        assert_eq!(both.guest_address(0x5010), Some(0x1010));
        assert!(matches!(
            both.with(spec(0x1800, 0x1000, 0, 0), &file(0x1000)),
            Err(MemoryError::Overlap)
        ));
        for other in [
            spec(0x1000, 0x800, 0x5000, 0),
            spec(0x1000, 0x1000, 0x6000, 0),
            spec(0x3000, 0x1000, 0x5000, 0),
        ] {
            assert!(matches!(
                both.without(&other),
                Err(MemoryError::NoRegion { .. })
            ));
        }
        let moved = RegionSpec {
            file_offset: 0x7000,
            ..low
        };
        let one = both.without(&moved).unwrap();
        assert_eq!(one.guest_address(0x5010), None);
        // What has been mapped before stays so.
        assert!(both.contiguous(0x1000, 1).is_some() && one.contiguous(0x1000, 1).is_none());
        assert!(one.is_moving() && !both.is_moving());
        assert!(!one.settled().unwrap().is_moving());
        let back = |first, bytes| one.with(spec(first, bytes, 0x5000, 0), &file(0x1000));
        assert!(!back(0x1000, 0x1000).unwrap().is_moving());
        // The rest may come in pieces.
        for (first, bytes, rest) in [(0x1000, 0x800, 0x1800), (0x1800, 0x800, 0x1000)] {
            let part = back(first, bytes).unwrap();
            assert!(part.is_moving());
            let rest = spec(rest, 0x800, 0x7000, 0);
            assert!(!part.with(rest, &file(0x1000)).unwrap().is_moving());
        }
        assert!(back(0x8000, 0x1000).unwrap().is_moving());
        let none = one.without(&high).unwrap();
        assert!(none.is_moving() && !none.settled().unwrap().is_moving());
        assert_eq!(none.regions(), 0);
        assert!(none.contiguous(0x2000, 1).is_none());
    }

    #[test]
    fn the_same_bytes_of_the_same_files() {
        let (one, two) = (file(0x4000), file(0x4000));
        let clone = |file: &File| file.try_clone().unwrap();
        let whole = Memory::new([(spec(0x1000, 0x4000, 0, 0), clone(&one))]).unwrap();
        // The first two pages in pieces, the third from elsewhere, the fourth not at all.
        let pieces = Memory::new([
            (spec(0x1000, 0x1000, 0, 0), clone(&one)),
            (spec(0x2000, 0x1000, 0x9000, 0x1000), one),
            (spec(0x3000, 0x1000, 0x5000, 0x2000), two),
        ])
        .unwrap();
        for (at, len, same) in [
            (0x1000, 0x2000, true),
            (0x1ff0, 0x20, true),
            (0x2ff0, 0x11, false),
            (0x3000, 1, false),
            (0x3fff, 2, false),
            (0x4000, 1, false),
            (0, 1, false),
            (u64::MAX, 1, false),
            (0x4000, 0, true),
        ] {
            assert_eq!(whole.is_same_at(&pieces, at, len), same, "{at:#x}");
            assert_eq!(pieces.is_same_at(&whole, at, len), same, "{at:#x}");
        }
    }

    /// Requests in flight go on in the table they began with; what they find there counts.
    #[test]
    fn a_poisoned_table_tells_those_that_replace_it() {
        let truncated = |file: &File| rustix::fs::ftruncate(file, 0).unwrap();
        let shared = |bytes| {
            let flags = rustix::fs::MemfdFlags::CLOEXEC;
            let file = File::from(rustix::fs::memfd_create("test", flags).unwrap());
            file.set_len(bytes).unwrap();
            file
        };
        for by_slot in [false, true] {
            let lost = shared(0x1000);
            let former = Memory::new([(spec(0, 0x1000, 0, 0), lost.try_clone().unwrap())]).unwrap();
            let former = Arc::new(former);
            let area = former.area(0, 0x1000).unwrap();
            let current = if by_slot {
                former.without(&spec(0, 0x1000, 0, 0)).unwrap()
            } else {
                let kept = spec(0x1_0000, 0x1000, 0, 0);
                (Memory::new([(kept, shared(0x1000))]).unwrap()).replacing(&former)
            };
            let next = current
                .with(spec(0x2_0000, 0x1000, 0x2_0000, 0), &shared(0x1000))
                .unwrap();
            truncated(&lost);
            area.store_u8(0, 1, Ordering::Relaxed);
            assert!(former.is_poisoned() && !current.is_poisoned() && !next.is_poisoned());
            drop((area, former));
            assert!(current.is_poisoned() && next.is_poisoned());
        }
        let stranger = Memory::new([(spec(0, 0x1000, 0, 0), shared(0x1000))]).unwrap();
        assert!(!stranger.is_poisoned());
    }

    #[test]
    fn nonsense_is_refused() {
        let refused = |regions: Vec<(RegionSpec, File)>| Memory::new(regions).unwrap_err();
        assert!(matches!(refused(vec![]), MemoryError::Overlap));
        let overlap = vec![
            (spec(0, 0x2000, 0, 0), file(0x2000)),
            (spec(0x1000, 0x1000, 0x10000, 0), file(0x1000)),
        ];
        assert!(matches!(refused(overlap), MemoryError::Overlap));
        let short = refused(vec![(spec(0x1000, 0x2000, 0, 0), file(0x1000))]);
        assert_eq!(
            short.to_string(),
            "memory region of 8192 bytes at guest address 0x1000: the file has 4096 bytes, 8192 \
             are needed; the front end must make it larger"
        );
        for wild in [
            spec(u64::MAX, 0x1000, 0, 0),
            spec(0, 0x1000, u64::MAX, 0),
            spec(0, 0x1000, 0, 8),
        ] {
            assert!(matches!(
                refused(vec![(wild, file(0x2000))]),
                MemoryError::Range { .. }
            ));
        }
    }
}
