//! A disk whose content is known, and requests to it; written by QEMU in turns.
#![allow(clippy::unwrap_used, clippy::panic, reason = "only of tests")]

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use block::Node;
use testkit::Rng;
use testkit::qcow2_image::{self, run};

use super::{Bench, Request, qemu_check};

const KIB: u64 = 1 << 10;
pub const SECTOR: u64 = 512;

pub fn index(at: u64) -> usize {
    usize::try_from(at).unwrap()
}

/// A disk, and what is on it.
pub struct Disk<'a> {
    pub bench: &'a Bench,
    pub node: Arc<Node>,
    pub content: &'a mut Vec<u8>,
    pub rng: &'a mut Rng,
    /// What a place begins and ends at mostly, in bytes.
    pub cluster: u64,
}

impl Disk<'_> {
    fn length(&self) -> u64 {
        self.content.len() as u64
    }

    /// A range somewhere: of whole clusters, of sectors, or of any bytes.
    fn range(&mut self) -> Range<u64> {
        let length = self.length();
        let (unit, most) = match self.rng.below(8) {
            0 => (1, 3000),
            1..=3 => (SECTOR, 40 * SECTOR),
            4..=5 => (4 * KIB, 256 * KIB),
            _ => (self.cluster, 3 * self.cluster),
        };
        let start = self.rng.below(length) / unit * unit;
        let bytes = (1 + self.rng.below(most.div_ceil(unit))) * unit;
        start..(start + bytes).min(length)
    }

    /// Some requests at once, of which none meets another; then all of the disk has what it must have.
    pub fn batch(&mut self, requests: usize) {
        let mut taken: Vec<Range<u64>> = Vec::new();
        let mut discarded = Vec::new();
        let mut batch = Vec::new();
        let before = self.content.clone();
        for _ in 0..requests {
            let range = self.range();
            if taken
                .iter()
                .any(|one| one.start < range.end && range.start < one.end)
            {
                continue;
            }
            taken.push(range.clone());
            let place = index(range.start)..index(range.end);
            batch.push(match self.rng.below(10) {
                0..=4 => {
                    let word = self.rng.next_u64().to_le_bytes();
                    let bytes = word.into_iter().cycle();
                    let data: Vec<u8> = bytes.take(place.len()).collect();
                    self.content[place].copy_from_slice(&data);
                    Request::Write {
                        at: range.start,
                        data,
                    }
                }
                5..=6 => {
                    self.content[place].fill(0);
                    let unmap = self.rng.below(2) == 0;
                    Request::Zeroes { range, unmap }
                }
                7..=8 => {
                    discarded.push(place);
                    Request::Discard { range }
                }
                _ => Request::Flush,
            });
        }
        for (number, ended) in self.bench.run(&self.node, batch.clone()).iter().enumerate() {
            assert!(ended.is_ok(), "{:?}: {ended:?}", batch[number]);
        }
        let read = self.bench.whole(&self.node);
        for place in discarded {
            // It is discarded or not, piece by piece.
            let both = before[place.clone()].iter().zip(&read[place.clone()]);
            let mut neither = both.filter(|(old, new)| old != new && **new != 0);
            assert!(neither.next().is_none(), "{place:?}");
            self.content[place.clone()].copy_from_slice(&read[place]);
        }
        is_same(&read, self.content, "what is read");
    }

    /// Longer or shorter, but never nothing.
    pub fn resize(&mut self, longest: u64) {
        let length = (1 + self.rng.below(longest / SECTOR)) * SECTOR;
        self.node.resize(length).unwrap();
        assert_eq!(self.node.driver().length(), length);
        self.content.resize(index(length), 0);
        let read = self.bench.whole(&self.node);
        is_same(&read, self.content, "what is read after a change of length");
    }
}

/// Says where the first difference is.
pub fn is_same(found: &[u8], expected: &[u8], what: &str) {
    if found == expected {
        return;
    }
    assert_eq!(found.len(), expected.len(), "{what}");
    let differs = found
        .iter()
        .zip(expected)
        .position(|(one, other)| one != other);
    if let Some(at) = differs {
        let (one, other) = (found[at], expected[at]);
        panic!("{what}: at {at:#x} is {one:#x}, and should be {other:#x}");
    }
}

/// QEMU writes to the image; what it has written is put down.
pub fn qemu_writes(path: &Path, content: &mut [u8], rng: &mut Rng) {
    let mut arguments = vec!["-fqcow2".to_owned()];
    for _ in 0..6 {
        let length = content.len() as u64;
        let start = rng.below(length / SECTOR) * SECTOR;
        let bytes = ((1 + rng.below(200)) * SECTOR).min(length - start);
        let place = index(start)..index(start + bytes);
        let byte = 1 + rng.next_u64().to_le_bytes()[0] % 250;
        let command = match rng.below(6) {
            0 => {
                content[place].fill(0);
                format!("write -q -z {start} {bytes}")
            }
            1 => {
                content[place].fill(0);
                format!("write -q -z -u {start} {bytes}")
            }
            _ => {
                content[place].fill(byte);
                format!("write -q -P {byte} {start} {bytes}")
            }
        };
        arguments.extend(["-c".to_owned(), command]);
    }
    arguments.push(path.to_str().unwrap().to_owned());
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    run("qemu-io", &arguments).unwrap();
}

/// What QEMU reads is what must be there, and it finds nothing wrong.
pub fn qemu_agrees(path: &Path, content: &[u8], what: &str) {
    qemu_check::is_clean(path, what);
    is_same(&qcow2_image::content(path).unwrap(), content, what);
}
