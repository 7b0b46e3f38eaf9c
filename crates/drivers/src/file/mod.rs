//! `file` and `host_device`: regular files and block devices, through io_uring; files that lie in
//! memory, without.
//!
//! One descriptor does everything: it holds the image locks ([`lock`]) and does the I/O, so a
//! process that dies keeps others out until its last request has ended.
//!
//! # What a request can rely on
//!
//! * A read is whole. A file that is shorter than it was has been truncated behind our back: that is
//!   EIO, never zeroes.
//! * No space left is told as such only if that is so: a block device that has shrunk, or is gone,
//!   says the same ([`device_size`]).
//! * A short write is continued. EAGAIN, EINTR, ECANCELED and ENOMEM are tried again for about
//!   100 ms.
//! * With `cache.direct=on` any offset, length and buffer is fine: what O_DIRECT does not take is
//!   copied through aligned memory, and a write that does not fill its blocks reads them first, with
//!   other writes to these blocks kept away.
//! * A node is as long as its file, rounded up to 512 bytes, whatever its length and the storage's
//!   blocks are ([`tail`]).
//! * Durability: a flush is fdatasync(2), force-unit-access is RWF_DSYNC with `cache.direct=on` and a
//!   flush otherwise. `cache.no-flush=on` turns both off. A failed flush of a buffered file is
//!   latched ([`flush`]).
//! * Zeroes are made by fallocate(2) where the storage can, and written where not. Discards are done
//!   only with `discard=unmap`, in whole blocks of the filesystem, and ignored where the storage
//!   cannot do them ([`zero`]).

mod at_once;
mod bounce;
mod device_discard;
mod device_size;
mod flush;
mod geometry;
mod lock;
mod open;
mod probe;
mod resize;
mod retry;
mod serialise;
mod tail;
mod transfer;
mod zero;

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use block::{
    BlockError, DiscardStats, Driver, ErrorKind, Io, IoFuture, Limits, Loss, NodeInfo, Operation,
    Result,
};

use self::bounce::{ALIGNMENT, PIECE_MAX};
use self::device_discard::DeviceDiscard;
use self::device_size::DeviceSize;
use self::flush::Flusher;
use self::geometry::Geometry;
use self::lock::Permissions;
use self::probe::{Deallocates, DirectAlignment, Kind};
use self::resize::node_length;
use self::serialise::Serialiser;
use self::tail::Tail;
use self::zero::Deallocation;
use crate::{OpenError, iov};

/// What happens to discards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Discard {
    /// They do nothing, and write-zeroes never deallocates.
    #[default]
    Ignore,
    /// They give space back.
    Unmap,
}

/// Whether the image is locked against other users.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Locking {
    /// As `On`: Linux always has the locks that this takes.
    #[default]
    Auto,
    /// Locked, or not opened.
    On,
    /// Not locked: whoever else writes to the image destroys it.
    Off,
}

/// Options of [`FileDriver`]. The defaults are QEMU's.
#[derive(Clone, Debug, Default)]
pub struct FileOptions {
    /// Name of the node, for messages.
    pub node_name: Arc<str>,
    /// Path of the image, as it is shown.
    pub filename: String,
    /// The path itself, if that is something else: it need not be UTF-8.
    pub path: Option<PathBuf>,
    /// `cache.direct`: O_DIRECT, past the page cache.
    pub cache_direct: bool,
    /// `cache.no-flush`: nothing is ever made durable.
    pub cache_no_flush: bool,
    /// Open for reading only.
    pub read_only: bool,
    /// Open for reading only if writing is not permitted (EACCES, EPERM, EROFS).
    pub auto_read_only: bool,
    /// What happens to discards.
    pub discard: Discard,
    /// Whether to lock the image.
    pub locking: Locking,
    /// Do not mind writers; only with `read_only`.
    pub force_share: bool,
}

/// See the [module](self).
#[derive(Debug)]
pub struct FileDriver {
    name: &'static str,
    node_name: Arc<str>,
    filename: String,
    fd: OwnedFd,
    kind: Kind,
    read_only: bool,
    cache_direct: bool,
    cache_no_flush: bool,
    /// On tmpfs or ramfs.
    in_memory: bool,
    /// On a server that may be asked for sizes.
    has_server: bool,
    warning: Option<String>,
    length: AtomicU64,
    /// The end of an image that does not fill its last block.
    tail: Tail,
    /// What is locked.
    locks: Option<(Permissions, Permissions)>,
    /// What has been seen of the size of a block device.
    device_size: DeviceSize,
    /// What the storage asks of reads and writes.
    alignment: DirectAlignment,
    /// What it asks of fallocate(2) in whole, so that nothing goes through the page cache that does
    /// not have to.
    zero_align: u32,
    /// Units that are given back.
    discard_align: u32,
    geometry: Geometry,
    serialiser: Serialiser,
    flusher: Flusher,
    deallocation: Deallocation,
}

impl FileDriver {
    /// Opens a regular file.
    ///
    /// # Errors
    ///
    /// In QEMU's words: what is not there, not allowed, not a regular file, or locked by another.
    pub fn open_file(options: FileOptions) -> std::result::Result<Self, OpenError> {
        Self::open("file", Kind::Regular, options)
    }

    /// Opens a block device.
    ///
    /// # Errors
    ///
    /// As [`FileDriver::open_file`].
    pub fn open_host_device(options: FileOptions) -> std::result::Result<Self, OpenError> {
        Self::open("host_device", Kind::Block, options)
    }

    fn open(
        name: &'static str,
        kind: Kind,
        options: FileOptions,
    ) -> std::result::Result<Self, OpenError> {
        let opened = open::open(&options, kind)?;
        let DirectAlignment { request, memory } = opened.alignment;
        if memory as usize > ALIGNMENT || request as usize > PIECE_MAX {
            return Err(OpenError::new(
                libc::EINVAL,
                format!(
                    "'{}' asks for O_DIRECT buffers aligned to {memory} bytes and blocks of \
                     {request} bytes, more than is supported; use cache.direct=off",
                    options.filename
                ),
            ));
        }
        let fd = opened.fd.as_fd();
        let deallocates = if options.discard == Discard::Unmap && !opened.read_only {
            probe::deallocates(fd, &opened.stat)
        } else {
            Deallocates::default()
        };
        let device = match kind {
            Kind::Block if deallocates.discard => {
                let duplicate = fd.try_clone_to_owned().map_err(|error| {
                    OpenError::new(
                        error.raw_os_error().unwrap_or(libc::EMFILE),
                        format!(
                            "Could not duplicate the descriptor of '{}'",
                            options.filename
                        ),
                    )
                })?;
                Some(DeviceDiscard::new(duplicate))
            }
            _ => None,
        };
        let fs_block = match kind {
            Kind::Block => opened.logical_block,
            _ => opened.stat.block_size,
        };
        let in_memory = probe::in_memory(fd, &opened.stat);
        let has_server = probe::has_server(fd);
        let geometry = match kind {
            Kind::Block => geometry::of_device(fd, &opened.stat),
            _ => Geometry::default(),
        };
        let failed = |errno: i32, text: &str| {
            let reason = block::Cause::of_errno(errno).reason();
            OpenError::new(errno, format!("{text} '{}': {reason}", options.filename))
        };
        let length = node_length(kind, opened.length, opened.logical_block)
            .ok_or_else(|| failed(libc::EFBIG, "Could not round up the length of"))?;
        let tail = Tail::new(opened.length.min(length), length, request);
        if !opened.read_only {
            tail.prepare(length, fd, opened.locks).map_err(|error| {
                failed(
                    error.raw_os_error().unwrap_or(libc::EIO),
                    "Could not open the end of the image, through /proc/self/fd, a second time for",
                )
            })?;
        }
        let buffered =
            !options.cache_direct && !opened.read_only && !options.cache_no_flush && !in_memory;
        Ok(Self {
            name,
            warning: buffered.then(|| buffered_warning(&options.filename)),
            node_name: options.node_name,
            filename: options.filename,
            kind,
            read_only: opened.read_only,
            cache_direct: options.cache_direct,
            cache_no_flush: options.cache_no_flush,
            in_memory,
            has_server,
            length: AtomicU64::new(length),
            tail,
            locks: opened.locks,
            device_size: DeviceSize::new(opened.length, kind == Kind::Block && buffered),
            alignment: opened.alignment,
            zero_align: match kind {
                Kind::Block => opened.logical_block,
                _ if options.cache_direct => fs_block,
                _ => 1,
            },
            discard_align: fs_block,
            geometry,
            serialiser: Serialiser::default(),
            flusher: Flusher::default(),
            deallocation: Deallocation::new(deallocates, device),
            fd: opened.fd,
        })
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn length_now(&self) -> u64 {
        self.length.load(Ordering::Acquire)
    }

    #[cold]
    fn located(&self, io: &Io<'_>, error: BlockError) -> BlockError {
        self.explained(io, error)
            .doing(io.op.name())
            .at(&self.node_name, io.offset, io.bytes)
    }

    /// The error, with its cause: of a block device the errno does not tell.
    fn explained(&self, io: &Io<'_>, error: BlockError) -> BlockError {
        if self.kind != Kind::Block {
            return error;
        }
        let asked = self.device_size.ask(self.fd());
        let range = match io.op {
            Operation::Flush => 0..self.length_now(),
            _ => io.offset..io.offset + io.bytes,
        };
        let no_space = error.errno() == libc::ENOSPC;
        if no_space && asked.has_shrunk() || asked.is_gone(&range) {
            return error.because(ErrorKind::BackingGone);
        }
        error
    }

    async fn flush(&self, losses_accepted: u32) -> Result<()> {
        if self.cache_no_flush {
            Ok(())
        } else if self.cache_direct {
            self.flusher.flush_direct(self.fd()).await
        } else {
            self.flusher
                .flush_buffered(self.fd(), &self.device_size, losses_accepted)
                .await
        }
    }

    fn submit_write<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        let fua = io.fua && !self.cache_no_flush;
        if fua && !self.cache_direct {
            // RWF_DSYNC would consume a failure to write back other pages, and the next flush would
            // not hear of it. So this is a write and a flush.
            return IoFuture::new(async move {
                let result = match self.write(io.iov, io.offset, io.bytes, 0).await {
                    Ok(()) => self.flush(io.losses_accepted).await,
                    Err(error) => Err(error),
                };
                result.map_err(|error| self.located(&io, error))
            });
        }
        let flags = if fua { libc::RWF_DSYNC } else { 0 };
        if !self.tail.is_reached(io.offset + io.bytes)
            && self.fits(io.iov, io.offset, io.bytes)
            && let Some(entered) = self.serialiser.try_enter_shared()
        {
            // The common case, small enough to be stored inline.
            return IoFuture::new(async move {
                let _entered = entered;
                let wanted = transfer::index(io.bytes);
                let result = self.write_raw(io.iov, io.offset, wanted, flags).await;
                result.map_err(|error| self.located(&io, error))
            });
        }
        IoFuture::new(async move {
            let result = self.write(io.iov, io.offset, io.bytes, flags).await;
            result.map_err(|error| self.located(&io, error))
        })
    }

    /// The real size of a block device was taken over: what it was before does not count.
    fn size_taken(&self, now: u64) {
        self.device_size.taken(now);
    }
}

fn buffered_warning(filename: &str) -> String {
    format!(
        "cache.direct is off for '{filename}': the page cache accepts writes that the storage may \
         refuse later; then only a flush fails, and a stop policy cannot have the writes done again. \
         Use cache.direct=on"
    )
}

impl Driver for FileDriver {
    fn name(&self) -> &'static str {
        self.name
    }

    fn info(&self) -> NodeInfo {
        NodeInfo {
            filename: self.filename.clone(),
            read_only: self.read_only,
            cache_direct: self.cache_direct,
            cache_no_flush: self.cache_no_flush,
            warning: self.warning.clone(),
        }
    }

    fn actual_size(&self) -> Option<u64> {
        probe::allocated(self.fd(), self.has_server).ok()
    }

    fn length(&self) -> u64 {
        self.length_now()
    }

    fn limits(&self) -> Limits {
        Limits {
            request_alignment: self.alignment.request,
            memory_alignment: self.alignment.memory,
            discard_alignment: self.discard_align.max(self.geometry.discard),
            discard: self.deallocation.discards(),
            unmap_zeroes: self.deallocation.unmaps_zeroes(),
            physical_block: self.geometry.physical_block,
            minimum_io: self.geometry.minimum_io,
            optimal_io: self.geometry.optimal_io,
            alignment_offset: self.geometry.alignment_offset,
        }
    }

    fn submit<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        if io.bytes == 0 && io.op != Operation::Flush {
            return IoFuture::ready(Ok(()));
        }
        debug_assert!(
            !matches!(io.op, Operation::Read | Operation::Write) || iov::total(io.iov) == io.bytes,
            "buffers and length of a request differ"
        );
        match io.op {
            Operation::Read | Operation::Write if self.is_at_once(&io) => self.transfer_at_once(io),
            Operation::Flush if self.in_memory => {
                let result = self.flush_at_once(io.losses_accepted);
                IoFuture::ready(result.map_err(|error| self.located(&io, error)))
            }
            Operation::Read if self.tail.is_reached(io.offset + io.bytes) => {
                IoFuture::new(async move {
                    let result = self.read_to_tail(io.iov, io.offset, io.bytes).await;
                    result.map_err(|error| self.located(&io, error))
                })
            }
            Operation::Read if self.fits(io.iov, io.offset, io.bytes) => {
                IoFuture::new(async move {
                    let wanted = transfer::index(io.bytes);
                    let result = self.read(io.iov, io.offset, wanted).await;
                    result.map_err(|error| self.located(&io, error))
                })
            }
            Operation::Read => IoFuture::new(async move {
                let result = self.read_bounced(io.iov, io.offset, io.bytes).await;
                result.map_err(|error| self.located(&io, error))
            }),
            Operation::Write => self.submit_write(io),
            Operation::Flush => IoFuture::new(async move {
                let result = self.flush(io.losses_accepted).await;
                result.map_err(|error| self.located(&io, error))
            }),
            Operation::Discard if !self.deallocation.discards() => IoFuture::ready(Ok(())),
            Operation::Discard => IoFuture::new(async move {
                let result = self.discard(io.offset, io.bytes).await;
                result.map_err(|error| self.located(&io, error))
            }),
            Operation::WriteZeroes { unmap } => IoFuture::new(async move {
                let result = match self.write_zeroes(io.offset, io.bytes, unmap).await {
                    Ok(()) if io.fua => self.flush(io.losses_accepted).await,
                    result => result,
                };
                result.map_err(|error| self.located(&io, error))
            }),
        }
    }

    fn cont_blocker(&self) -> Option<String> {
        let errno = self.flusher.latched()?.errno;
        Some(format!(
            "Node '{node}' has lost data: a flush failed ({reason}), and the page cache has dropped \
             what it could not write. x-node-accept-loss with node-name '{node}' accepts the loss \
             and fails the flushes that are held",
            node = self.node_name,
            reason = block::Cause::of_errno(errno).reason(),
        ))
    }

    fn latched(&self) -> Option<Loss> {
        self.flusher.latched()
    }

    fn latch(&self, loss: Loss) {
        self.flusher.latch(loss);
    }

    fn accept_loss(&self, upto: u32) -> bool {
        self.flusher.clear(upto)
    }

    fn resize(&self, length: u64) -> Result<()> {
        self.change_length(length)
    }

    fn resized_length(&self, length: u64) -> Result<u64> {
        self.length_after(length)
    }

    fn discard_stats(&self) -> Option<DiscardStats> {
        Some(self.deallocation.stats())
    }

    fn data_extents(&self, from: u64, each: &mut dyn FnMut(Range<u64>)) -> Result<()> {
        for extent in probe::data_extents(self.fd(), from)? {
            each(extent?);
        }
        Ok(())
    }
}
