//! The table of breakages.

use standfast_qcow2::Image;
use standfast_qcow2::format::l1::{COPIED, OFFSET_MASK};
use standfast_qcow2::format::l2::COMPRESSED;
use standfast_qcow2::format::{Header, extension};

/// Numbers by seed (splitmix64).
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// An image that is to be broken.
pub struct Victim {
    pub bytes: Vec<u8>,
    pub random: Random,
    header: Header,
}

type Apply = fn(&mut Victim) -> Option<()>;

/// Name; why our check finds more than QEMU's, if it does; what is done. That is none where the image does not have
/// what is to be broken.
pub type Breakage = (&'static str, Option<&'static str>, Apply);

impl Victim {
    pub fn new(bytes: Vec<u8>, seed: u64) -> Self {
        let header = Image::open(&bytes).unwrap().header;
        Self {
            bytes,
            random: Random(seed),
            header,
        }
    }

    fn cluster(&self) -> u64 {
        self.header.geometry.cluster_size()
    }

    fn get(&self, at: u64) -> u64 {
        let at = usize::try_from(at).unwrap();
        u64::from_be_bytes(self.bytes[at..at + 8].try_into().unwrap())
    }

    fn put(&mut self, at: u64, value: u64) {
        self.write(at, &value.to_be_bytes());
    }

    fn put32(&mut self, at: u64, value: u32) {
        self.write(at, &value.to_be_bytes());
    }

    fn write(&mut self, at: u64, value: &[u8]) {
        let at = usize::try_from(at).unwrap();
        self.bytes[at..at + value.len()].copy_from_slice(value);
    }

    fn change(&mut self, at: u64, change: impl Fn(u64) -> u64) {
        let value = self.get(at);
        self.put(at, change(value));
    }

    /// One of them.
    fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        let all = from.len() as u64;
        let index = (all > 0).then(|| self.random.below(all))?;
        from.get(usize::try_from(index).unwrap()).copied()
    }

    /// A reserved bit of the first byte or of bits 56 to 61.
    fn reserved(&mut self) -> u64 {
        match self.random.below(2) {
            0 => 2 << self.random.below(7),
            _ => 1 << (56 + self.random.below(6)),
        }
    }

    /// Where an entry of the L1 table is that leads somewhere.
    fn l1(&mut self) -> Option<u64> {
        let used = self.l1_entries(|entry| entry & OFFSET_MASK != 0);
        self.pick(&used)
    }

    fn l1_entries(&self, want: impl Fn(u64) -> bool) -> Vec<u64> {
        let table = self.header.l1_offset.0;
        let all = (0..u64::from(self.header.l1_entries)).map(|index| table + 8 * index);
        all.filter(|at| want(self.get(*at))).collect()
    }

    /// Where an entry of an L2 table of the disk is, by its content.
    fn l2(&mut self, want: impl Fn(u64) -> bool) -> Option<u64> {
        let step = self.header.geometry.l2_entry_bytes();
        let tables = self.l1_entries(|entry| entry & OFFSET_MASK != 0);
        let mut all = Vec::new();
        for table in tables {
            let start = self.get(table) & OFFSET_MASK;
            let entries = (start..start + self.cluster()).step_by(step);
            all.extend(entries.filter(|at| want(self.get(*at))));
        }
        self.pick(&all)
    }

    fn data(&mut self) -> Option<u64> {
        self.l2(|entry| entry & COMPRESSED == 0 && entry & OFFSET_MASK != 0 && entry & 1 == 0)
    }

    fn compressed(&mut self) -> Option<u64> {
        self.l2(|entry| entry & COMPRESSED != 0)
    }

    fn extended(&self) -> Option<()> {
        self.header.geometry.extended_l2().then_some(())
    }

    fn v3(&self) -> Option<()> {
        (self.header.version == 3).then_some(())
    }

    /// An offset that is that of a cluster, and beyond the end.
    fn beyond(&mut self) -> u64 {
        let clusters = self.header.geometry.clusters_for(self.bytes.len() as u64);
        (clusters + 1 + self.random.below(1 << 20)) * self.cluster()
    }

    /// The offset of some metadata.
    fn metadata(&mut self) -> Option<u64> {
        let header = &self.header;
        let (l1, refcounts) = (header.l1_offset.0, header.refcount_table_offset.0);
        let block = self.get(refcounts);
        let l2 = self.l1()?;
        let l2 = self.get(l2) & OFFSET_MASK;
        self.pick(&[l1, refcounts, block, l2])
    }

    fn refcount_entry(&self) -> u64 {
        self.header.refcount_table_offset.0
    }

    /// Sets the refcount of a cluster that is counted by the first block. Its old one.
    fn set_refcount(&mut self, cluster: u64, new: impl Fn(u64) -> u64) -> Option<u64> {
        let geometry = self.header.geometry;
        let (table, index) = geometry.refcount_place(standfast_qcow2::format::HostCluster(cluster));
        let block = self.get(self.refcount_entry() + 8 * table);
        let start = usize::try_from(block).unwrap();
        let block = self
            .bytes
            .get_mut(start..start + geometry.cluster_bytes())?;
        let order = geometry.refcount_order();
        let old = standfast_qcow2::format::refcount::get(block, index, order)?;
        standfast_qcow2::format::refcount::set(block, index, order, new(old)).then_some(old)
    }

    fn clusters(&self) -> u64 {
        self.header.geometry.clusters_for(self.bytes.len() as u64)
    }

    fn snapshot(&self) -> Option<u64> {
        (self.header.snapshots > 0).then_some(self.header.snapshots_offset.0)
    }

    /// Where the bitmaps extension's content is, and the directory.
    fn bitmaps(&self) -> Option<(u64, u64)> {
        let mut at = self.header.length() as u64;
        for one in &self.header.extensions {
            if one.kind == extension::BITMAPS {
                return Some((at + 8, self.get(at + 24)));
            }
            at += 8 + (one.data.len() as u64).next_multiple_of(8);
        }
        None
    }

    /// Where the table of the first bitmap is.
    fn bitmap_table(&self) -> Option<u64> {
        let (_, directory) = self.bitmaps()?;
        Some(self.get(directory))
    }
}

macro_rules! table {
    ($($name:literal $(($why:literal))? => |$v:ident| $body:block)*) => {
        pub const TABLE: &[Breakage] = &[$((
            $name,
            { #[allow(unused_assignments, unused_mut)] { let mut why: Option<&'static str> = None; $(why = Some($why);)? why } },
            |$v: &mut Victim| { $body Some(()) },
        )),*];
    };
}

table! {
    "header: magic" => |v| { v.put32(0, 0x5146_49fc); }
    "header: version" => |v| { v.put32(4, 4); }
    "header: clusters too small" => |v| { v.put32(20, 8); }
    "header: clusters too large" => |v| { v.put32(20, 22); }
    "header: a disk that L1 does not cover" => |v| { v.change(24, |size| size << 24); }
    "header: encryption that is not known" => |v| { v.put32(32, 3); }
    "header: no L1 table" => |v| { v.put32(36, 0); }
    "header: L1 table too long" => |v| { v.put32(36, 0x0080_0000); }
    "header: L1 table between two clusters" => |v| { v.change(40, |at| at + 256); }
    "header: L1 table beyond the end" => |v| { let at = v.beyond(); v.put(40, at); }
    "header: L1 table is other metadata" => |v| { let at = v.metadata()?; v.put(40, at); }
    "header: L1 table over what is behind it" => |v| {
        let behind = v.clusters() - v.header.l1_offset.0 / v.cluster();
        let entries = behind.min(4) * v.cluster() / 8;
        v.put32(36, u32::try_from(entries).unwrap());
    }
    "header: refcount table between two clusters" => |v| { v.change(48, |at| at + 256); }
    "header: refcount table beyond the end" => |v| { let at = v.beyond(); v.put(48, at); }
    "header: refcount table too long" => |v| { v.put32(56, 0x0800_0000); }
    "header: one refcount table cluster more" => |v| { v.put32(56, v.header.refcount_table_clusters + 1); }
    "header: snapshots that are not there" => |v| { v.snapshot()?; v.put32(60, 5); }
    "header: too many snapshots" => |v| { v.put32(60, 65537); }
    "header: no snapshots" => |v| { v.snapshot()?; v.put32(60, 0); }
    "header: snapshot table between two clusters" => |v| { v.snapshot()?; v.change(64, |at| at + 8); }
    "header: snapshot table beyond the end" => |v| { v.snapshot()?; let at = v.beyond(); v.put(64, at); }
    "header: incompatible bit" => |v| { v.v3()?; let bit = 5 + v.random.below(59); v.change(72, |field| field | 1 << bit); }
    "header: compression bit" => |v| { v.v3()?; v.change(72, |field| field ^ 8); }
    "header: refcount order" => |v| { v.v3()?; v.put32(96, 7); }
    "header: length" => |v| { v.v3()?; v.put32(100, 100); }
    "header: length beyond the cluster" => |v| { v.v3()?; let length = u32::try_from(v.cluster()).unwrap() + 8; v.put32(100, length); }
    "header: extension too long" => |v| { let at = v.header.length() as u64; v.put32(at, 0x1234); v.put32(at + 4, 0x0010_0000); }
    "header: backing file's name too long" => |v| { v.put(8, 0x100); v.put32(16, 1024); }
    "header: backing file's name beyond the cluster" => |v| { let at = v.cluster() - 1; v.put(8, at); v.put32(16, 100); }
    "header: bitmaps are not valid" => |v| { v.bitmaps()?; v.change(88, |field| field & !1); }
    "header: bitmaps, but no extension" ("QEMU drops the bit in silence") => |v| { v.v3()?; v.bitmaps().is_none().then_some(())?; v.change(88, |field| field | 1); }
    "header: unknown autoclear bit" => |v| { v.v3()?; v.change(88, |field| field | 1 << 40); }
    "header: dirty" => |v| { v.v3()?; v.change(72, |field| field | 1); }
    "header: corrupt" => |v| { v.v3()?; v.change(72, |field| field | 2); }

    "L1: reserved bit" => |v| { let at = v.l1()?; let bit = v.reserved(); v.change(at, |entry| entry | bit); }
    "L1: between two clusters" => |v| { let at = v.l1()?; (v.cluster() > 512).then_some(())?; v.change(at, |entry| entry + 512); }
    "L1: beyond the end" => |v| { let at = v.l1()?; let to = v.beyond(); v.put(at, to | COPIED); }
    "L1: the flag is missing" => |v| { let at = v.l1()?; v.change(at, |entry| entry ^ COPIED); }
    "L1: a flag and no table" ("QEMU does not look at entries without a table") => |v| { let free = v.l1_entries(|entry| entry == 0); let at = v.pick(&free)?; v.put(at, COPIED); }
    "L1: no table any more" => |v| { let at = v.l1()?; v.put(at, 0); }
    "L1: metadata" => |v| { let at = v.l1()?; let to = v.metadata()?; v.put(at, to | COPIED); }
    "L1: guest data" => |v| { let at = v.l1()?; let data = v.data()?; let to = v.get(data) & OFFSET_MASK; v.put(at, to | COPIED); }
    "L1: a table of another entry" => |v| { let (one, other) = (v.l1()?, v.l1()?); (one != other).then_some(())?; let to = v.get(other); v.put(one, to); }

    "L2: reserved bit" => |v| { let at = v.data()?; let bit = v.reserved(); v.change(at, |entry| entry | bit); }
    "L2: between two clusters" => |v| { let at = v.data()?; (v.cluster() > 512).then_some(())?; v.change(at, |entry| entry | 512); }
    "L2: beyond the end" => |v| { let at = v.data()?; let to = v.beyond(); v.put(at, to | COPIED); }
    "L2: the flag is wrong" => |v| { let at = v.data()?; v.change(at, |entry| entry ^ COPIED); }
    "L2: a flag and no cluster" ("QEMU does not look at entries without a cluster") => |v| { let at = v.l2(|entry| entry == 0)?; v.put(at, COPIED); }
    "L2: no cluster any more" => |v| { let at = v.data()?; v.put(at, 0); if v.header.geometry.extended_l2() { v.put(at + 8, 0); } }
    "L2: metadata" => |v| { let at = v.data()?; let to = v.metadata()?; v.put(at, to | COPIED); }
    "L2: the header" ("QEMU does not look at entries without a cluster") => |v| { let at = v.data()?; v.change(at, |entry| entry & !OFFSET_MASK); }
    "L2: the cluster of another entry" => |v| { let (one, other) = (v.data()?, v.data()?); (one != other).then_some(())?; let to = v.get(other); v.put(one, to); }
    "L2: metadata, and its refcount says so" ("a cluster is one thing only, whatever its refcount says") => |v| {
        let (at, to) = (v.data()?, v.metadata()?);
        let old = v.get(at) & OFFSET_MASK;
        let cluster = v.cluster();
        v.set_refcount(old / cluster, |count| count.saturating_sub(1))?;
        v.set_refcount(to / cluster, |count| count + 1)?;
        v.put(at, to);
    }
    "L2: zero flag in version 2" ("QEMU finds it when it reads the cluster") => |v| { v.v3().is_none().then_some(())?; let at = v.data()?; v.change(at, |entry| entry | 1); }
    "L2: zero flag with subclusters" ("QEMU ignores the bit") => |v| { v.extended()?; let at = v.data()?; v.change(at, |entry| entry | 1); }
    "L2: a preallocation between two clusters" => |v| { v.v3()?; v.extended().is_none().then_some(())?; (v.cluster() > 512).then_some(())?; let at = v.data()?; v.change(at, |entry| entry | 1 | 512); }
    "L2: subclusters that are both" => |v| { v.extended()?; let at = v.data()?; let bit = v.random.below(32); v.change(at + 8, |bits| bits | 1 << bit | 1 << (bit + 32)); }
    "L2: subclusters without a cluster" ("QEMU finds it when it reads the cluster") => |v| { v.extended()?; let at = v.l2(|entry| entry == 0)?; let bit = v.random.below(32); v.put(at + 8, 1 << bit); }
    "L2: compressed, with the flag" => |v| { let at = v.compressed()?; v.change(at, |entry| entry | COPIED); }
    "L2: compressed, beyond the end" => |v| { let at = v.compressed()?; let to = v.beyond(); v.put(at, to | COMPRESSED); }
    "L2: compressed, in metadata" => |v| { let at = v.compressed()?; let to = v.metadata()?; v.put(at, to | COMPRESSED); }
    "L2: compressed, longer" => |v| { let at = v.compressed()?; let bit = 62 - (v.header.geometry.cluster_bits() - 8); v.change(at, |entry| entry | 7 << bit); }
    "L2: compressed, with subclusters" ("QEMU does not count what it refers to, and calls it leaked") => |v| { v.extended()?; let at = v.compressed()?; let bit = v.random.below(64); v.put(at + 8, 1 << bit); }

    "refcount table: reserved bit" ("QEMU does not count the block, and calls it leaked") => |v| { let at = v.refcount_entry(); let bit = v.random.below(9); v.change(at, |entry| entry | 1 << bit); }
    "refcount table: between two clusters" => |v| { let at = v.refcount_entry(); (v.cluster() > 512).then_some(())?; v.change(at, |entry| entry + 512); }
    "refcount table: beyond the end" => |v| { let at = v.refcount_entry(); let to = v.beyond(); v.put(at, to); }
    "refcount table: no block" => |v| { let at = v.refcount_entry(); v.put(at, 0); }
    "refcount table: a block twice" => |v| { let at = v.refcount_entry(); let to = v.get(at); v.put(at + 8, to); }
    "refcount table: guest data" => |v| { let at = v.refcount_entry(); let data = v.data()?; let to = v.get(data) & OFFSET_MASK; v.put(at, to); }
    "refcount table: other metadata" => |v| { let at = v.refcount_entry(); let to = v.header.l1_offset.0; v.put(at, to); }
    "refcount: too high" => |v| { let cluster = v.random.below(v.clusters()); v.set_refcount(cluster, |count| count + 1)?; }
    "refcount: too low" => |v| { let cluster = v.random.below(v.clusters()); let old = v.set_refcount(cluster, |count| count.saturating_sub(1))?; (old > 0).then_some(())?; }
    "refcount: some too low, some too high" => |v| { for _ in 0..8 { let cluster = v.random.below(v.clusters()); let count = v.random.below(2); v.set_refcount(cluster, |_| count)?; } }
    "refcount: a leak behind the others" => |v| { let end = v.clusters() * v.cluster() + v.cluster(); let cluster = v.clusters(); v.set_refcount(cluster, |_| 1)?; v.bytes.resize(usize::try_from(end).unwrap(), 0); }
    "refcount: of a cluster beyond the end" ("clusters beyond the end with a refcount are never used, either") => |v| { let cluster = v.clusters() + 1 + v.random.below(8); let old = v.set_refcount(cluster, |_| 1)?; (old == 0).then_some(())?; }

    "snapshot: L1 table between two clusters" => |v| { let at = v.snapshot()?; v.change(at, |to| to + 8); }
    "snapshot: L1 table beyond the end" => |v| { let at = v.snapshot()?; let to = v.beyond(); v.put(at, to); }
    "snapshot: the disk's L1 table" => |v| { let at = v.snapshot()?; let to = v.header.l1_offset.0; v.put(at, to); }
    "snapshot: L1 table too long" => |v| { let at = v.snapshot()?; v.put32(at + 8, 0x0080_0000); }
    "snapshot: no extra data" => |v| { let at = v.snapshot()?; v.put32(at + 36, 0); }
    "snapshot: a very long name" => |v| { let at = v.snapshot()?; v.write(at + 14, &[0xff, 0xff]); }
    "snapshot: an L2 table is gone" => |v| { let at = v.snapshot()?; let l1 = v.get(at); v.put(l1, 0); }
    "snapshot: an L2 table beyond the end" => |v| { let at = v.snapshot()?; let l1 = v.get(at); let to = v.beyond(); v.put(l1, to); }
    "snapshot: an L2 entry that is not the disk's" => |v| { let at = v.snapshot()?; let l1 = v.get(at); let l2 = v.get(l1) & OFFSET_MASK; let to = v.beyond(); v.put(l2, to); }

    "bitmaps: directory beyond the end" => |v| { let (at, _) = v.bitmaps()?; let to = v.beyond(); v.put(at + 16, to); }
    "bitmaps: directory longer" => |v| { let (at, _) = v.bitmaps()?; v.change(at + 8, |bytes| bytes + 8); }
    "bitmaps: one more than there are" => |v| { let (at, _) = v.bitmaps()?; v.put32(at, 3); }
    "bitmaps: reserved field" => |v| { let (at, _) = v.bitmaps()?; v.put32(at + 4, 1); }
    "bitmaps: flags" => |v| { let (_, at) = v.bitmaps()?; v.put32(at + 12, 0x80); }
    "bitmaps: type" => |v| { let (_, at) = v.bitmaps()?; v.write(at + 16, &[0]); }
    "bitmaps: granularity" => |v| { let (_, at) = v.bitmaps()?; v.write(at + 17, &[70]); }
    "bitmaps: no name" => |v| { let (_, at) = v.bitmaps()?; v.write(at + 18, &[0, 0]); }
    "bitmaps: table between two clusters" => |v| { let (_, at) = v.bitmaps()?; v.change(at, |to| to + 8); }
    "bitmaps: table beyond the end" => |v| { let (_, at) = v.bitmaps()?; let to = v.beyond(); v.put(at, to); }
    "bitmaps: table longer" => |v| { let (_, at) = v.bitmaps()?; v.put32(at + 8, 3); }
    "bitmaps: reserved bit in a table" => |v| { let at = v.bitmap_table()?; let bit = v.reserved(); v.change(at, |entry| entry | bit); }
    "bitmaps: bits beyond the end" => |v| { let at = v.bitmap_table()?; let to = v.beyond(); v.put(at, to); }
    "bitmaps: bits in metadata" => |v| { let at = v.bitmap_table()?; let to = v.metadata()?; v.put(at, to); }

    "file: the last cluster is gone" => |v| { let end = v.clusters() - 1; let end = usize::try_from(end * v.cluster()).unwrap(); v.bytes.truncate(end); }
    "file: the last half is gone" => |v| { let half = v.bytes.len() / 2; v.bytes.truncate(half); }
    "file: only the header" => |v| { let end = usize::try_from(v.cluster()).unwrap(); v.bytes.truncate(end); }
    "file: the header is cut" => |v| { v.bytes.truncate(60); }
}
