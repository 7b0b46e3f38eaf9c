//! The write cache: what the guest believes is followed and recorded.

use std::sync::Arc;
use std::time::Duration;

use block::{Backend, Saved, WriteCache};
use vhost_user::{Closed, DeviceHandle, Guest};

use crate::options::Options;
use crate::part::BlockPart;
use crate::write_cache::{Belief, from_note, to_note};

/// How long a guest waits for the state file when it sets its write cache.
const RECORD_TIME_MAX: Duration = Duration::from_secs(2);

/// See the [module](self).
pub(crate) struct Cache {
    id: String,
    backend: Arc<Backend>,
    device: DeviceHandle<BlockPart>,
    /// What the guest believes about a write cache.
    belief: Belief,
    /// Whether it has been said that nobody knows.
    warned: bool,
}

impl Cache {
    pub fn new(options: &Options, backend: Arc<Backend>, device: DeviceHandle<BlockPart>) -> Self {
        let writethrough = options.writethrough;
        let known = backend.write_cache();
        if writethrough && known == WriteCache::WriteBack {
            tracing::warn!(
                export = options.id,
                "writethrough=on is what a guest is told first; this one has a write cache since a \
                 former daemon, and keeps it until it is told otherwise"
            );
        }
        Self {
            id: options.id.clone(),
            belief: Belief::new(writethrough, known),
            backend,
            device,
            warned: false,
        }
    }

    /// What a fresh region is to record.
    pub fn to_note(&self) -> u8 {
        to_note(self.belief.known())
    }

    /// What the byte in the configuration space is.
    pub fn shown(&self) -> bool {
        self.belief.shown()
    }

    /// The client has read the byte.
    pub fn read(&mut self) {
        self.belief.read();
    }

    /// The connection is gone.
    pub fn end(&mut self) {
        self.belief.end();
    }

    /// The client hands a region in that says this.
    pub fn found(&mut self, note: u8, guest: Guest<'_>) -> Result<(), Closed> {
        self.belief.found(from_note(note));
        self.note(guest, Duration::ZERO);
        self.follow(guest)
    }

    /// Does to the writes what the guest believes.
    pub fn follow(&self, guest: Guest<'_>) -> Result<(), Closed> {
        let writeback = self.belief.is_writeback(guest.features());
        self.device
            .on_parts(move |part| part.set_writeback(writeback))
    }

    /// Records it wherever the next daemon may look: in the client's region, at once, and in the
    /// state file, for which it waits no longer than `limit`. Whether one of them has it by then, or
    /// there is none that could say anything else.
    fn note(&self, guest: Guest<'_>, limit: Duration) -> bool {
        let known = self.belief.known();
        let in_region = guest.note(to_note(known));
        let saved = self.backend.record_write_cache(known, limit);
        in_region || saved != Saved::No
    }

    /// A ring is about to be started.
    pub fn start(&mut self, guest: Guest<'_>) -> Result<(), Closed> {
        let before = self.belief.known();
        self.belief.start();
        if self.belief.known() != before {
            self.note(guest, Duration::ZERO);
            self.follow(guest)?;
        }
        if self.belief.is_forgotten(guest.features()) && !self.warned {
            self.warned = true;
            tracing::warn!(
                export = self.id,
                "nobody remembers whether the guest believes in a write cache: neither its inflight \
                 region nor a state file says, and the client has not asked; every write is made \
                 durable until the VM is started anew, or the guest sets its cache_type"
            );
        }
        Ok(())
    }

    /// The client has written the byte. False if it cannot be: it stays as it is.
    pub fn set(&mut self, byte: u8, guest: Guest<'_>) -> Result<bool, Closed> {
        self.belief.set(byte);
        // First of all: who hears that there is no cache relies on it.
        self.follow(guest)?;
        // Whatever was known before: it may have been refused because it could not be recorded. A
        // stale record of the other kind does no harm, but costs speed until the guest sets it again.
        if self.note(guest, RECORD_TIME_MAX) || self.belief.shown() {
            return Ok(true);
        }
        tracing::warn!(
            export = self.id,
            "the guest gives its write cache up, and the state file, which says that it has one, \
             cannot be written: the guest is told that it keeps it"
        );
        Ok(false)
    }
}
