//! Reads what was written: by any process, at any time, from files that anybody may have damaged.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};

use crate::entry::{Entry, LINE_BYTES_MAX};
use crate::error::{JournalError, system};
use crate::names;

/// How often the files are listed again because one was renamed meanwhile.
const LISTINGS_MAX: u32 = 10;

/// What was not read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// Lines that are damaged, foreign or too long.
    pub lines: u64,
    /// Numbers that no line has, between the first and the last one read.
    pub missing: u64,
    /// Whether the last line has no end: it was being written, or its writer has died.
    pub torn_end: bool,
}

/// What is known of the lines so far.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    skipped: Skipped,
    last_seq: Option<u64>,
}

/// The entries of one file, or of anything else that can be read.
///
/// After an error of the input there is nothing more.
#[derive(Debug)]
pub struct Lines<R> {
    input: R,
    line: Vec<u8>,
    tally: Tally,
    whole_bytes: u64,
    ended: bool,
}

/// How a line ends.
enum End {
    LineFeed,
    Input,
}

impl<R: BufRead> Lines<R> {
    /// The entries of `input`.
    pub fn new(input: R) -> Self {
        Self::after(Tally::default(), input)
    }

    fn after(tally: Tally, input: R) -> Self {
        Self {
            input,
            line: Vec::new(),
            tally,
            whole_bytes: 0,
            ended: false,
        }
    }

    /// What was not read so far.
    #[must_use]
    pub fn skipped(&self) -> Skipped {
        self.tally.skipped
    }

    /// The greatest number so far.
    #[must_use]
    pub fn last_seq(&self) -> Option<u64> {
        self.tally.last_seq
    }

    /// The length of the lines so far that have an end, in bytes.
    #[must_use]
    pub fn whole_bytes(&self) -> u64 {
        self.whole_bytes
    }

    /// Reads a line into `self.line`, as much of it as a line may have. Returns its length, too.
    fn next_line(&mut self) -> io::Result<(u64, End)> {
        self.line.clear();
        let mut bytes = 0;
        loop {
            let chunk = match self.input.fill_buf() {
                Ok(chunk) => chunk,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if chunk.is_empty() {
                return Ok((bytes, End::Input));
            }
            let end = chunk.iter().position(|byte| *byte == b'\n');
            let part = end.map_or(chunk, |end| &chunk[..end]);
            let room = LINE_BYTES_MAX - self.line.len();
            self.line.extend_from_slice(&part[..part.len().min(room)]);
            let used = part.len() + usize::from(end.is_some());
            bytes += used as u64;
            self.input.consume(used);
            if end.is_some() {
                return Ok((bytes, End::LineFeed));
            }
        }
    }
}

impl<R: BufRead> Iterator for Lines<R> {
    type Item = io::Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.ended {
            match self.next_line() {
                Ok((bytes, End::LineFeed)) => {
                    self.whole_bytes += bytes;
                    let fits = bytes <= LINE_BYTES_MAX as u64;
                    match Entry::parse(&self.line).filter(|_| fits) {
                        Some(entry) => {
                            self.tally.count(entry.seq);
                            return Some(Ok(entry));
                        }
                        None => self.tally.skipped.lines += 1,
                    }
                }
                Ok((bytes, End::Input)) => {
                    self.ended = true;
                    self.tally.skipped.torn_end = bytes > 0;
                }
                Err(error) => {
                    self.ended = true;
                    return Some(Err(error));
                }
            }
        }
        None
    }
}

impl Tally {
    fn count(&mut self, seq: u64) {
        if let Some(last) = self.last_seq {
            let between = seq.saturating_sub(last).saturating_sub(1);
            self.skipped.missing = self.skipped.missing.saturating_add(between);
        }
        self.last_seq = self.last_seq.max(Some(seq));
    }
}

/// The entries of a journal, oldest first. What is appended or removed after [`read`] is not seen or
/// still seen.
///
/// An error is that of one file, and the next ones are read after it.
#[derive(Debug)]
pub struct Reader {
    files: VecDeque<File>,
    lines: Option<Lines<BufReader<File>>>,
    tally: Tally,
}

/// Reads the journal at `path`. It may be written meanwhile; needs no lock.
///
/// # Errors
/// If there is none, or it cannot be opened.
pub fn read(path: &Path) -> Result<Reader, JournalError> {
    let mut listed = 0;
    loop {
        let list = || names::all_old(path).map_err(system(path, "list the old files"));
        let before = list()?;
        let mut files = VecDeque::new();
        for number in &before {
            files.extend(open(&names::old(path, *number))?);
        }
        files.extend(open(path)?);
        listed += 1;
        // The newest file becomes an old one, and a file that was listed may have gone.
        if before != list()? && listed < LISTINGS_MAX {
            continue;
        }
        if files.is_empty() {
            let gone = io::Error::from(io::ErrorKind::NotFound);
            return Err(system(path, "open")(gone));
        }
        return Ok(Reader {
            files,
            lines: None,
            tally: Tally::default(),
        });
    }
}

fn open(path: &Path) -> Result<Option<File>, JournalError> {
    // Whoever opens a pipe would wait for whoever writes to it.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => file,
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(system(path, "open")(errno)),
    };
    let stat = rustix::fs::fstat(&file).map_err(system(path, "stat"))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(JournalError::NotAJournal {
            path: path.to_owned(),
        });
    }
    Ok(Some(file.into()))
}

impl Reader {
    /// What was not read so far.
    #[must_use]
    pub fn skipped(&self) -> Skipped {
        self.lines
            .as_ref()
            .map_or(self.tally.skipped, Lines::skipped)
    }
}

impl Iterator for Reader {
    type Item = io::Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(lines) = &mut self.lines {
                if let Some(entry) = lines.next() {
                    return Some(entry);
                }
                self.tally = lines.tally;
                self.lines = None;
            }
            let file = self.files.pop_front()?;
            // Only the last file's last line may still become whole.
            let torn = std::mem::take(&mut self.tally.skipped.torn_end);
            self.tally.skipped.lines += u64::from(torn);
            self.lines = Some(Lines::after(self.tally, BufReader::new(file)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn line(seq: u64) -> String {
        format!("{{\"seq\":{seq},\"time\":\"2026-11-27T17:58:12Z\",\"data\":[{seq}]}}\n")
    }

    fn all(text: &[u8]) -> (Vec<u64>, Skipped) {
        let mut lines = Lines::new(text);
        let numbers = lines.by_ref().map(|entry| entry.unwrap().seq).collect();
        (numbers, lines.skipped())
    }

    #[test]
    fn what_is_damaged_is_skipped_and_counted() {
        let (a, b, c) = (line(1), line(2), line(4));
        let text = format!(
            "{a}nonsense\n{{\"seq\":9\n{b}\n\0\0\0{c}{c}{}",
            &a[..a.len() - 1]
        );
        let (numbers, skipped) = all(text.as_bytes());
        assert_eq!(numbers, [1, 2, 4]);
        let expected = Skipped {
            lines: 4,
            missing: 1,
            torn_end: true,
        };
        assert_eq!(skipped, expected);
    }

    #[test]
    fn a_line_without_end_takes_no_memory() {
        struct Endless(u64);
        impl io::Read for Endless {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                self.0 = self.0.saturating_sub(buffer.len() as u64);
                buffer.fill(b'[');
                Ok(if self.0 == 0 { 0 } else { buffer.len() })
            }
        }
        let end = format!("\n{}", line(7));
        let endless = BufReader::new(io::Read::chain(Endless(64 << 20), end.as_bytes()));
        let mut lines = Lines::new(endless);
        assert_eq!(lines.next().unwrap().unwrap().seq, 7);
        assert!(lines.line.capacity() <= 2 * LINE_BYTES_MAX);
        assert_eq!(lines.skipped().lines, 1);
    }

    #[test]
    fn the_longest_line_is_read_and_a_longer_one_is_not() {
        let long = |bytes: usize| {
            let (a, b) = (
                "{\"seq\":1,\"time\":\"2026-11-27T17:58:12Z\",\"data\":\"",
                "\"}\n",
            );
            format!("{a}{}{b}", "x".repeat(bytes - a.len() - b.len()))
        };
        assert_eq!(all(long(LINE_BYTES_MAX).as_bytes()).0, [1]);
        let (numbers, skipped) = all(long(LINE_BYTES_MAX + 1).as_bytes());
        assert_eq!((numbers.len(), skipped.lines), (0, 1));
    }

    #[test]
    fn an_error_ends_a_file_and_not_the_journal() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        std::fs::write(names::old(&path, 1), line(1).trim_end()).unwrap();
        std::fs::write(names::old(&path, 2), line(2)).unwrap();
        std::fs::write(&path, line(3) + "{").unwrap();
        let mut reader = read(&path).unwrap();
        // No descriptor of a directory can be read.
        reader.files[1] = File::open(dir.path()).unwrap();
        let read: Vec<_> = reader
            .by_ref()
            .map(|entry| entry.map(|entry| entry.seq))
            .collect();
        assert!(matches!(read[..], [Err(_), Ok(3)]), "{read:?}");
        let skipped = reader.skipped();
        assert!(skipped.torn_end && skipped.lines == 1, "{skipped:?}");
        assert!(reader.next().is_none());
        assert!(super::read(&dir.path().join("none")).is_err());
        assert!(matches!(
            super::read(dir.path()),
            Err(JournalError::NotAJournal { .. })
        ));
    }

    fn piece() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            4 => (0_u64..9).prop_map(|seq| line(seq).into_bytes()),
            2 => (0_u64..9, 0_usize..70).prop_map(|(seq, cut)| {
                let mut line = line(seq).into_bytes();
                line.truncate(cut);
                line
            }),
            2 => vec(any::<u8>(), 0..20),
            1 => Just(b"\n".to_vec()),
        ]
    }

    proptest! {
        /// Against the plainest way to do it.
        #[test]
        fn arbitrary_bytes(pieces in vec(piece(), 0..20), buffer in 1_usize..100) {
            let text = pieces.concat();
            let mut parts: Vec<_> = text.split(|byte| *byte == b'\n').collect();
            let tail = parts.pop().unwrap_or_default();
            let entries: Vec<_> = parts.iter().filter_map(|part| Entry::parse(part)).collect();
            let mut lines = Lines::new(BufReader::with_capacity(buffer, &text[..]));
            let found: Vec<_> = lines.by_ref().map(Result::unwrap).collect();
            prop_assert_eq!(&found, &entries);
            let skipped = lines.skipped();
            prop_assert_eq!(skipped.lines, (parts.len() - entries.len()) as u64);
            prop_assert_eq!(skipped.torn_end, !tail.is_empty());
            prop_assert_eq!(lines.whole_bytes(), (text.len() - tail.len()) as u64);
            prop_assert_eq!(lines.last_seq(), entries.iter().map(|entry| entry.seq).max());
        }
    }
}
