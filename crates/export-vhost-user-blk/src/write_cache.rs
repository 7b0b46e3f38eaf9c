//! What the guest believes about a write cache, by what its VMM was told and has said. Pure.
//!
//! VMMs keep a copy of the byte in the configuration space, show that to the guest, and read ours
//! once: QEMU when the device is made. Neither a reset of the device nor another connection changes
//! the copy. So what it says belongs to the export's life. A guest that takes it for 0 sends no flush
//! and believes every write durable that has completed; if nobody remembers, that is what counts.

use block::WriteCache;

use crate::config::{F_CONFIG_WCE, F_FLUSH};

/// See the [module](self). One object serves one connection after the other.
#[derive(Debug)]
pub(crate) struct Belief {
    /// What a client reads where nothing is known.
    initial: WriteCache,
    known: WriteCache,
    /// Whether this connection has read the byte before it started its first ring. Later it may read
    /// it and not look at it: QEMU does so at a resize.
    told: bool,
    /// Whether this connection has started a ring.
    started: bool,
}

impl Belief {
    /// `known` is what is recorded of the export.
    pub fn new(writethrough: bool, known: WriteCache) -> Self {
        Self {
            initial: WriteCache::of(!writethrough),
            known,
            told: false,
            started: false,
        }
    }

    /// What is to be recorded.
    pub fn known(&self) -> WriteCache {
        self.known
    }

    /// What the byte in the configuration space is.
    pub fn shown(&self) -> bool {
        let shown = match self.known {
            WriteCache::Unknown if !self.started => self.initial,
            known => known,
        };
        shown == WriteCache::WriteBack
    }

    /// The client has read the byte.
    pub fn read(&mut self) {
        self.told |= !self.started;
    }

    /// The client has written the byte. As for QEMU, anything but 0 is a cache.
    pub fn set(&mut self, byte: u8) {
        self.known = WriteCache::of(byte != 0);
    }

    /// The client hands in another record.
    pub fn found(&mut self, record: WriteCache) {
        self.known = self.known.joined(record);
    }

    /// A ring starts. What the client was told counts from now on, if nothing else is known.
    pub fn start(&mut self) {
        if self.told && self.known == WriteCache::Unknown {
            self.known = self.initial;
        }
        self.started = true;
    }

    /// The connection is gone.
    pub fn end(&mut self) {
        (self.told, self.started) = (false, false);
    }

    /// Whether a write may complete before it is durable, for a driver with these features.
    ///
    /// Without FLUSH it may not: that driver cannot ask for more. A driver that does not see the byte
    /// takes it for granted that there is a cache (virtio 1.2, 5.2.6.2).
    pub fn is_writeback(&self, features: u64) -> bool {
        let cache = match features & F_CONFIG_WCE {
            0 => self.initial,
            _ => self.known,
        };
        features & F_FLUSH != 0 && cache == WriteCache::WriteBack
    }

    /// Whether a ring runs without a cache only because nobody remembers whether the driver believes
    /// in one.
    pub fn is_forgotten(&self, features: u64) -> bool {
        let sees = features & F_CONFIG_WCE != 0 && features & F_FLUSH != 0;
        sees && self.started && self.known == WriteCache::Unknown
    }
}

/// What is noted of it in an inflight region: 0 unknown, 1 write-back, 2 write-through, anything else as
/// 2.
pub(crate) fn to_note(write_cache: WriteCache) -> u8 {
    match write_cache {
        WriteCache::Unknown => 0,
        WriteCache::WriteBack => 1,
        WriteCache::WriteThrough => 2,
    }
}

/// What [`to_note`] has noted.
pub(crate) fn from_note(note: u8) -> WriteCache {
    match note {
        0 => WriteCache::Unknown,
        1 => WriteCache::WriteBack,
        // If it is something that is not known here, it is not taken lightly.
        _ => WriteCache::WriteThrough,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use WriteCache::{Unknown, WriteBack, WriteThrough};

    const LINUX: u64 = F_FLUSH | F_CONFIG_WCE;

    /// What is done for the driver, what is recorded, what is shown.
    fn state(belief: &Belief) -> (bool, WriteCache, bool) {
        (belief.is_writeback(LINUX), belief.known(), belief.shown())
    }

    #[test]
    fn notes() {
        for cache in WriteCache::ALL {
            assert_eq!(from_note(to_note(cache)), cache);
        }
        assert_eq!((from_note(0), from_note(3)), (Unknown, WriteThrough));
    }

    #[test]
    fn only_who_reads_before_the_first_ring_knows() {
        for writethrough in [false, true] {
            let initial = WriteCache::of(!writethrough);
            let mut belief = Belief::new(writethrough, Unknown);
            assert_eq!(state(&belief), (false, Unknown, !writethrough));
            belief.read();
            assert_eq!(belief.known(), Unknown, "it may not be a VM at all");
            belief.start();
            assert_eq!(state(&belief), (!writethrough, initial, !writethrough));
            assert!(!belief.is_forgotten(LINUX));
            // The same VM comes back, and reads nothing.
            belief.end();
            belief.start();
            assert_eq!(state(&belief), (!writethrough, initial, !writethrough));
        }
        let mut belief = Belief::new(false, Unknown);
        belief.start();
        belief.read();
        belief.start();
        assert_eq!(state(&belief), (false, Unknown, false));
        assert!(belief.is_forgotten(LINUX));
        // It is another one if the reader leaves before it starts a ring.
        let mut belief = Belief::new(false, Unknown);
        belief.read();
        belief.end();
        belief.start();
        assert_eq!(state(&belief), (false, Unknown, false));
    }

    #[test]
    fn records_count_more_than_what_is_told() {
        for (known, found, both) in [
            (Unknown, Unknown, WriteBack),
            (WriteBack, Unknown, WriteBack),
            (Unknown, WriteThrough, WriteThrough),
            (WriteBack, WriteThrough, WriteThrough),
            (WriteThrough, WriteBack, WriteThrough),
        ] {
            let mut belief = Belief::new(false, known);
            belief.read();
            belief.found(found);
            belief.start();
            let writeback = both == WriteBack;
            assert_eq!(state(&belief), (writeback, both, writeback));
        }
    }

    #[test]
    fn what_the_guest_sets_counts_at_once_and_for_ever() {
        let mut belief = Belief::new(false, Unknown);
        for (byte, writeback) in [(0, false), (1, true), (0, false), (2, true), (0xff, true)] {
            belief.set(byte);
            let known = WriteCache::of(writeback);
            assert_eq!(state(&belief), (writeback, known, writeback), "{byte}");
            belief.start();
            belief.end();
            belief.read();
            assert_eq!(state(&belief), (writeback, known, writeback), "{byte}");
        }
    }

    /// Firmware that cannot flush, and then Linux, which finds what it has left.
    #[test]
    fn drivers_that_do_not_see_the_byte() {
        for (features, writeback, told) in [
            (0, false, WriteBack),
            (F_FLUSH, true, WriteBack),
            (F_CONFIG_WCE, false, WriteBack),
            (F_FLUSH, true, WriteThrough),
            (0, false, WriteThrough),
        ] {
            let mut belief = Belief::new(false, told);
            belief.start();
            assert_eq!(belief.is_writeback(features), writeback, "{features:#x}");
            assert_eq!(belief.is_writeback(LINUX), told == WriteBack);
            assert!(!belief.is_forgotten(features));
        }
        let mut belief = Belief::new(true, WriteBack);
        belief.start();
        assert!(!belief.is_writeback(F_FLUSH), "the option says so");
        let mut belief = Belief::new(false, Unknown);
        belief.start();
        assert!(!belief.is_forgotten(F_FLUSH) && belief.is_writeback(F_FLUSH));
    }
}
