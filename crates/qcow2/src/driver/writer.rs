//! What it takes to change an image: the tables in memory, and who has to wait for whom.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use block::range_lock::RangeLock;
use block::{Io, Result};
use parking_lot::{Mutex, MutexGuard};

use super::base::Base;
use super::epoch::Epochs;
use super::refcounts::Piece;
use super::tables::Tables;

/// See the [module](self).
#[derive(Debug)]
pub struct Writer {
    tables: Mutex<Tables>,
    /// How often tables have been made.
    made: Arc<AtomicU64>,
    /// Who uses what is allocated.
    pub epochs: Epochs,
    /// Guest clusters whose entries somebody is about to change.
    pub clusters: RangeLock,
    /// One makes tables at a time.
    pub making: RangeLock,
    /// One makes the refcount table longer at a time.
    pub growing: RangeLock,
    /// One makes the file longer ahead of what is written at a time.
    pub reserving: RangeLock,
    /// One writes tables at a time.
    pub rounds: RangeLock,
    /// Rounds that have begun.
    pub begun: AtomicU64,
    /// The last one that has succeeded.
    succeeded: AtomicU64,
    /// The losses that it has accepted.
    succeeded_with: AtomicU32,
    /// Something is not on disk; set before anybody can see the change.
    unclean: AtomicBool,
    /// The header says what it has to say of an image that is written.
    prepared: AtomicBool,
    /// The image turned out to be corrupt.
    broken: AtomicBool,
    /// Losses up to this number have been accepted by somebody.
    accepted: AtomicU32,
    /// There may be tables that others have written, and that are not durable.
    inherited: AtomicBool,
}

impl Writer {
    pub fn new(tables: Tables, prepared: bool) -> Self {
        Self {
            made: tables.made(),
            tables: Mutex::new(tables),
            epochs: Epochs::default(),
            clusters: RangeLock::default(),
            making: RangeLock::default(),
            growing: RangeLock::default(),
            reserving: RangeLock::default(),
            rounds: RangeLock::default(),
            begun: AtomicU64::new(0),
            succeeded: AtomicU64::new(0),
            succeeded_with: AtomicU32::new(0),
            unclean: AtomicBool::new(false),
            prepared: AtomicBool::new(prepared),
            broken: AtomicBool::new(false),
            accepted: AtomicU32::new(0),
            inherited: AtomicBool::new(true),
        }
    }

    /// How often tables have been made: what was checked before has to be checked again.
    #[inline]
    pub fn made(&self) -> u64 {
        self.made.load(Ordering::Acquire)
    }

    /// The tables, to be looked at.
    pub fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock()
    }

    /// The tables, to be changed: what is changed is not on disk.
    pub fn change(&self) -> MutexGuard<'_, Tables> {
        let tables = self.tables.lock();
        self.unclean.store(true, Ordering::SeqCst);
        tables
    }

    /// Whether something is not on disk that a flush has to write.
    #[inline]
    pub fn is_unclean(&self) -> bool {
        self.unclean.load(Ordering::SeqCst)
    }

    /// Whether a flush is a round: something is not on disk, or may not be.
    #[inline]
    pub fn has_to_flush(&self, base: &Base) -> bool {
        self.is_unclean() || self.is_inherited() && !base.info.read_only
    }

    /// Looks whether all is on disk now.
    pub fn look(&self, tables: &Tables) {
        if tables.is_clean() {
            self.unclean.store(false, Ordering::SeqCst);
        }
    }

    /// Whether the image may be written in place, as far as the header goes.
    #[inline]
    pub fn is_prepared(&self) -> bool {
        self.prepared.load(Ordering::Acquire)
    }

    /// It may be, or may not be any more.
    pub fn set_prepared(&self, prepared: bool) {
        self.prepared.store(prepared, Ordering::Release);
    }

    /// Whether the image must not be written any more.
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// It must not. True the first time.
    pub fn set_broken(&self) -> bool {
        self.set_prepared(false);
        !self.broken.swap(true, Ordering::AcqRel)
    }

    /// Whether a round has succeeded that began after `before` had been the last one to begin, and has accepted no loss beyond
    /// that number. To be asked by whoever has the turn.
    pub fn has_succeeded_since(&self, before: u64, losses: u32) -> bool {
        self.succeeded.load(Ordering::SeqCst) > before
            && self.succeeded_with.load(Ordering::SeqCst) <= losses
    }

    /// It has. To be said by whoever has the turn.
    pub fn round_succeeded(&self, number: u64, losses: u32) {
        self.succeeded_with.store(losses, Ordering::SeqCst);
        self.succeeded.store(number, Ordering::SeqCst);
    }

    /// Whether there may be tables that others have written, and that are not durable.
    pub fn is_inherited(&self) -> bool {
        self.inherited.load(Ordering::SeqCst)
    }

    /// A round has succeeded, and while it was under way no flush has failed: all that was there before is durable.
    pub fn all_is_durable(&self) {
        self.inherited.store(false, Ordering::SeqCst);
        self.tables().redo.set_doubtful(false);
    }

    /// Somebody has accepted losses up to this number.
    pub fn accept(&self, losses: u32) {
        self.accepted.fetch_max(losses, Ordering::Relaxed);
    }

    /// What has been accepted by anybody: for what nobody has sent.
    pub fn accepted(&self) -> u32 {
        self.accepted.load(Ordering::Relaxed)
    }
}

/// Writes bytes of a table.
///
/// # Errors
/// The storage's.
pub async fn put(base: &Base, piece: &Piece) -> Result<()> {
    let mut buffer = block::OwnedBuffer::new(piece.bytes.len())?;
    buffer.copy_from_slice(&piece.bytes);
    let io = Io::write(piece.offset.0, buffer.lend());
    base.file.submit(io).await
}

/// Makes durable all that has been written.
///
/// # Errors
/// The storage's.
pub async fn sync(base: &Base, writer: &Writer, accepted: u32) -> Result<()> {
    let io = Io {
        losses_accepted: accepted,
        ..Io::flush()
    };
    let flushed = base.file.submit(io).await;
    if flushed.is_err() {
        base.failed_flushes.fetch_add(1, Ordering::SeqCst);
        writer.tables().redo.set_doubtful(true);
    }
    flushed
}
