//! The write cache: what the guest believes is followed and recorded.

use std::time::Duration;

use block::Saved;

use super::{Result, Session};
use crate::config::{self, WCE_OFFSET};
use crate::protocol::message::{Answer, ConfigRange};

/// How long a guest waits for the state file when it sets its write cache.
const RECORD_TIME_MAX: Duration = Duration::from_secs(2);

impl Session {
    /// Does to the writes what the guest believes.
    pub(super) fn set_writeback(&self) -> Result<()> {
        let writeback = self.belief.is_writeback(self.features);
        self.device
            .call_all(move |device| async move { device.set_writeback(writeback) })?;
        Ok(())
    }

    /// Records it wherever the next daemon may look: in the client's region, at once, and in the
    /// state file, for which it waits no longer than `limit`. Whether one of them has it by then, or
    /// there is none that could say anything else.
    pub(super) fn note_belief(&self, limit: Duration) -> bool {
        let known = self.belief.known();
        let region = self.region.as_ref();
        let in_region = region.is_some_and(|region| region.set_write_cache(known));
        let saved = self.backend.record_write_cache(known, limit);
        in_region || saved != Saved::No
    }

    /// A ring is about to be started.
    pub(super) fn start_cache(&mut self) -> Result<()> {
        let before = self.belief.known();
        self.belief.start();
        if self.belief.known() != before {
            self.note_belief(Duration::ZERO);
            self.set_writeback()?;
        }
        if self.belief.is_forgotten(self.features) && !self.belief_warned {
            self.belief_warned = true;
            tracing::warn!(
                export = self.options.id,
                "nobody remembers whether the guest believes in a write cache: neither its inflight \
                 region nor a state file says, and the client has not asked; every write is made \
                 durable until the VM is started anew, or the guest sets its cache_type"
            );
        }
        Ok(())
    }

    /// Nothing but the write cache can be set. Other bytes come from guests that write to what is
    /// read-only, and are left alone, as QEMU does.
    pub(super) fn set_config<F>(&mut self, range: ConfigRange, bytes: &[u8]) -> Result<Answer<F>> {
        let place = config::place(range, WCE_OFFSET);
        let Some(&byte) = place.and_then(|place| bytes.get(place)) else {
            let offset = range.offset;
            tracing::debug!("SET_CONFIG of {} bytes at {offset} ignored", bytes.len());
            return Ok(Answer::Done);
        };
        self.belief.set(byte);
        // First of all: who hears that there is no cache relies on it.
        self.set_writeback()?;
        // Whatever was known before: it may have been refused because it could not be recorded. A
        // stale record of the other kind does no harm, but costs speed until the guest sets it again.
        if self.note_belief(RECORD_TIME_MAX) || self.belief.shown() {
            return Ok(Answer::Done);
        }
        tracing::warn!(
            export = self.options.id,
            "the guest gives its write cache up, and the state file, which says that it has one, \
             cannot be written: the guest is told that it keeps it"
        );
        Ok(Answer::Failed)
    }
}
