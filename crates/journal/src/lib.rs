//! A journal: what has happened, one JSON value a line, kept over the life of a process.
//!
//! - **Who appends waits for nobody** ([`Journal::append`]): entries go into a queue of a fixed size, and
//!   a thread of its own writes them. What finds no room is dropped and counted, and the count is an
//!   entry of the journal itself, at the place where the dropped ones would be.
//! - **Storage that fails is a warning.** Entries wait until it goes well again; the disk may be full or
//!   read-only, the directory gone. What is in the file is whole lines: a line that was written in part
//!   is cut off, at once or when the journal is opened next.
//! - **It is on the disk when [`Journal::flush`] says so**, and not before.
//! - **It is bounded in all**: [`Options::file_bytes_max`] times ([`Options::old_files_max`] + 1) on the
//!   disk, [`Options::queue_bytes_max`] and a batch of [`LINE_BYTES_MAX`] in memory.
//!
//! # Form
//!
//! ```json
//! {"seq":17,"time":"2026-11-27T17:58:12.123456Z","data":{"event":"STOP"}}
//! {"seq":18,"time":"2026-11-27T17:58:12.2Z","dropped":3}
//! ```
//!
//! `seq` counts the lines of a journal, over rotations and restarts: where one is missing, a line was
//! lost or damaged. `time` is when the entry was appended, by the system's clock, to the microsecond; it
//! may go backwards, `seq` does not. An entry has `data`, the caller's value, or `dropped`, how many
//! entries found no room since the one before. Fields may be added; readers skip what they do not know.
//!
//! The newest lines are in `PATH`. A file that is full is renamed to `PATH.N`, where N is the number of
//! its last line with 20 digits, and the oldest is removed. `PATH.lock` says that a process writes. All of
//! them have mode 0600. Readers ([`read`], or any tool that knows JSON) need no lock.
//!
//! # Why our own
//!
//! Of the crates that write files which roll, `file-rotate`, `rolling-file` and `logroller` write on the
//! caller's thread, and `tracing-appender`, whose queue has no flush and does not say what it has dropped,
//! is what they are put behind. None looks at what a failed write has left in the file: after ENOSPC the
//! next line is glued to half a line. None repairs that at opening, syncs, or keeps a second process out;
//! `file-rotate` cuts a line where a file is full, and panics where a directory is gone and cannot be made.
//! What is left of the work is a rename.

mod entry;
mod error;
mod journal;
mod lock;
mod names;
mod options;
mod queue;
mod reader;
mod store;
mod trouble;
mod writer;

pub use entry::{Content, Entry, LINE_BYTES_MAX};
pub use error::{FlushError, JournalError};
pub use journal::{Journal, Status};
pub use options::Options;
pub use reader::{Lines, Reader, Skipped, read};
