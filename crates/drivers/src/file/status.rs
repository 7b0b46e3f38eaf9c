//! What is where in an image ([`block::Driver::block_status`]), by SEEK_DATA and SEEK_HOLE.
//!
//! Space that is preallocated and has never been written counts as a hole. Where the storage does not
//! know, as of a block device, all is data.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};

use block::{BlockError, BoxFuture, EXTENTS_MAX, Extent, Result, Stored};

use super::driver::FileDriver;
use super::probe::{self, seek};

impl FileDriver {
    /// See [`block::Driver::block_status`].
    pub(super) fn status(&self, range: Range<u64>) -> BoxFuture<'_, Result<Vec<Extent>>> {
        Box::pin(async move {
            let failed = |error: io::Error| {
                BlockError::from(error).doing("block status").at(
                    &self.node_name,
                    range.start,
                    range.end - range.start,
                )
            };
            // A thread that hangs has one of its own: the image may be closed meanwhile.
            let fd = self.fd().try_clone_to_owned().map_err(failed)?;
            let (asked, end) = (range.clone(), self.tail.end());
            let looked = move || look(fd.as_fd(), asked, end, EXTENTS_MAX);
            let extents = self.beside.run(looked).await.flatten();
            extents.map_err(failed)
        })
    }
}

/// At most `most` extents of `range`, which is not empty. The image is known to have `end` bytes: what is
/// behind it reads as zeroes, and what is missing before it cannot be read.
fn look(fd: BorrowedFd<'_>, range: Range<u64>, end: u64, most: usize) -> io::Result<Vec<Extent>> {
    let mut found = Found {
        at: range.start,
        end: range.end,
        extents: Vec::new(),
    };
    while found.is_wanted(most) {
        let Some(data) = seek(fd, found.at, libc::SEEK_DATA)? else {
            // A hole, to the end of the image. If that is not where it was, it has been truncated.
            let there = probe::length(fd)?;
            found.hole(there.min(end));
            found.data(end);
            found.hole(u64::MAX);
            break;
        };
        found.hole(data);
        if found.is_wanted(most) {
            let hole = seek(fd, found.at, libc::SEEK_HOLE)?;
            found.data(hole.unwrap_or(u64::MAX));
        }
    }
    Ok(found.extents)
}

struct Found {
    at: u64,
    end: u64,
    extents: Vec<Extent>,
}

impl Found {
    fn is_wanted(&self, most: usize) -> bool {
        self.at < self.end && self.extents.len() < most
    }

    fn data(&mut self, to: u64) {
        self.upto(to, Extent::data);
    }

    fn hole(&mut self, to: u64) {
        self.upto(to, Extent::hole);
    }

    fn upto(&mut self, to: u64, extent: fn(u64, Stored) -> Extent) {
        let bytes = to.min(self.end).saturating_sub(self.at);
        if bytes > 0 {
            self.extents.push(extent(bytes, Stored::Here(self.at)));
            self.at += bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::probe::tests::SEEKS;
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    const KIB: u64 = 1024;

    /// Length and whether it is data.
    fn looked(file: &File, range: Range<u64>, end: u64, most: usize) -> Vec<(u64, bool)> {
        let extents = look(file.as_fd(), range, end, most).expect("works");
        let kind = |extent: &Extent| {
            assert_eq!((extent.data, extent.allocated), (!extent.zero, true));
            (extent.bytes, extent.data)
        };
        extents.iter().map(kind).collect()
    }

    fn pieces(count: u64) -> File {
        let file = tempfile::tempfile().expect("a temporary file");
        for piece in 0..count {
            file.write_all_at(&[1; 4096], piece * 64 * KIB)
                .expect("space");
        }
        file.set_len(count * 64 * KIB).expect("sparse");
        file
    }

    #[test]
    fn data_and_holes_take_turns() {
        let (file, end) = (pieces(2), 128 * KIB);
        let (data, hole) = ((4 * KIB, true), (60 * KIB, false));
        assert_eq!(looked(&file, 0..end, end, 9), [data, hole, data, hole]);
        assert_eq!(
            looked(&file, KIB..65 * KIB, end, 9),
            [(3 * KIB, true), hole, (KIB, true)]
        );
        assert_eq!(looked(&file, 100 * KIB..end, end, 9), [(28 * KIB, false)]);
    }

    /// What the image does not have is zeroes behind its end, and to be read, which fails, before it.
    #[test]
    fn what_has_been_truncated_is_no_hole() {
        let (file, end) = (pieces(2), 128 * KIB);
        file.set_len(70 * KIB).expect("shorter");
        assert_eq!(
            looked(&file, 64 * KIB..end + 512, end, 9),
            [
                (4 * KIB, true),
                (2 * KIB, false),
                (58 * KIB, true),
                (512, false)
            ]
        );
        file.set_len(0).expect("nothing");
        assert_eq!(looked(&file, 0..end, end, 9), [(end, true)]);
    }

    /// One question for each extent, one more at the beginning, and no more extents than were asked for: an image in many pieces
    /// neither takes long nor much memory.
    #[test]
    fn each_call_is_bounded() {
        let (file, end) = (pieces(64), 64 * 64 * KIB);
        SEEKS.set(0);
        assert_eq!(looked(&file, 0..end, end, 10).len(), 10);
        assert_eq!(SEEKS.get(), 11, "the first one found no hole");
        SEEKS.set(0);
        assert_eq!(looked(&file, 0..end, end, 1000).len(), 128);
        assert!(SEEKS.get() <= 129, "{}", SEEKS.get());
    }
}
