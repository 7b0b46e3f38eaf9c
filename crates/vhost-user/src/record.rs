//! What is remembered about a request: the buffers of its chain, in guest addresses.

use std::ops::Range;

use crate::buffer::Buffer;
use crate::chain::{ChainError, GuestBytes, Table, walk, words};

/// What [`Record::take_front`] takes, in bytes.
pub const FRONT_BYTES: u32 = 16;

/// Bytes of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Totals {
    /// What the device may read.
    pub readable: u64,
    /// What the device may write.
    pub writable: u64,
}

/// The buffers of a request, in guest addresses. Kept and used again, so that a slot allocates only for a
/// chain longer than those before.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// In the order of the chain: first those to be read.
    buffers: Vec<Buffer>,
    /// Which of them still hold something to be read.
    readable: Range<usize>,
    /// Which of them still have room to be written to.
    writable: Range<usize>,
}

impl Record {
    /// What the device may read, and was not taken off.
    #[inline]
    pub fn readable(&self) -> &[Buffer] {
        self.buffers.get(self.readable.clone()).unwrap_or_default()
    }

    /// What the device may write, and was not taken off.
    #[inline]
    pub fn writable(&self) -> &[Buffer] {
        self.buffers.get(self.writable.clone()).unwrap_or_default()
    }

    /// Takes in the buffers of the chain that begins at `head`. After an error what is here means
    /// nothing.
    ///
    /// # Errors
    /// The descriptors make no chain.
    #[inline]
    pub fn read_chain<M: GuestBytes>(
        &mut self,
        memory: &M,
        table: Table,
        head: u16,
    ) -> Result<Totals, ChainError> {
        self.buffers.clear();
        let (mut readable, mut writable, mut split) = (0, 0, 0);
        walk(memory, table, head, |buffer, writes| {
            self.buffers.push(buffer);
            if writes {
                writable += u64::from(buffer.len);
            } else {
                readable += u64::from(buffer.len);
                split = self.buffers.len();
            }
        })?;
        (self.readable, self.writable) = (0..split, split..self.buffers.len());
        Ok(Totals { readable, writable })
    }

    /// Cuts the last writable byte off; returns its address. None if there is no such byte.
    #[inline]
    pub fn take_last(&mut self) -> Option<u64> {
        if self.writable.is_empty() {
            return None;
        }
        let last = self.buffers.get_mut(self.writable.end - 1)?;
        last.len -= 1;
        let address = last.address.saturating_add(u64::from(last.len));
        if last.len == 0 {
            self.writable.end -= 1;
        }
        Some(address)
    }

    /// Reads and cuts off the first 16 readable bytes: a header or a segment, as two little-endian
    /// numbers. None if there are fewer, or they are not in guest memory.
    #[inline(always)]
    pub fn take_front<M: GuestBytes>(&mut self, memory: &M) -> Option<[u64; 2]> {
        let first = self.first_readable()?;
        let Some(left) = first.len.checked_sub(FRONT_BYTES) else {
            return self.take_scattered_front(memory);
        };
        let front = memory.load(first.address)?;
        first.address = first.address.saturating_add(FRONT_BYTES.into());
        first.len = left;
        if left == 0 {
            self.readable.start += 1;
        }
        Some(front)
    }

    /// [`Record::take_front`] of more buffers than one, byte by byte.
    #[cold]
    fn take_scattered_front<M: GuestBytes>(&mut self, memory: &M) -> Option<[u64; 2]> {
        let mut front = [0; 16];
        for byte in &mut front {
            let first = self.first_readable()?;
            *byte = memory.load_byte(first.address)?;
            first.address = first.address.saturating_add(1);
            first.len -= 1;
            if first.len == 0 {
                self.readable.start += 1;
            }
        }
        Some(words(front))
    }

    #[inline]
    fn first_readable(&mut self) -> Option<&mut Buffer> {
        if self.readable.is_empty() {
            return None;
        }
        self.buffers.get_mut(self.readable.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::reference::{Fickle, MAIN, Raw, view, write};
    use testkit::Rng;

    fn bytes(buffers: &[Buffer]) -> Vec<u64> {
        buffers
            .iter()
            .flat_map(|buffer| buffer.address..buffer.address + u64::from(buffer.len))
            .collect()
    }

    /// Header, segment and status byte may be split over buffers, or lie in one with the data.
    #[test]
    fn front_and_last_byte_of_any_layout() {
        let (view, mut rng, mut record) = (view(), Rng::new(2), Record::default());
        let table = Table {
            address: MAIN,
            size: 16,
            indirect: false,
        };
        for _ in 0..2000 {
            // From one region into the next, and at any alignment.
            let mut at = 0x2000 - rng.below(64);
            let (mut all, mut raws) = ([Vec::new(), Vec::new()], Vec::<Raw>::new());
            let (readable, count) = (rng.below(6), 1 + rng.below(9));
            for index in 0..count {
                let longest = [2, 20, 40][usize::try_from(rng.below(3)).unwrap()];
                let len = rng.below(longest);
                let writes = u16::from(index >= readable);
                let next = u16::try_from(index + 1).unwrap();
                let more = u16::from(index + 1 < count);
                raws.push((at, u32::try_from(len).unwrap(), more | (writes << 1), next));
                all[usize::from(writes)].extend(at..at + len);
                at += len + rng.below(2);
            }
            write(&view, MAIN, &raws);
            let content = rng.next_u64().to_le_bytes();
            let content = |at: u64| content[usize::try_from(at % 8).unwrap()] ^ at.to_le_bytes()[0];
            for at in all.iter().flatten() {
                view.store(*at, content(*at)).unwrap();
            }
            let [mut readable, mut writable] = all;
            let memory = Fickle(&view);
            let totals = record.read_chain(&memory, table, 0).unwrap();
            assert_eq!(totals.readable, readable.len() as u64);
            assert_eq!(totals.writable, writable.len() as u64);
            assert_eq!(record.take_last(), writable.pop());
            assert_eq!(bytes(record.writable()), writable);
            for _front in 0..3 {
                let rest = readable.split_off(readable.len().min(16));
                let front: Vec<_> = readable.iter().map(|&at| content(at)).collect();
                let found = record.take_front(&memory);
                let Ok(front) = <[u8; 16]>::try_from(front) else {
                    assert_eq!(found, None);
                    break;
                };
                assert_eq!(found, Some(words(front)));
                assert_eq!(bytes(record.readable()), rest);
                readable = rest;
            }
        }
    }
}
