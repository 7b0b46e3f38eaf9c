//! The requests of a disk, as the transport sees them.

use vhost_user::chain::{GuestBytes, Table};
use vhost_user::{Format, NotMapped, View};

use crate::request::{Malformed, Parsed, Rules, Taken, parse};

impl Format for Rules {
    type Taken = Taken;
    type Parsed = Parsed;
    type Outcome = u8;
    type Malformed = Malformed;

    // Left to the compiler it is now a part of what calls it, and now not.
    #[inline]
    fn parse<M: GuestBytes>(
        self,
        memory: &M,
        table: Table,
        head: u16,
        taken: &mut Taken,
    ) -> Result<Parsed, Malformed> {
        parse(memory, table, head, self, taken)
    }

    fn is_executed(parsed: &Parsed) -> bool {
        matches!(parsed, Parsed::Submit { .. })
    }

    fn bytes(parsed: &Parsed) -> u64 {
        match parsed {
            Parsed::Submit { bytes, .. } => *bytes,
            Parsed::Identify | Parsed::Answer { .. } => 0,
        }
    }

    fn answer(taken: &Taken, status: u8, memory: &View) -> Result<u32, NotMapped> {
        memory.store(taken.status_address, status)?;
        Ok(taken.written)
    }
}
