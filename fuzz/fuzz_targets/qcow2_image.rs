//! A whole image that anybody may have made: looked at, checked, repaired.
#![no_main]

use std::io;

use libfuzzer_sys::fuzz_target;
use qcow2::check::{Fix, Limits, check, repair};
use qcow2::{Image, ReadAt, WriteAt};

/// No repair makes an image longer than this many bytes more.
const MORE: usize = 64 << 20;

fuzz_target!(|bytes: &[u8]| {
    let Ok(image) = Image::open(&bytes) else {
        return;
    };
    let limits = Limits {
        memory: 64 << 20,
        findings: 16,
    };
    let before = check(&image, &limits);
    let _ = qcow2::info::info(&image);
    // An L1 table of the greatest length has too much to be told.
    if image.header.size < 1 << 30 {
        let mut next = 0;
        let mapped = qcow2::map::map(&image, &mut |extent| {
            assert_eq!(extent.start, next, "extents follow each other");
            next = extent.start + extent.length;
        });
        if mapped.is_ok() {
            assert_eq!(next, image.header.size, "all of the disk is told");
        }
    }
    for fix in [Fix::Leaks, Fix::All] {
        let mut storage = Storage {
            bytes: bytes.to_vec(),
            most: bytes.len() + MORE,
        };
        let Ok(fixed) = repair(&mut storage, fix, &limits) else {
            continue;
        };
        assert_eq!(fixed.before.corruptions, before.corruptions);
        // Repaired once is repaired.
        let repaired = storage.bytes.clone();
        if fixed.after.is_clean() {
            let again = repair(&mut storage, fix, &limits);
            assert!(again.is_ok_and(|again| again.before.is_clean()));
            assert!(storage.bytes == repaired, "nothing was to be done");
        }
    }
});

/// Bytes that become longer to a bound.
struct Storage {
    bytes: Vec<u8>,
    most: usize,
}

impl ReadAt for Storage {
    fn length(&self) -> io::Result<u64> {
        self.bytes.length()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.bytes.read_at(offset, into)
    }
}

impl WriteAt for Storage {
    fn write_at(&mut self, offset: u64, from: &[u8]) -> io::Result<()> {
        let end = usize::try_from(offset).map_or(usize::MAX, |at| at.saturating_add(from.len()));
        if end > self.most {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.bytes.write_at(offset, from)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.bytes.flush()
    }
}
