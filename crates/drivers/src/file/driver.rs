//! An image that is in use: what is known of it, and how it is opened.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use block::driver::owned::{ALIGNMENT, PIECE_MAX};
use block::range_lock::{RangeLock, Serialiser};
use block::{BlockError, ErrorKind, Image, ImageId, Io, NodeEngine, OneBeside, Operation};
use iothread::ops::Lane;

use super::deallocation::Deallocation;
use super::device_discard::DeviceDiscard;
use super::device_size::DeviceSize;
use super::engine::Chosen;
use super::flush::Flusher;
use super::geometry::{self, Geometry};
use super::identity;
use super::lock::Locked;
use super::measure::Length;
use super::open;
use super::options::{Discard, FileOptions, Locking};
use super::probe::{self, Deallocates, DirectAlignment, Kind};
use super::tail::Tail;
use super::turns;
use crate::OpenError;

/// See the [module](super).
#[derive(Debug)]
pub struct FileDriver {
    pub(super) name: &'static str,
    pub(super) node_name: Arc<str>,
    pub(super) filename: String,
    pub(super) image: ImageId,
    /// Which image it is, as guests may be told again.
    pub(super) identity: Image,
    pub(super) kind: Kind,
    pub(super) read_only: bool,
    pub(super) locking: Locking,
    pub(super) force_share: bool,
    /// Whether the node is in use: what is known of the length of the image is as of then.
    pub(super) is_used: AtomicBool,
    pub(super) cache_direct: bool,
    pub(super) cache_no_flush: bool,
    /// On tmpfs or ramfs.
    pub(super) in_memory: bool,
    /// On a server that may be asked for sizes.
    pub(super) has_server: bool,
    /// What the file system had been told when it was opened.
    pub(super) extent_size_hint: Option<u32>,
    pub(super) warning: Option<String>,
    pub(super) length: AtomicU64,
    /// What has been seen of the size of a block device.
    pub(super) device_size: DeviceSize,
    /// What the storage asks of reads and writes.
    pub(super) alignment: DirectAlignment,
    /// What it asks of fallocate(2) in whole, so that nothing goes through the page cache that does
    /// not have to.
    pub(super) zero_align: u32,
    /// Units that are given back.
    pub(super) discard_align: u32,
    pub(super) geometry: Geometry,
    pub(super) serialiser: Serialiser,
    pub(super) flusher: Flusher,
    pub(super) deallocation: Deallocation,
    /// The end of an image that does not fill its last block.
    pub(super) tail: Tail,
    /// Keeps what makes the image longer, and does not fit its blocks, apart from what else is at its end.
    pub(super) growth: RangeLock,
    /// Something that was to make the file longer has failed: what is behind the end that we know may be anything.
    pub(super) is_end_unsure: AtomicBool,
    /// Whether it can be made longer ahead of what is written.
    pub(super) reserves: AtomicBool,
    /// Its operations, on all iothreads.
    pub(super) lane: Lane,
    /// What makes them.
    pub(super) engine: NodeEngine,
    /// Where the storage is asked what may take long.
    pub(super) beside: OneBeside,
    /// Dropped after `deallocation`, which waits for what it has begun: with it go the locks.
    pub(super) fd: Locked,
}

/// What an image lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Medium {
    /// A regular file (`file`).
    File,
    /// A block device (`host_device`).
    HostDevice,
}

impl Medium {
    fn kind(self) -> Kind {
        match self {
            Self::File => Kind::Regular,
            Self::HostDevice => Kind::Block,
        }
    }

    fn driver_name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::HostDevice => "host_device",
        }
    }
}

impl FileDriver {
    /// Opens an image beside, however long the storage takes, when others that open it have ended. If the
    /// future is dropped, what it brings in the end is given back.
    ///
    /// Until somebody uses the node ([`block::ImageLocks`]) the image is in nobody's way: it is not locked,
    /// nothing is written, and others may change it.
    ///
    /// # Errors
    ///
    /// As [`FileDriver::open_file`]; if there is no thread for it.
    pub async fn open(medium: Medium, options: FileOptions) -> Result<Self, OpenError> {
        let no_thread = |error: std::io::Error| {
            let errno = error.raw_os_error().unwrap_or(libc::EAGAIN);
            let reason = block::Cause::of_errno(errno).reason();
            OpenError::new(errno, format!("No thread to open an image with: {reason}"))
        };
        let path = options.path().to_owned();
        let made = turns::run(&path, move || Self::open_here(medium, options)).await;
        made.map_err(no_thread)?
    }

    /// Opens a regular file, on this thread.
    ///
    /// # Errors
    ///
    /// In QEMU's words: what is not there, not allowed, or not a regular file.
    pub fn open_file(options: FileOptions) -> Result<Self, OpenError> {
        Self::open_here(Medium::File, options)
    }

    /// Opens a block device, on this thread.
    ///
    /// # Errors
    ///
    /// As [`FileDriver::open_file`].
    pub fn open_host_device(options: FileOptions) -> Result<Self, OpenError> {
        Self::open_here(Medium::HostDevice, options)
    }

    fn open_here(medium: Medium, options: FileOptions) -> Result<Self, OpenError> {
        let (name, kind) = (medium.driver_name(), medium.kind());
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
        let identity = identity::of(fd, &opened.stat, &options.filename);
        let chosen = Chosen::of(&options, fd, &opened.stat)?;
        let deallocates = match options.discard {
            Discard::Unmap if opened.read_only => Deallocates::default(),
            Discard::Unmap if kind == Kind::Block => probe::deallocates(fd, &opened.stat),
            // To ask is to change it: that is for whoever writes.
            Discard::Unmap => Deallocates {
                discard: true,
                zeroes: true,
            },
            Discard::Ignore => Deallocates::default(),
        };
        let ask = kind != Kind::Block && deallocates.discard;
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
        let extent_size_hint = probe::extent_size_hint(fd, &opened.stat);
        let geometry = match kind {
            Kind::Block => geometry::of_device(fd, &opened.stat),
            _ => Geometry::default(),
        };
        let length = Length::of(fd, kind, opened.logical_block, &options.filename)?;
        let tail = Tail::new(length.end(), length.node, request);
        let buffered =
            !options.cache_direct && !opened.read_only && !options.cache_no_flush && !in_memory;
        let locks = options.locking != Locking::Off;
        let driver = Self {
            name,
            warning: buffered.then(|| buffered_warning(&options.filename)),
            node_name: options.node_name,
            fd: Locked::new(opened.fd, &options.filename, locks),
            filename: options.filename,
            image: opened.stat.image,
            identity,
            kind,
            read_only: opened.read_only,
            locking: options.locking,
            force_share: options.force_share,
            is_used: AtomicBool::new(false),
            cache_direct: options.cache_direct,
            cache_no_flush: options.cache_no_flush,
            in_memory,
            has_server,
            extent_size_hint,
            length: AtomicU64::new(length.node),
            tail,
            device_size: DeviceSize::new(length.image, kind == Kind::Block && buffered),
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
            deallocation: Deallocation::new(deallocates, device, ask),
            growth: RangeLock::default(),
            is_end_unsure: AtomicBool::new(false),
            reserves: AtomicBool::new(true),
            lane: chosen.lane,
            engine: chosen.shown,
            beside: OneBeside::default(),
        };
        driver.prepare_tail(length.node)?;
        Ok(driver)
    }

    /// The node is to be `length` bytes long, and may be written.
    pub(super) fn prepare_tail(&self, length: u64) -> Result<(), OpenError> {
        if self.read_only {
            return Ok(());
        }
        let failed = |error| {
            OpenError::system(
                "Could not open the end of the image, through /proc/self/fd, a second time for",
                &self.filename,
                &error,
            )
        };
        self.tail.prepare(length, &self.fd).map_err(failed)
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(super) fn length_now(&self) -> u64 {
        self.length.load(Ordering::Acquire)
    }

    /// A mistake of whoever has sent it: nothing may be moved beyond the range that was checked.
    #[cold]
    pub(super) fn mismatched(&self, io: &Io<'_>) -> BlockError {
        let text = format!(
            "{} bytes of memory for a request of {}",
            io.buffers.len(),
            io.bytes
        );
        self.located(io, BlockError::new(libc::EINVAL, text))
    }

    #[cold]
    pub(super) fn located(&self, io: &Io<'_>, error: BlockError) -> BlockError {
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

    /// The real size of a block device was taken over: what it was before does not count.
    pub(super) fn size_taken(&self, now: u64) {
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
