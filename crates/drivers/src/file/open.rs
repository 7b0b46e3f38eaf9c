//! Opening an image, with QEMU's words where it fails.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::OFlags;

use super::options::FileOptions;
use super::probe::{self, DirectAlignment, Kind, Stat};
use crate::OpenError;

/// An image that is open. Nothing is locked, and nothing is written yet.
#[derive(Debug)]
pub struct Opened {
    /// The descriptor that does the I/O.
    pub fd: OwnedFd,
    /// What it is.
    pub stat: Stat,
    /// Whether it could only be opened for reading.
    pub read_only: bool,
    /// What requests have to fit; all ones without O_DIRECT.
    pub alignment: DirectAlignment,
    /// Granularity of fallocate on a block device; 1 for a file.
    pub logical_block: u32,
}

/// Opens, checks, and finds out what requests have to fit.
pub fn open(options: &FileOptions, wanted: Kind) -> Result<Opened, OpenError> {
    let name = &options.filename;
    if options.force_share && !options.read_only {
        return Err(OpenError::new(
            libc::EINVAL,
            "force-share=on can only be used with read-only images",
        ));
    }
    let (fd, read_only) = open_descriptor(options)?;
    let failed = |what: &str, error: io::Error| {
        OpenError::system(&format!("Could not {what}"), name, &error)
    };
    let stat = probe::stat(fd.as_fd()).map_err(|error| failed("stat", error))?;
    if stat.kind != wanted {
        return Err(OpenError::new(
            libc::EINVAL,
            match wanted {
                Kind::Block => format!(
                    "'host_device' driver requires '{name}' to be either a character or block \
                     device"
                ),
                _ => format!("'file' driver requires '{name}' to be a regular file"),
            },
        ));
    }
    // O_NONBLOCK was only to keep open() from waiting for the other end of a FIFO; with it io_uring
    // would fail requests with EAGAIN instead of waiting for the storage.
    clear_nonblock(&fd).map_err(|error| failed("set the flags of", error))?;
    let alignment = if options.cache_direct {
        probe::direct_alignment(fd.as_fd(), &stat)
            .map_err(|error| failed("find the O_DIRECT alignment of", error))?
    } else {
        DirectAlignment {
            request: 1,
            memory: 1,
        }
    };
    let logical_block = match stat.kind {
        Kind::Block => probe::logical_block_size(fd.as_fd())
            .map_err(|error| failed("get block size of", error))?,
        _ => 1,
    };
    Ok(Opened {
        fd,
        stat,
        read_only,
        alignment,
        logical_block,
    })
}

fn open_descriptor(options: &FileOptions) -> Result<(OwnedFd, bool), OpenError> {
    let name = &options.filename;
    let mut writable = !options.read_only;
    let mut error = match try_open(options, writable, options.cache_direct) {
        // It can be opened for writing, and then refuses to be written.
        Ok(fd) if writable && probe::is_write_protected(fd.as_fd()) => {
            if !options.auto_read_only {
                return Err(write_protected(name));
            }
            io::Error::from_raw_os_error(libc::EACCES)
        }
        Ok(fd) => return Ok((fd, options.read_only)),
        Err(error) => error,
    };
    let refused = matches!(
        error.raw_os_error(),
        Some(libc::EACCES | libc::EROFS | libc::EPERM)
    );
    if options.auto_read_only && writable && refused {
        match try_open(options, false, options.cache_direct) {
            Ok(fd) => return Ok((fd, true)),
            Err(other) => error = other,
        }
        writable = false;
    }
    let errno = error.raw_os_error().unwrap_or(libc::EINVAL);
    if errno == libc::EINVAL && options.cache_direct && try_open(options, writable, false).is_ok() {
        return Err(OpenError::new(
            errno,
            format!("Could not open '{name}': filesystem does not support O_DIRECT"),
        ));
    }
    let reason = block::strerror(&error);
    let text = match &options.opener {
        Some(opener) => opener.failed(writable, &reason),
        None => format!("Could not open '{name}': {reason}"),
    };
    Err(OpenError::new(errno, text))
}

fn write_protected(name: &str) -> OpenError {
    OpenError::new(
        libc::EACCES,
        "The device is not writable: Permission denied",
    )
    .hint(format!(
        "'{name}' is read-only for the kernel ('blockdev --getro'): make it writable, or give \
         read-only=on or auto-read-only=on"
    ))
}

fn try_open(options: &FileOptions, writable: bool, direct: bool) -> io::Result<OwnedFd> {
    if let Some(opener) = &options.opener {
        return opener.open(writable, direct);
    }
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY | if direct { libc::O_DIRECT } else { 0 };
    OpenOptions::new()
        .read(true)
        .write(writable)
        .custom_flags(flags)
        .open(options.path())
        .map(OwnedFd::from)
}

fn clear_nonblock(fd: &OwnedFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    rustix::fs::fcntl_setfl(fd, flags - OFlags::NONBLOCK)?;
    Ok(())
}
