//! `file` and `host_device`: regular files and block devices, by the engine of the iothread or by its workers
//! ([`engine`]); files that lie in memory, by neither.
//!
//! One descriptor does everything: it holds the image locks ([`lock`]) and does the I/O, so a
//! process that dies keeps others out until its last request has ended. There are locks as long as
//! somebody uses the node, and as many as that takes ([`image_locks`]).
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
mod capabilities;
mod create;
mod deallocation;
mod device_discard;
mod device_size;
mod driver;
mod engine;
mod file_systems;
mod flush;
mod geometry;
mod grow;
mod identity;
mod image_locks;
mod lock;
mod measure;
mod ofd;
mod open;
mod options;
mod probe;
mod resize;
mod retry;
mod status;
mod tail;
mod tail_io;
mod transfer;
mod turns;
mod zero;

use std::ops::Range;
use std::sync::atomic::Ordering;

use block::{
    BoxFuture, Capabilities, Driver, Extent, Io, IoFuture, Limits, NodeInfo, Operation, Result,
};

pub use self::create::{NewFile, Preallocation, create};
pub use self::driver::{FileDriver, Medium};
pub use self::lock::Locked as LockedImage;
pub use self::options::{Aio, Discard, FileOptions, Locking, OpenImage};

impl FileDriver {
    async fn flush(&self, losses_accepted: u32) -> Result<()> {
        if self.cache_no_flush {
            Ok(())
        } else if self.cache_direct {
            (self.flusher)
                .flush_direct(self.fd(), &self.lane, losses_accepted)
                .await
        } else {
            self.flusher
                .flush_buffered(self.fd(), &self.lane, &self.device_size, losses_accepted)
                .await
        }
    }

    fn submit_write<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        let fua = io.fua && !self.cache_no_flush;
        if fua && !self.cache_direct {
            // RWF_DSYNC would consume a failure to write back other pages, and the next flush would
            // not hear of it. So this is a write and a flush.
            return IoFuture::new(async move {
                let result = match self.write(&io.buffers, io.offset, 0).await {
                    Ok(()) => self.flush(io.losses_accepted).await,
                    Err(error) => Err(error),
                };
                result.map_err(|error| self.located(&io, error))
            });
        }
        let flags = if fua { libc::RWF_DSYNC } else { 0 };
        if !self.tail.is_reached(io.offset + io.bytes)
            && self.fits(&io.buffers, io.offset, io.bytes)
            && let Some(entered) = self.serialiser.try_enter_shared()
        {
            // The common case, small enough to be stored inline.
            return IoFuture::new(async move {
                let _entered = entered;
                let result = self.write_raw(&io.buffers, io.offset, flags).await;
                result.map_err(|error| self.located(&io, error))
            });
        }
        IoFuture::new(async move {
            let result = self.write(&io.buffers, io.offset, flags).await;
            result.map_err(|error| self.located(&io, error))
        })
    }
}

impl Driver for FileDriver {
    fn name(&self) -> &'static str {
        self.name
    }

    fn info(&self) -> NodeInfo {
        NodeInfo {
            filename: self.filename.clone(),
            host_file: true,
            extent_size_hint: self.extent_size_hint,
            read_only: self.read_only,
            cache_direct: self.cache_direct,
            cache_no_flush: self.cache_no_flush,
            warning: self.warning.clone(),
            engine: Some(self.engine.clone()),
            ..NodeInfo::default()
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
            origin: 0,
            discard: self.deallocation.discards(),
            unmap_zeroes: self.deallocation.unmaps_zeroes(),
            physical_block: self.geometry.physical_block,
            minimum_io: self.geometry.minimum_io,
            optimal_io: self.geometry.optimal_io,
            alignment_offset: self.geometry.alignment_offset,
            grows_zeroed: self.kind == probe::Kind::Regular
                && !self.is_end_unsure.load(Ordering::Acquire),
        }
    }

    fn submit<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        if io.bytes == 0 && io.op != Operation::Flush {
            return IoFuture::ready(Ok(()));
        }
        match io.op {
            Operation::Read | Operation::Write if io.buffers.len() as u64 != io.bytes => {
                IoFuture::ready(Err(self.mismatched(&io)))
            }
            Operation::Read | Operation::Write if self.is_at_once(&io) => self.transfer_at_once(io),
            Operation::Flush if self.in_memory => {
                let result = self.flush_at_once(io.losses_accepted);
                IoFuture::ready(result.map_err(|error| self.located(&io, error)))
            }
            Operation::Read if self.tail.is_reached(io.offset + io.bytes) => {
                IoFuture::new(async move {
                    let result = self.read_to_tail(&io.buffers, io.offset).await;
                    result.map_err(|error| self.located(&io, error))
                })
            }
            Operation::Read if self.fits(&io.buffers, io.offset, io.bytes) => {
                IoFuture::new(async move {
                    let wanted = io.buffers.len();
                    let result = self.read(&io.buffers, io.offset, wanted).await;
                    result.map_err(|error| self.located(&io, error))
                })
            }
            Operation::Read => IoFuture::new(async move {
                let result = self.read_bounced(&io.buffers, io.offset, io.bytes).await;
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

    fn capabilities(&self) -> Capabilities<'_> {
        Capabilities {
            flush_latch: Some(self),
            cont_blocker: Some(self),
            resize: Some(self),
            reopen: Some(self),
            grow: Some(self),
            image_locks: Some(self),
            identify: Some(self),
            discard_counters: Some(self),
            ..Capabilities::default()
        }
    }

    fn block_status(&self, range: Range<u64>) -> BoxFuture<'_, Result<Vec<Extent>>> {
        self.status(range)
    }
}
