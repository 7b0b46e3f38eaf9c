//! What the toy has on the disk, and its checker.
//!
//! Clusters of four sectors. The first one is the header (in its first sector: magic, length in sectors, where the map is and
//! how many clusters it has), the second one has a byte for each cluster: how often it is used. An entry of the map, every
//! 64 bytes, is the number of a cluster, shifted, and two flags.

use standfast_sweep::{Finding, SECTOR};

/// Sectors of a cluster.
pub const CLUSTER: u64 = 4;
/// Bytes of a cluster.
pub const BYTES: u64 = CLUSTER * SECTOR as u64;
/// The cluster that counts.
pub const REFS: u64 = 1;
/// Bytes from entry to entry.
pub const ENTRY: usize = 64;
/// Entries in a cluster of the map.
pub const PER_CLUSTER: u64 = BYTES / ENTRY as u64;
/// It has a cluster.
pub const USED: u64 = 1;
/// It reads as zeroes, whether it has a cluster or not.
pub const ZERO: u64 = 2;

const MAGIC: u64 = 0x0074_6f79_0074_6f79;

/// The header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub sectors: u64,
    pub map_at: u64,
    pub map_clusters: u64,
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let word = bytes.get(at..at + 8).and_then(|word| word.try_into().ok());
    word.map_or(0, u64::from_le_bytes)
}

pub fn put_word(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

impl Header {
    /// Two sectors; only the mutant that needs both writes anything to the second one.
    pub fn bytes(&self, torn: bool) -> Vec<u8> {
        let mut bytes = vec![0; 2 * SECTOR];
        let second = if torn { SECTOR } else { 0 };
        put_word(&mut bytes, 0, MAGIC);
        put_word(&mut bytes, 8, self.map_at);
        put_word(&mut bytes, second + 16, self.sectors);
        put_word(&mut bytes, second + 24, self.map_clusters);
        bytes
    }

    pub fn of(bytes: &[u8], torn: bool) -> Result<Self, String> {
        if word(bytes, 0) != MAGIC {
            return Err("no magic".to_owned());
        }
        let second = if torn { SECTOR } else { 0 };
        Ok(Self {
            map_at: word(bytes, 8),
            sectors: word(bytes, second + 16),
            map_clusters: word(bytes, second + 24),
        })
    }

    pub fn entries(&self) -> u64 {
        self.sectors.div_ceil(CLUSTER)
    }
}

/// The host cluster of an entry.
pub fn host_of(entry: u64) -> Option<u64> {
    (entry & USED != 0).then_some(entry >> 2)
}

pub fn entry_of(map: &[u8], number: usize) -> u64 {
    word(map, number * ENTRY)
}

pub fn create(sectors: u64, torn: bool) -> Vec<u8> {
    let header = Header {
        sectors,
        map_at: 2,
        map_clusters: sectors.div_ceil(CLUSTER).div_ceil(PER_CLUSTER),
    };
    let used = 2 + header.map_clusters;
    let mut image = vec![0; (used * BYTES) as usize];
    image[..2 * SECTOR].copy_from_slice(&header.bytes(torn));
    image[BYTES as usize..][..used as usize].fill(1);
    image
}

pub fn check(disk: &[u8], torn: bool) -> Vec<Finding> {
    let header = match Header::of(disk, torn) {
        Ok(header) => header,
        Err(text) => return vec![Finding::corruption(text)],
    };
    let sane = |number: u64| number < 1 << 16;
    if !sane(header.map_at) || !sane(header.map_clusters) || !sane(header.sectors) {
        return vec![Finding::corruption(format!(
            "no header of ours: {header:?}"
        ))];
    }
    let mut counted = vec![0u8; BYTES as usize];
    let mut findings = Vec::new();
    let mut count = |cluster: u64, whose: String, findings: &mut Vec<Finding>| match counted
        .get_mut(cluster as usize)
    {
        Some(count) => *count = count.saturating_add(1),
        None => findings.push(Finding::corruption(format!(
            "{whose} is nowhere: {cluster}"
        ))),
    };
    count(0, "the header".to_owned(), &mut findings);
    count(REFS, "the counts".to_owned(), &mut findings);
    if header.map_clusters * PER_CLUSTER < header.entries() {
        findings.push(Finding::corruption("the map is too short"));
    }
    for cluster in header.map_at..header.map_at + header.map_clusters {
        count(cluster, "the map".to_owned(), &mut findings);
    }
    let begin = (header.map_at * BYTES) as usize;
    let map = disk.get(begin..begin + (header.map_clusters * BYTES) as usize);
    let Some(map) = map else {
        findings.push(Finding::corruption("the map is beyond the end"));
        return findings;
    };
    for number in 0..header.entries() as usize {
        if let Some(host) = host_of(entry_of(map, number)) {
            count(host, format!("cluster {number}"), &mut findings);
            if host >= disk.len() as u64 / BYTES {
                findings.push(Finding::corruption(format!(
                    "cluster {number} is beyond the end"
                )));
            }
        }
    }
    let refs = disk
        .get((REFS * BYTES) as usize..((REFS + 1) * BYTES) as usize)
        .unwrap_or(&[]);
    for (cluster, counted) in counted.into_iter().enumerate() {
        let says = refs.get(cluster).copied().unwrap_or(0);
        if counted > 1 {
            findings.push(Finding::corruption(format!(
                "{cluster} is used {counted} times"
            )));
        } else if says < counted {
            let text = format!("{cluster} is used {counted} times, and counted {says}");
            findings.push(Finding::corruption(text));
        } else if says > counted {
            findings.push(Finding::leak(format!("cluster {cluster}")));
        }
    }
    findings
}
