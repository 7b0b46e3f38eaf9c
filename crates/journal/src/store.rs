//! The files: whole lines at the end of the newest one, and the way from one file to the next.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::entry::{BEGINNING, write_line};
use crate::error::{JournalError, system};
use crate::lock::{Lock, is_at};
use crate::names;
use crate::options::Options;
use crate::queue::Item;
use crate::reader::Lines;

/// What is written at once, in bytes; one line may be longer.
const BATCH_BYTES: usize = 256 << 10;

/// The files of a journal. Whatever fails can be tried again.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    file_bytes_max: u64,
    old_files_max: usize,
    next_seq: u64,
    lock: Option<Lock>,
    newest: Option<Newest>,
    /// An old file could not be synced: the next sync is the one to say so.
    not_synced: Option<JournalError>,
}

/// The newest file.
#[derive(Debug)]
struct Newest {
    file: File,
    /// Its length: whole lines.
    bytes: u64,
    /// Something was written since the last sync.
    dirty: bool,
    /// It may be unknown to the directory on the disk.
    new: bool,
}

impl Store {
    pub fn new(options: &Options) -> Self {
        Self {
            path: options.path.clone(),
            file_bytes_max: options.file_bytes_max,
            old_files_max: options.old_files_max as usize,
            next_seq: 1,
            lock: None,
            newest: None,
            not_synced: None,
        }
    }

    /// Sees to it that the lock is held, and that the newest file is open, at its place, and as long as
    /// it was left: the directory may have been removed or mounted over, and what is torn is repaired.
    ///
    /// # Errors
    /// Why it cannot be written now.
    pub fn ready(&mut self) -> Result<(), JournalError> {
        if !self.lock.as_ref().is_some_and(Lock::is_ours) {
            self.lock = None;
            self.newest = None;
            self.lock = Some(Lock::take(&self.path)?);
        }
        if !self
            .newest
            .as_ref()
            .is_some_and(|newest| newest.is_left(&self.path))
        {
            self.newest = None;
            self.open()?;
        }
        Ok(())
    }

    /// Writes what is pending, line by line whole, and takes it out.
    ///
    /// # Errors
    /// Why the rest could not be written.
    pub fn write(&mut self, pending: &mut VecDeque<Item>) -> Result<(), JournalError> {
        while !pending.is_empty() {
            self.ready()?;
            let bytes = self.newest.as_ref().map_or(0, |newest| newest.bytes);
            let room = self.file_bytes_max.saturating_sub(bytes);
            let (batch, ends) = self.batch(pending, room);
            let Some(newest) = self.newest.as_mut().filter(|_| !ends.is_empty()) else {
                self.rotate()?;
                continue;
            };
            let (written, failed) = write_at(&newest.file, &batch, newest.bytes);
            let lines = ends.partition_point(|end| *end <= written);
            if let Some(end) = lines.checked_sub(1).map(|last| ends[last]) {
                newest.bytes += end as u64;
                newest.dirty = true;
                self.next_seq += lines as u64;
                pending.drain(..lines);
            }
            if let Some(error) = failed {
                // Where that fails too, `ready` finds the file too long, and does it again.
                let _ = newest.file.set_len(newest.bytes);
                return Err(system(&self.path, "write")(error));
            }
        }
        Ok(())
    }

    /// Lines for the newest file, as many as have `room` and make a batch, and where each ends. None:
    /// the first one has no room.
    fn batch(&self, pending: &VecDeque<Item>, room: u64) -> (Vec<u8>, Vec<usize>) {
        let (mut batch, mut ends) = (Vec::new(), Vec::new());
        for (seq, item) in (self.next_seq..).zip(pending) {
            write_line(&mut batch, seq, item.time, &item.text);
            if batch.len() as u64 > room {
                batch.truncate(ends.last().copied().unwrap_or(0));
                break;
            }
            ends.push(batch.len());
            if batch.len() >= BATCH_BYTES {
                break;
            }
        }
        (batch, ends)
    }

    /// Waits until all lines are on the disk.
    ///
    /// # Errors
    /// Lines since the last sync may be lost. That is said once, as the kernel does: the next sync is
    /// about later lines.
    pub fn sync(&mut self) -> Result<(), JournalError> {
        if let Some(error) = self.not_synced.take() {
            return Err(error);
        }
        let Some(newest) = &mut self.newest else {
            return Ok(());
        };
        if std::mem::take(&mut newest.dirty) {
            rustix::fs::fdatasync(&newest.file).map_err(system(&self.path, "sync"))?;
        }
        if newest.new {
            sync_directory(&self.path)?;
            newest.new = false;
        }
        Ok(())
    }

    /// Opens the newest file, makes it if there is none, and cuts off a torn last line.
    fn open(&mut self) -> Result<(), JournalError> {
        let path = &self.path;
        let old = names::all_old(path).map_err(system(path, "list the old files"))?;
        // Not that of a pipe or a device: that may wait, or do something.
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file =
            rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).map_err(
                |errno| match errno {
                    Errno::LOOP | Errno::ISDIR | Errno::NXIO => self.not_a_journal(),
                    errno => system(path, "open")(errno),
                },
            )?;
        let stat = rustix::fs::fstat(&file).map_err(system(path, "stat"))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(self.not_a_journal());
        }
        let file = File::from(file);
        // Else the tail of somebody's file would be cut off.
        if !begins_well(&file).map_err(system(path, "read"))? {
            return Err(self.not_a_journal());
        }
        let mut lines = Lines::new(BufReader::new(&file));
        for entry in lines.by_ref() {
            entry.map_err(system(path, "read"))?;
        }
        let (bytes, torn) = (lines.whole_bytes(), lines.skipped().torn_end);
        let last = lines.last_seq().max(old.last().copied()).unwrap_or(0);
        if torn {
            file.set_len(bytes)
                .map_err(system(path, "cut off the torn line"))?;
        }
        self.next_seq = self.next_seq.max(last.saturating_add(1));
        self.newest = Some(Newest {
            file,
            bytes,
            dirty: torn,
            new: true,
        });
        Ok(())
    }

    fn not_a_journal(&self) -> JournalError {
        JournalError::NotAJournal {
            path: self.path.clone(),
        }
    }

    /// Makes the newest file an old one, and begins a new one. The oldest goes first, so that there
    /// never are more than there may be, whatever fails.
    fn rotate(&mut self) -> Result<(), JournalError> {
        if let Some(newest) = &self.newest
            && newest.dirty
            && let Err(errno) = rustix::fs::fdatasync(&newest.file)
        {
            self.not_synced = Some(system(&self.path, "sync")(errno));
        }
        let path = &self.path;
        let old = names::all_old(path).map_err(system(path, "list the old files"))?;
        let surplus = (old.len() + 1).saturating_sub(self.old_files_max);
        for number in &old[..surplus] {
            let oldest = names::old(path, *number);
            std::fs::remove_file(&oldest).map_err(system(&oldest, "remove the oldest file"))?;
        }
        // Greater than all there are, even where no line of the file could be read.
        let after = old.last().map_or(0, |last| last.saturating_add(1));
        let last = self.next_seq.saturating_sub(1).max(after);
        let name = names::old(path, last);
        let cwd = rustix::fs::CWD;
        rustix::fs::renameat_with(cwd, path, cwd, &name, RenameFlags::NOREPLACE)
            .map_err(system(&name, "rename the full file to that"))?;
        self.next_seq = self.next_seq.max(last.saturating_add(1));
        self.newest = None;
        self.open()
    }
}

impl Newest {
    /// Whether it is at its place, and as it was left.
    fn is_left(&self, path: &Path) -> bool {
        let length = self.file.metadata().map(|file| file.len());
        is_at(&self.file, path) && length.is_ok_and(|length| length == self.bytes)
    }
}

/// Whether it is empty, or begins as a line of a journal does, or a part of one.
fn begins_well(file: &File) -> io::Result<bool> {
    let mut start = Vec::new();
    file.take(BEGINNING.len() as u64).read_to_end(&mut start)?;
    io::Seek::rewind(&mut &*file)?;
    Ok(BEGINNING.starts_with(&start))
}

/// Writes as much as can be. Returns how much that was, and why it was not all.
fn write_at(file: &File, mut data: &[u8], offset: u64) -> (usize, Option<io::Error>) {
    let mut written = 0;
    while !data.is_empty() {
        match file.write_at(data, offset + written as u64) {
            Ok(0) => return (written, Some(io::ErrorKind::WriteZero.into())),
            Ok(bytes) => {
                written += bytes;
                data = &data[bytes..];
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (written, Some(error)),
        }
    }
    (written, None)
}

fn sync_directory(path: &Path) -> Result<(), JournalError> {
    let path = names::directory(path);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .and_then(rustix::fs::fsync)
        .map_err(system(path, "sync the directory"))
}
