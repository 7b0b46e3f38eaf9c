//! Making the file of an image: `blockdev-create`. It may wait for the storage for ever.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use block::{Access, Cause, LockError, Permissions};
use rustix::fs::{FallocateFlags, IFlags};

use super::lock::Locked;
use super::options::OpenImage;
use super::probe::{self, Kind};
use crate::OpenError;

/// How the room of a new disk is made: of a file, or of an image with a format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preallocation {
    /// When it is written.
    #[default]
    Off,
    /// All tables say where the clusters are; the file has holes there. Not possible without a format.
    Metadata,
    /// And the room is reserved, by fallocate(2).
    Falloc,
    /// And zeroes are written.
    Full,
}

/// A file to be made.
#[derive(Debug)]
pub struct NewFile<'a> {
    /// Its path.
    pub path: &'a Path,
    /// The path as it is shown.
    pub name: &'a str,
    /// What opens it; none: the path does. It is there then, and not made.
    pub opener: Option<&'a dyn OpenImage>,
    /// Its length in bytes.
    pub size: u64,
    /// How its space is made.
    pub preallocation: Preallocation,
    /// Without copy-on-write, where the file system has that.
    pub nocow: bool,
    /// In pieces of how many bytes the file system is to allocate it, where it has that; none: as it likes.
    pub extent_size_hint: Option<u32>,
}

/// What is written at once, in bytes.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// What is written of a file without space of its own, so that whoever opens it finds out what its storage
/// wants. Bytes.
const FIRST_BLOCK: u64 = 4096;

/// Makes a file, or has one that is there begin anew. Whether it goes on writing zeroes is asked of
/// `cancelled`. Returned is why the file system does not take the hint.
///
/// # Errors
/// In QEMU's words. A file that was made stays, and is empty.
pub fn create(new: &NewFile<'_>, cancelled: &AtomicBool) -> Result<Option<io::Error>, OpenError> {
    let NewFile {
        name,
        size,
        preallocation,
        ..
    } = *new;
    let file = open(new)?;
    let kind = probe::stat(file.as_fd()).map(|found| found.kind);
    if let Ok(kind) = kind
        && kind != Kind::Regular
    {
        return Err(OpenError::new(
            libc::EINVAL,
            format!("Could not create '{name}': it is there, and no regular file"),
        ));
    }
    let owned: OwnedFd = file
        .try_clone()
        .map_err(|error| OpenError::system("Could not create", name, &error))?
        .into();
    // Both descriptors are one open file, to which its locks belong.
    let locks = Locked::new(owned, name, true);
    let locked = locks.lock(Access {
        held: Permissions::WRITE.and(Permissions::RESIZE),
        shared: Permissions::ALL.without(Permissions::RESIZE),
    });
    locked.map_err(|LockError { errno, desc, hint }| OpenError { errno, desc, hint })?;
    if new.nocow {
        // As far as the file system knows that.
        if let Ok(flags) = rustix::fs::ioctl_getflags(&file) {
            let _ = rustix::fs::ioctl_setflags(&file, flags | IFlags::NOCOW);
        }
    }
    // What is there is gone only if a file can be that long.
    if file.metadata().is_ok_and(|found| found.len() < size) {
        resize(&file, size)?;
    }
    resize(&file, 0)?;
    let refused = new
        .extent_size_hint
        .and_then(|bytes| probe::set_extent_size_hint(file.as_fd(), bytes).err());
    let made = fill(&file, size, preallocation, cancelled);
    if made.is_err() && preallocation != Preallocation::Off {
        // What could not be made whole is nothing; the first error is the one that counts.
        let _ = resize(&file, 0);
    }
    made.map(|()| refused)
}

fn open(new: &NewFile<'_>) -> Result<File, OpenError> {
    if let Some(opener) = new.opener {
        let opened = opener.open(true, false);
        return opened.map(File::from).map_err(|error| {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            OpenError::new(errno, opener.failed(true, &Cause::of_errno(errno).reason()))
        });
    }
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o644)
        .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK)
        .open(new.path);
    opened.map_err(|error| OpenError::system("Could not create", new.name, &error))
}

fn failed(what: &str, error: &io::Error) -> OpenError {
    let errno = error.raw_os_error().unwrap_or(libc::EIO);
    let reason = Cause::of_errno(errno).reason();
    OpenError::new(errno, format!("{what}: {reason}"))
}

/// Sets the length. Beyond what the system can say it is invalid, as QEMU's is a negative one then.
fn resize(file: &File, size: u64) -> Result<(), OpenError> {
    let result = match i64::try_from(size) {
        Ok(_) => file.set_len(size),
        Err(_) => Err(io::Error::from_raw_os_error(libc::EINVAL)),
    };
    result.map_err(|error| failed("Could not resize file", &error))
}

fn fill(
    file: &File,
    size: u64,
    preallocation: Preallocation,
    cancelled: &AtomicBool,
) -> Result<(), OpenError> {
    match preallocation {
        Preallocation::Metadata => Err(OpenError::new(
            libc::ENOTSUP,
            "Unsupported preallocation mode: metadata",
        )),
        Preallocation::Off => {
            resize(file, size)?;
            let first = usize::try_from(size.min(FIRST_BLOCK)).unwrap_or(0);
            // It serves those who ask for it, and is no more than that.
            let _ = file.write_all_at(&ZEROES[..first], 0);
            Ok(())
        }
        Preallocation::Falloc => match size {
            0 => Ok(()),
            _ => rustix::fs::fallocate(file, FallocateFlags::empty(), 0, size).map_err(|errno| {
                failed("Could not preallocate data for the new file", &errno.into())
            }),
        },
        Preallocation::Full => {
            resize(file, size)?;
            let mut left = size;
            let mut file = file;
            while left > 0 && !cancelled.load(Ordering::Relaxed) {
                let chunk =
                    usize::try_from(left).map_or(ZEROES.len(), |left| left.min(ZEROES.len()));
                let wrote = file.write_all(&ZEROES[..chunk]);
                wrote.map_err(|error| failed("Could not write zeros for preallocation", &error))?;
                left -= u64::try_from(chunk).unwrap_or(left);
            }
            let synced = file.sync_all();
            synced.map_err(|error| failed("Could not flush file to disk", &error))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn made(path: &Path, size: u64, preallocation: Preallocation) -> Result<(), String> {
        let going_on = AtomicBool::new(false);
        let name = path.display().to_string();
        let new = NewFile {
            path,
            name: &name,
            opener: None,
            size,
            preallocation,
            nocow: true,
            extent_size_hint: Some(1 << 20),
        };
        let made = create(&new, &going_on);
        made.map(drop).map_err(|error| error.desc)
    }

    #[test]
    fn files_are_made_and_begin_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        for (size, preallocation, space) in [
            (1 << 20, Preallocation::Off, 0..1 << 16),
            (1 << 20, Preallocation::Falloc, 1 << 20..1 << 22),
            (3, Preallocation::Off, 0..1 << 16),
            (1 << 20, Preallocation::Full, 1 << 20..1 << 22),
            (0, Preallocation::Falloc, 0..1),
        ] {
            made(&path, size, preallocation).unwrap();
            let content = std::fs::read(&path).unwrap();
            assert_eq!(u64::try_from(content.len()).unwrap(), size);
            assert!(content.iter().all(|&byte| byte == 0));
            let blocks = path.metadata().unwrap().blocks();
            assert!(
                space.contains(&(512 * blocks)),
                "{preallocation:?}: {blocks}"
            );
            std::fs::write(&path, "something").unwrap();
        }
    }

    #[test]
    fn errors_are_qemus() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        for (size, preallocation, desc) in [
            (
                u64::MAX,
                Preallocation::Off,
                "Could not resize file: Invalid argument",
            ),
            (
                1 << 62,
                Preallocation::Full,
                "Could not resize file: File too large",
            ),
            (
                512,
                Preallocation::Metadata,
                "Unsupported preallocation mode: metadata",
            ),
        ] {
            assert_eq!(made(&path, size, preallocation), Err(desc.to_owned()));
            assert_eq!(path.metadata().unwrap().len(), 0);
        }
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RWXU,
            0,
        )
        .unwrap();
        for path in [&fifo, Path::new("/dev/null")] {
            let desc = format!(
                "Could not create '{}': it is there, and no regular file",
                path.display()
            );
            assert_eq!(made(path, 512, Preallocation::Off), Err(desc));
        }
        // It was an input/output error.
        let nul = made(Path::new("a\0b"), 512, Preallocation::Off).unwrap_err();
        assert!(
            nul.starts_with("Could not create 'a\0b': file name contained"),
            "{nul}"
        );
        let nowhere = Path::new("/nowhere/a");
        let desc = "Could not create '/nowhere/a': No such file or directory";
        assert_eq!(made(nowhere, 512, Preallocation::Off), Err(desc.to_owned()));
    }

    /// Somebody has it open for writing: what he has must not vanish.
    #[test]
    fn an_image_in_use_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, "something").unwrap();
        let fd = File::options().read(true).write(true).open(&path).unwrap();
        let user = Locked::new(fd.into(), "a", true);
        let held = Permissions::WRITE.and(Permissions::RESIZE);
        let shared = Permissions::CONSISTENT_READ;
        user.lock(Access { held, shared }).unwrap();
        let error = made(&path, 512, Preallocation::Off).unwrap_err();
        assert!(error.starts_with("Failed to get "), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"something");
        drop(user);
        made(&path, 512, Preallocation::Off).unwrap();
    }
}
