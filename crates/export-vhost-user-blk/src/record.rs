//! What is remembered about a request: the buffers of its chain, in guest addresses.

use std::ops::Range;

use crate::chain::{ChainError, GuestBytes, Table, walk, words};

/// A buffer in guest memory. Nothing is known about it until it is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Guest address.
    pub address: u64,
    /// Length in bytes, not 0.
    pub len: u32,
}

/// What [`Record::take_front`] takes, in bytes.
pub(crate) const FRONT_BYTES: u32 = 16;

/// Bytes of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Totals {
    pub readable: u64,
    pub writable: u64,
}

/// What is remembered about a request besides its action, in guest addresses. Kept and used again,
/// so that a slot allocates only for a chain longer than those before.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// In the order of the chain: first those to be read.
    buffers: Vec<Buffer>,
    /// Which of them still hold something to be read.
    readable: Range<usize>,
    /// Which of them still have room to be written to.
    writable: Range<usize>,
    /// Guest address of the status byte; it was in guest memory when the request was parsed.
    pub status_address: u64,
    /// What the used element says: bytes the device may write, status included.
    pub written: u32,
}

impl Record {
    /// What the device may read, behind the header.
    pub fn readable(&self) -> &[Buffer] {
        self.buffers.get(self.readable.clone()).unwrap_or_default()
    }

    /// What the device may write, before the status byte.
    pub fn writable(&self) -> &[Buffer] {
        self.buffers.get(self.writable.clone()).unwrap_or_default()
    }

    /// Takes in the buffers of the chain that begins at `head`. On an error there are none.
    #[inline]
    pub(crate) fn read_chain<M: GuestBytes>(
        &mut self,
        memory: &M,
        table: Table,
        head: u16,
    ) -> Result<Totals, ChainError> {
        (self.readable, self.writable) = (0..0, 0..0);
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
    pub(crate) fn take_last(&mut self) -> Option<u64> {
        let last = (self.buffers.get_mut(self.writable.clone())).and_then(<[_]>::last_mut)?;
        last.len -= 1;
        let address = last.address.saturating_add(u64::from(last.len));
        if last.len == 0 {
            self.writable.end -= 1;
        }
        Some(address)
    }

    /// Reads and cuts off the first 16 readable bytes: a header or a segment, as two little-endian
    /// numbers. None if there are fewer, or they are not in guest memory.
    #[inline]
    pub(crate) fn take_front<M: GuestBytes>(&mut self, memory: &M) -> Option<[u64; 2]> {
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

    fn first_readable(&mut self) -> Option<&mut Buffer> {
        self.buffers.get_mut(self.readable.clone())?.first_mut()
    }
}

/// Bytes in `buffers`.
pub(crate) fn total(buffers: &[Buffer]) -> u64 {
    buffers.iter().map(|buffer| u64::from(buffer.len)).sum()
}
