//! The names of the files, and the old ones among them.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::entry::SEQ_MAX;

/// Digits of a number in a name: all that 64 bits need, so that names sort as numbers do.
const DIGITS: usize = 20;

/// The old file whose last line is `last_seq`.
pub fn old(path: &Path, last_seq: u64) -> PathBuf {
    suffixed(path, &format!(".{last_seq:0DIGITS$}"))
}

/// The lock of the journal.
pub fn lock(path: &Path) -> PathBuf {
    suffixed(path, ".lock")
}

fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// The directory of the journal.
pub fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// The numbers of the old files, oldest first.
///
/// # Errors
/// If the directory cannot be read.
pub fn all_old(path: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    let name = path.file_name().unwrap_or_default().as_bytes();
    for entry in std::fs::read_dir(directory(path))? {
        let entry = entry?.file_name();
        let number = entry.as_bytes().strip_prefix(name);
        numbers.extend(number.and_then(|number| parse(number.strip_prefix(b".")?)));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

fn parse(digits: &[u8]) -> Option<u64> {
    let plain = digits.len() == DIGITS && digits.iter().all(u8::is_ascii_digit);
    let number = std::str::from_utf8(digits).ok().filter(|_| plain)?.parse();
    number.ok().filter(|number| *number <= SEQ_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_names_are_old_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        for number in [7, 0, SEQ_MAX, SEQ_MAX + 1, 100] {
            std::fs::write(old(&path, number), "").unwrap();
        }
        for other in [
            "j",
            "j.1",
            "j.lock",
            "jj.00000000000000000001",
            "j.+0000000000000000001",
        ] {
            std::fs::write(dir.path().join(other), "").unwrap();
        }
        std::fs::write(dir.path().join("j.99999999999999999999"), "").unwrap();
        assert_eq!(all_old(&path).unwrap(), [0, 7, 100, SEQ_MAX]);
        assert_eq!(directory(Path::new("j")), Path::new("."));
    }
}
