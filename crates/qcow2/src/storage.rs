//! What an image lies in, as those see it who look at all of it at once: a file, a slice of bytes, the storage of a
//! test after a cut. Synchronous and small; whoever has a file implements it.

use std::io;

/// Bytes that can be read.
pub trait ReadAt {
    /// How many there are.
    ///
    /// # Errors
    /// If that cannot be told.
    fn length(&self) -> io::Result<u64>;

    /// Fills `into` from `offset` on. What is beyond the end reads as zeroes.
    ///
    /// # Errors
    /// If the storage fails.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()>;

    /// The first byte from `offset` on that is not in a hole, or the length if there is none: what is before it
    /// reads as zeroes. Who knows nothing of holes says `offset`.
    ///
    /// # Errors
    /// If the storage fails.
    fn data_from(&self, offset: u64) -> io::Result<u64> {
        Ok(offset)
    }

    /// The first byte from `offset`, which is no hole, on that is in one, or the length.
    ///
    /// # Errors
    /// If the storage fails.
    fn hole_from(&self, _offset: u64) -> io::Result<u64> {
        self.length()
    }

    /// How many bytes of storage it takes; none if that is not known.
    fn allocated(&self) -> Option<u64> {
        None
    }
}

/// Bytes that can be written, too.
pub trait WriteAt: ReadAt {
    /// Writes at `offset`; it becomes longer if that is beyond its end.
    ///
    /// # Errors
    /// If the storage fails, or cannot be made longer.
    fn write_at(&mut self, offset: u64, from: &[u8]) -> io::Result<()>;

    /// What was written before is durable then.
    ///
    /// # Errors
    /// If the storage fails. Then nothing is known of what was written since the last flush.
    fn flush(&mut self) -> io::Result<()>;
}

impl ReadAt for &[u8] {
    fn length(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let there = self.get(start..).unwrap_or_default();
        let there = there.get(..into.len()).unwrap_or(there);
        let (filled, rest) = into.split_at_mut(there.len());
        filled.copy_from_slice(there);
        rest.fill(0);
        Ok(())
    }
}

impl ReadAt for Vec<u8> {
    fn length(&self) -> io::Result<u64> {
        self.as_slice().length()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.as_slice().read_at(offset, into)
    }
}

impl WriteAt for Vec<u8> {
    fn write_at(&mut self, offset: u64, from: &[u8]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::StorageFull)?;
        let end = start
            .checked_add(from.len())
            .ok_or(io::ErrorKind::StorageFull)?;
        if end > self.len() {
            self.resize(end, 0);
        }
        if let Some(room) = self.get_mut(start..end) {
            room.copy_from_slice(from);
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads a whole table, without looking at what lies in holes of the storage.
///
/// # Errors
/// If the storage fails.
pub(crate) fn read_table(storage: &dyn ReadAt, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
    let mut table = vec![0; bytes];
    let data = storage.data_from(offset)?;
    let skipped = usize::try_from(data.saturating_sub(offset)).unwrap_or(usize::MAX);
    if let Some(rest) = table.get_mut(skipped..)
        && !rest.is_empty()
    {
        storage.read_at(data, rest)?;
    }
    Ok(table)
}
