//! A storage that is cut off after some writes.

use std::io;

use standfast_qcow2::{ReadAt, WriteAt};

use super::breakages::Random;

const SECTOR: usize = 512;

/// What was written since the last flush may be lost, sector by sector.
pub struct Cut {
    now: Vec<u8>,
    durable: Vec<u8>,
    writes_left: usize,
}

impl Cut {
    pub fn new(bytes: Vec<u8>, writes: usize) -> Self {
        Self {
            durable: bytes.clone(),
            now: bytes,
            writes_left: writes,
        }
    }

    /// Sectors that are not durable are there or not, by seed.
    pub fn what_is_left(&self, seed: u64) -> Vec<u8> {
        let mut random = Random(seed);
        let mut left = self.now.clone();
        for (index, sector) in left.chunks_mut(SECTOR).enumerate() {
            if random.below(2) == 0 {
                let old = self.durable.get(index * SECTOR..).unwrap_or_default();
                let old = &old[..old.len().min(sector.len())];
                sector.fill(0);
                sector[..old.len()].copy_from_slice(old);
            }
        }
        left
    }
}

impl ReadAt for Cut {
    fn length(&self) -> io::Result<u64> {
        self.now.length()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.now.read_at(offset, into)
    }
}

impl WriteAt for Cut {
    fn write_at(&mut self, offset: u64, from: &[u8]) -> io::Result<()> {
        if self.writes_left == 0 {
            // The half of it.
            let half = from.len() / 2 / SECTOR * SECTOR;
            self.now.write_at(offset, &from[..half])?;
            return Err(io::Error::other("cut off"));
        }
        self.writes_left -= 1;
        self.now.write_at(offset, from)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.durable.clone_from(&self.now);
        Ok(())
    }
}
