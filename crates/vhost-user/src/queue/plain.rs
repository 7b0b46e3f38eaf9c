//! Requests in their simplest form, for tests: the last byte that the device may write is a status.

use crate::chain::{ChainError, GuestBytes, Table};
use crate::class::Format;
use crate::memory::NotMapped;
use crate::record::Record;
use crate::view::View;

/// See the [module](self).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plain;

#[derive(Debug, Default)]
pub(crate) struct Taken {
    record: Record,
    status_address: u64,
}

impl AsRef<Record> for Taken {
    fn as_ref(&self) -> &Record {
        &self.record
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Malformed {
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error("there is no status byte")]
    NoStatus,
}

impl Format for Plain {
    type Taken = Taken;
    type Parsed = ();
    type Outcome = u8;
    type Malformed = Malformed;

    fn parse<M: GuestBytes>(
        self,
        memory: &M,
        table: Table,
        head: u16,
        taken: &mut Taken,
    ) -> Result<(), Malformed> {
        taken.record.read_chain(memory, table, head)?;
        let status = taken.record.take_last();
        let status = status.filter(|address| memory.is_mapped(*address));
        taken.status_address = status.ok_or(Malformed::NoStatus)?;
        Ok(())
    }

    fn is_executed(_parsed: &()) -> bool {
        true
    }

    fn bytes(_parsed: &()) -> u64 {
        0
    }

    fn answer(taken: &Taken, status: u8, memory: &View) -> Result<u32, NotMapped> {
        memory.store(taken.status_address, status)?;
        Ok(1)
    }
}
