//! What callers have of a journal.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::entry::{ENVELOPE_BYTES_MAX, LINE_BYTES_MAX};
use crate::error::{FlushError, JournalError, system};
use crate::options::Options;
use crate::queue::Queue;
use crate::store::Store;
use crate::writer;

/// How long the end of a journal waits for what is still to be written.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// The thread needs little: it writes.
const STACK_BYTES: usize = 256 << 10;

/// A journal that this process writes.
///
/// Dropping it writes what waits, without syncing it, and blocks for that a second at most; storage
/// that hangs then keeps the thread and the lock, not the caller.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    queue: Arc<Queue>,
}

/// How a journal is.
#[derive(Clone, Debug)]
pub struct Status {
    /// Lines that were written by this process.
    pub written: u64,
    /// Entries that were dropped, for want of room or because they cannot be a line.
    pub dropped: u64,
    /// What waits to be written, in bytes.
    pub waiting_bytes: usize,
    /// Why it cannot be written now.
    pub failing: Option<Arc<JournalError>>,
}

impl Journal {
    /// Opens the journal, or begins one, and repairs what a crash has left. Asks the file system, and
    /// may wait for it.
    ///
    /// Storage that fails (full, read-only, EIO) is a warning here as it is later.
    ///
    /// # Errors
    /// What somebody has to change: another process writes it, the path is something else or cannot be
    /// reached, options that contradict each other.
    pub fn open(options: &Options) -> Result<Self, JournalError> {
        options.check()?;
        let mut store = Store::new(options);
        let failed = match store.ready() {
            Ok(()) => None,
            Err(error) if error.is_storage() => Some(error),
            Err(error) => return Err(error),
        };
        let queue = Arc::new(Queue::new(options.queue_bytes_max));
        let path = options.path.clone();
        let thread = std::thread::Builder::new()
            .name("journal".to_owned())
            .stack_size(STACK_BYTES);
        {
            let (queue, path) = (Arc::clone(&queue), path.clone());
            thread
                .spawn(move || writer::run(&queue, store, &path, failed))
                .map_err(system(&options.path, "start the thread that writes"))?;
        }
        Ok(Self { path, queue })
    }

    /// Appends `value`. Waits for nobody and cannot fail: what finds no room is dropped and counted, as
    /// is a value that is no JSON (a map whose keys are no strings), or longer than a line may be.
    ///
    /// Values that are nested more than some 120 deep are written, and skipped by readers.
    pub fn append<T: Serialize + ?Sized>(&self, value: &T) {
        let mut json = Bounded(Vec::new());
        match serde_json::to_writer(&mut json, value) {
            Ok(()) => self.queue.append(json.0),
            Err(_) => self.queue.drop_one(),
        }
    }

    /// Waits until all that was appended before is on the disk, at most for `limit`: for threads that
    /// may block. What was dropped is not waited for, but is told of in the journal.
    ///
    /// # Errors
    /// It is not known to be on the disk. If it cannot be written, it is still tried; if it was written
    /// and a sync has failed, it may be lost, and only the flushes that waited are told.
    pub fn flush(&self, limit: Duration) -> Result<(), FlushError> {
        self.queue.flush(limit).unwrap_or_else(|| {
            Err(FlushError::Slow {
                path: self.path.clone(),
                limit,
            })
        })
    }

    /// How it is.
    #[must_use]
    pub fn status(&self) -> Status {
        let counts = self.queue.counts();
        Status {
            written: counts.written,
            dropped: counts.dropped,
            waiting_bytes: counts.waiting_bytes,
            failing: counts.failing,
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        if !self.queue.end(CLOSE_LIMIT) {
            tracing::warn!(
                "journal {}: the storage does not answer; what waits may be lost",
                self.path.display()
            );
        }
    }
}

/// Memory for the JSON of one line, and no more.
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > LINE_BYTES_MAX - ENVELOPE_BYTES_MAX - 1 {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
