//! Which image it is ([`Image`]): told by the kernel, so that nobody has to wait for the storage.

use std::fs;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

use block::Image;
use rustix::fs::{AtFlags, StatxFlags, statx};

use super::probe::{Kind, Stat};

/// What `fd` is, which was opened as `filename`.
pub fn of(fd: BorrowedFd<'_>, stat: &Stat, filename: &str) -> Image {
    match stat.kind {
        Kind::Block => of_device(stat.device_number(), filename),
        Kind::Regular | Kind::Other => Image::new(&name_of(fd, filename), &object_of(fd, stat)),
    }
}

/// Where the name has led.
fn name_of(fd: BorrowedFd<'_>, filename: &str) -> String {
    let link = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    link.map_or_else(|_| filename.to_owned(), |path| text(&path))
}

/// Device, inode and when it was made: an inode that was used again is another file.
fn object_of(fd: BorrowedFd<'_>, stat: &Stat) -> String {
    // By the descriptor that there is: a copy that is closed is a flush on some file systems.
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let told = statx(fd, c"", flags, StatxFlags::BTIME).ok();
    let told = told.filter(|told| told.stx_mask & StatxFlags::BTIME.bits() != 0);
    let made = told.map_or(0, |told| {
        let seconds = i128::from(told.stx_btime.tv_sec);
        seconds * 1_000_000_000 + i128::from(told.stx_btime.tv_nsec)
    });
    format!("{:x}:{:x}:{made:x}", stat.image.device, stat.image.inode)
}

/// A device: what names its content, whatever its number is by now; and its attachment, which has a number
/// that is used once.
fn of_device((major, minor): (u32, u32), filename: &str) -> Image {
    let of = |dir: &str| format!("/sys/dev/block/{major}:{minor}/{dir}");
    let part = said(&of("partition")).map(|number| format!("#{number}"));
    // A partition has what its disk has, and a number.
    let (disk, part) = match &part {
        Some(part) => (of("../"), part.as_str()),
        None => (of(""), ""),
    };
    let look = |file: &str| said(&format!("{disk}{file}"));
    let named = (look("dm/uuid").map(|uuid| format!("dm:{uuid}")))
        .or_else(|| look("loop/backing_file"))
        .or_else(|| look("wwid").map(|id| format!("wwid:{id}")))
        .or_else(|| look("device/wwid").map(|id| format!("wwid:{id}")))
        .or_else(|| look("serial").map(|id| format!("serial:{id}")));
    let name = named.map_or_else(|| filename.to_owned(), |name| format!("{name}{part}"));
    let sequence = look("diskseq").map(|number| format!("disk:{number}{part}"));
    Image::new(&name, &sequence.unwrap_or_default())
}

/// What a file in sysfs says, if it says anything.
fn said(path: &str) -> Option<String> {
    let text = fs::read(path).ok()?;
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    (!text.is_empty()).then_some(text)
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::super::probe;
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    fn image(path: &Path) -> Image {
        let file = File::open(path).unwrap();
        let stat = probe::stat(file.as_fd()).unwrap();
        of(file.as_fd(), &stat, "as it was given")
    }

    #[test]
    fn a_file_that_is_moved_copied_or_another_one() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("a"), "1").unwrap();
        std::os::unix::fs::symlink(at("a"), at("link")).unwrap();
        let before = image(&at("link"));
        assert_eq!(before.name(), text(&fs::canonicalize(at("a")).unwrap()));
        fs::rename(at("a"), at("b")).unwrap();
        let moved = image(&at("b"));
        assert!(before != moved && before.is_same(&moved));
        fs::copy(at("b"), at("a")).unwrap();
        let copied = image(&at("a"));
        assert!(before != copied && before.is_same(&copied));
        assert!(!moved.is_same(&copied));
    }
}
