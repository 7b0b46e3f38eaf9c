//! Who uses which cluster, and how often: what is counted by following all tables.

use std::collections::HashMap;

/// What a cluster is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Use {
    /// The header.
    Header = 1 << 0,
    /// The refcount table.
    RefcountTable = 1 << 1,
    /// A refcount block.
    RefcountBlock = 1 << 2,
    /// The L1 table of the disk, or of a snapshot.
    L1Table = 1 << 3,
    /// An L2 table.
    L2Table = 1 << 4,
    /// The snapshot table.
    SnapshotTable = 1 << 5,
    /// The bitmap directory.
    BitmapDirectory = 1 << 6,
    /// The table of a bitmap.
    BitmapTable = 1 << 7,
    /// The bits of a bitmap.
    BitmapData = 1 << 8,
    /// The header of the encryption.
    Encryption = 1 << 9,
    /// What the guest has written.
    Data = 1 << 10,
    /// The same, compressed.
    Compressed = 1 << 11,
}

impl Use {
    const ALL: [Self; 12] = [
        Self::Header,
        Self::RefcountTable,
        Self::RefcountBlock,
        Self::L1Table,
        Self::L2Table,
        Self::SnapshotTable,
        Self::BitmapDirectory,
        Self::BitmapTable,
        Self::BitmapData,
        Self::Encryption,
        Self::Data,
        Self::Compressed,
    ];

    /// Whether a cluster may be used so more than once: by snapshots, and by compressed data that shares it.
    const fn is_shared(self) -> bool {
        matches!(self, Self::L2Table | Self::Data | Self::Compressed)
    }

    /// In words.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Header => "the header",
            Self::RefcountTable => "the refcount table",
            Self::RefcountBlock => "a refcount block",
            Self::L1Table => "an L1 table",
            Self::L2Table => "an L2 table",
            Self::SnapshotTable => "the snapshot table",
            Self::BitmapDirectory => "the bitmap directory",
            Self::BitmapTable => "a bitmap's table",
            Self::BitmapData => "a bitmap's bits",
            Self::Encryption => "the encryption header",
            Self::Data => "guest data",
            Self::Compressed => "compressed guest data",
        }
    }
}

/// The stored refcount of the cluster is 1.
const STORED_ONE: u16 = 1 << 15;
/// The stored refcount of the cluster is not 0.
const STORED: u16 = 1 << 14;

const CHUNK_BITS: u32 = 9;
const CHUNK: usize = 1 << CHUNK_BITS;

struct Chunk {
    /// References; they stop at the greatest number.
    counts: [u32; CHUNK],
    /// [`Use`], [`STORED`] and [`STORED_ONE`].
    marks: [u16; CHUNK],
}

/// The bytes that a chunk takes with what keeps it.
const CHUNK_BYTES: u64 = size_of::<Chunk>() as u64 + 32;

/// More memory is needed than there may be.
#[derive(Clone, Copy, Debug)]
pub struct NoMemory;

/// How a cluster was used before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marked {
    /// As it may be.
    Fine,
    /// For this, so that both cannot be.
    Clash(Use),
}

/// References to the clusters of a file. What is not referenced takes no memory, as far as it lies together.
pub struct Usage {
    chunks: HashMap<u64, Box<Chunk>>,
    memory: u64,
}

impl Usage {
    /// One that takes `memory` bytes at most.
    pub fn new(memory: u64) -> Self {
        Self {
            chunks: HashMap::new(),
            memory,
        }
    }

    /// Counts `times` references to a cluster.
    pub fn mark(&mut self, cluster: u64, what: Use, times: u64) -> Result<Marked, NoMemory> {
        let times = u32::try_from(times).unwrap_or(u32::MAX);
        let (chunk, index) = self.chunk(cluster)?;
        let mut before = 0;
        if let (Some(count), Some(marks)) =
            (chunk.counts.get_mut(index), chunk.marks.get_mut(index))
        {
            before = *marks & !(STORED | STORED_ONE);
            *count = count.saturating_add(times);
            *marks |= what as u16;
        }
        let fits = before == 0 || (before == what as u16 && what.is_shared());
        let clash = Use::ALL.into_iter().find(|one| before & *one as u16 != 0);
        Ok(match (fits, clash) {
            (false, Some(other)) => Marked::Clash(other),
            _ => Marked::Fine,
        })
    }

    /// How often a cluster is referenced.
    pub fn count(&self, cluster: u64) -> u64 {
        let chunk = self.chunks.get(&(cluster >> CHUNK_BITS));
        let count = chunk.and_then(|chunk| chunk.counts.get(within(cluster)));
        count.copied().map_or(0, u64::from)
    }

    /// Whether a cluster is used for this, and for nothing else.
    pub fn is_only(&self, cluster: u64, what: Use) -> bool {
        let chunk = self.chunks.get(&(cluster >> CHUNK_BITS));
        let marks = chunk.and_then(|chunk| chunk.marks.get(within(cluster)));
        let uses = marks.map_or(0, |marks| marks & !(STORED | STORED_ONE));
        uses == what as u16 && (what.is_shared() || self.count(cluster) == 1)
    }

    /// Remembers a stored refcount, which is not 0, of a cluster that is referenced.
    pub fn set_stored(&mut self, cluster: u64, refcount: u64) {
        let chunk = self.chunks.get_mut(&(cluster >> CHUNK_BITS));
        if let Some(marks) = chunk.and_then(|chunk| chunk.marks.get_mut(within(cluster))) {
            *marks |= if refcount == 1 {
                STORED | STORED_ONE
            } else {
                STORED
            };
        }
    }

    /// Whether the stored refcount is not 0, of a cluster that is referenced.
    pub fn is_stored(&self, cluster: u64) -> bool {
        self.is_marked(cluster, STORED)
    }

    /// Whether the stored refcount is 1, of a cluster that is referenced.
    pub fn is_stored_one(&self, cluster: u64) -> bool {
        self.is_marked(cluster, STORED_ONE)
    }

    fn is_marked(&self, cluster: u64, mark: u16) -> bool {
        let chunk = self.chunks.get(&(cluster >> CHUNK_BITS));
        let marks = chunk.and_then(|chunk| chunk.marks.get(within(cluster)));
        marks.is_some_and(|marks| marks & mark != 0)
    }

    /// The clusters that are referenced, with how often, in their order.
    pub fn referenced(&self) -> impl Iterator<Item = (u64, u64)> {
        let mut numbers: Vec<_> = self.chunks.iter().collect();
        numbers.sort_unstable_by_key(|(number, _)| **number);
        numbers.into_iter().flat_map(|(number, chunk)| {
            let counts = chunk.counts.iter().zip(number << CHUNK_BITS..);
            let counts = counts.filter(|(count, _)| **count != 0);
            counts.map(|(count, cluster)| (cluster, u64::from(*count)))
        })
    }

    fn chunk(&mut self, cluster: u64) -> Result<(&mut Chunk, usize), NoMemory> {
        let number = cluster >> CHUNK_BITS;
        let all = (self.chunks.len() as u64).saturating_mul(CHUNK_BYTES);
        if all.saturating_add(CHUNK_BYTES) > self.memory && !self.chunks.contains_key(&number) {
            return Err(NoMemory);
        }
        let chunk = self.chunks.entry(number).or_insert_with(|| {
            Box::new(Chunk {
                counts: [0; CHUNK],
                marks: [0; CHUNK],
            })
        });
        Ok((chunk, within(cluster)))
    }
}

fn within(cluster: u64) -> usize {
    // Below the length of a chunk.
    usize::try_from(cluster & (CHUNK as u64 - 1)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_clashes() {
        let mut usage = Usage::new(1 << 20);
        assert_eq!(usage.mark(3, Use::Data, 1).unwrap(), Marked::Fine);
        assert_eq!(usage.mark(3, Use::Data, 2).unwrap(), Marked::Fine);
        let clash = usage.mark(3, Use::Compressed, 1).unwrap();
        assert_eq!(clash, Marked::Clash(Use::Data));
        assert_eq!(usage.mark(9, Use::L1Table, 1).unwrap(), Marked::Fine);
        let clash = usage.mark(9, Use::L1Table, 1).unwrap();
        assert_eq!(
            clash,
            Marked::Clash(Use::L1Table),
            "it cannot be there twice"
        );
        assert_eq!(usage.count(3), 4);
        usage.mark(10, Use::L1Table, 1).unwrap();
        usage.mark(11, Use::L2Table, 2).unwrap();
        assert!(usage.is_only(10, Use::L1Table) && usage.is_only(11, Use::L2Table));
        assert!(!usage.is_only(9, Use::L1Table) && !usage.is_only(3, Use::Data));
        assert!(!usage.is_only(12, Use::Data));
        assert!(!usage.is_stored_one(9));
        usage.set_stored(9, 1);
        assert!(usage.is_stored_one(9));
        let all: Vec<_> = usage.referenced().collect();
        assert_eq!(all, [(3, 4), (9, 2), (10, 1), (11, 2)]);
    }

    #[test]
    fn memory_has_a_bound() {
        let mut usage = Usage::new(2 * CHUNK_BYTES);
        for cluster in [0, CHUNK as u64, 1] {
            assert!(usage.mark(cluster, Use::Data, 1).is_ok());
        }
        assert!(usage.mark(u64::MAX, Use::Data, 1).is_err());
    }
}
