//! What the storage can do to give space back, as far as it is known, and what it has done.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use block::DiscardStats;

use super::device_discard::DeviceDiscard;
use super::probe::Deallocates;

/// What the storage is known to be able to do, and what it has done.
#[derive(Debug)]
pub struct Deallocation {
    /// Whether discards are done: wanted, and not refused so far.
    pub discard: AtomicBool,
    /// Whether zeroing may deallocate: wanted, and not refused so far.
    pub punch: AtomicBool,
    /// Whether a range can be zeroed, as far as is known.
    pub zero_range: AtomicBool,
    /// How a block device discards; files punch holes.
    pub device: Option<DeviceDiscard>,
    /// Whether the storage is still to be asked, and what is known is only what is wanted.
    ask: AtomicBool,
    nb_ok: AtomicU64,
    nb_failed: AtomicU64,
    bytes_ok: AtomicU64,
}

impl Deallocation {
    /// `deallocates`: what is wanted, and what the storage seems to be able to do. `ask`: if the latter is
    /// not known yet.
    pub fn new(deallocates: Deallocates, device: Option<DeviceDiscard>, ask: bool) -> Self {
        Self {
            ask: AtomicBool::new(ask),
            discard: AtomicBool::new(deallocates.discard),
            punch: AtomicBool::new(deallocates.zeroes),
            zero_range: AtomicBool::new(true),
            device,
            nb_ok: AtomicU64::new(0),
            nb_failed: AtomicU64::new(0),
            bytes_ok: AtomicU64::new(0),
        }
    }

    /// Whether the storage has not been asked yet what it can do.
    pub fn is_to_be_asked(&self) -> bool {
        self.ask.load(Ordering::Relaxed)
    }

    /// It has been asked.
    pub fn found(&self, deallocates: Deallocates) {
        self.ask.store(false, Ordering::Relaxed);
        // What was refused meanwhile stays so.
        self.discard
            .fetch_and(deallocates.discard, Ordering::Relaxed);
        self.punch.fetch_and(deallocates.zeroes, Ordering::Relaxed);
    }

    /// Whether discards give space back.
    pub fn discards(&self) -> bool {
        self.discard.load(Ordering::Relaxed)
    }

    /// Whether zeroing gives space back, if it may.
    pub fn unmaps_zeroes(&self) -> bool {
        self.punch.load(Ordering::Relaxed)
    }

    /// The counters.
    pub fn stats(&self) -> DiscardStats {
        DiscardStats {
            nb_ok: self.nb_ok.load(Ordering::Relaxed),
            nb_failed: self.nb_failed.load(Ordering::Relaxed),
            bytes_ok: self.bytes_ok.load(Ordering::Relaxed),
        }
    }

    /// The counters go on from these.
    pub fn go_on_from(&self, before: DiscardStats) {
        self.nb_ok.fetch_add(before.nb_ok, Ordering::Relaxed);
        self.nb_failed
            .fetch_add(before.nb_failed, Ordering::Relaxed);
        self.bytes_ok.fetch_add(before.bytes_ok, Ordering::Relaxed);
    }

    /// A discard has ended.
    pub fn count(&self, bytes: u64, ok: bool) {
        if ok {
            self.nb_ok.fetch_add(1, Ordering::Relaxed);
            self.bytes_ok.fetch_add(bytes, Ordering::Relaxed);
        } else {
            self.nb_failed.fetch_add(1, Ordering::Relaxed);
        }
    }
}
