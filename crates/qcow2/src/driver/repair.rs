//! An image that was not closed in order is repaired before it is written: its refcounts may be behind.
//!
//! That is what `standfast image check -r all` does ([`crate::check::repair()`]), through the node below. Nothing else
//! uses the image meanwhile: the locks that writing takes have been taken. Being cut off at any write does no harm,
//! because the dirty bit goes last, when all else is durable; whoever opens the image next begins anew.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;

use block::{BlockError, Io, OwnedBuffer, Result};

use super::base::Base;
use super::errand::Desk;
use crate::check::{Fix, Fixed, Limits, RepairError, repair};
use crate::format::HostOffset;
use crate::storage::{ReadAt, WriteAt};

/// Most bytes of one request.
const PIECE: usize = 1 << 20;

/// What of a repair that has failed is told in the log.
const FINDINGS_MAX: usize = 16;

/// Repairs the image in `base.file`, which may be written and is used by nobody else. May take as long as the storage
/// likes: all tables are read.
///
/// # Errors
/// The storage's, or something is wrong that no refcount mends. The image is not clean then, and must not be written.
pub fn repair_dirty(base: &Arc<Base>) -> Result<()> {
    let name = &base.name;
    tracing::warn!(
        "node '{name}': the image was not closed cleanly: its reference counts are repaired before it is written"
    );
    let mut storage = Below::new(base)?;
    let limits = Limits {
        findings: FINDINGS_MAX,
        ..Limits::default()
    };
    let failed = |errno, why: String| {
        let text = format!(
            "the image was not closed cleanly, and could not be repaired: {why} (set read-only=on to read it as it is)"
        );
        BlockError::new(errno, text).at(name, 0, 0)
    };
    let fixed = repair(&mut storage, Fix::All, &limits).map_err(|error| {
        let below = storage.failure.borrow_mut().take();
        match (error, below) {
            (RepairError::Storage(_) | RepairError::Open(_), Some(below)) => {
                failed(below.errno(), below.to_string())
            }
            (error, _) => failed(libc::EIO, error.to_string()),
        }
    })?;
    let Fixed { before, after } = &fixed;
    let left = after.corruptions.saturating_add(after.errors);
    if left > 0 {
        for finding in &after.findings {
            tracing::warn!("node '{name}': {finding}");
        }
        if let Some(below) = storage.failure.take() {
            return Err(failed(below.errno(), below.to_string()));
        }
        let why = format!("{left} errors are left: see qemu-img check -r all");
        return Err(failed(libc::EIO, why));
    }
    match before.corruptions + before.leaks {
        0 => tracing::info!("node '{name}': no reference count was wrong"),
        _ => tracing::info!(
            "node '{name}': its reference counts are right again: {} were too low, {} clusters were in no use",
            fixed.corruptions(),
            fixed.leaks()
        ),
    }
    Ok(())
}

/// The node below, for code that waits for each request.
pub struct Below {
    base: Arc<Base>,
    desk: Desk,
    /// The first failure.
    failure: RefCell<Option<BlockError>>,
}

impl Below {
    pub fn new(base: &Arc<Base>) -> io::Result<Self> {
        Ok(Self {
            desk: Desk::new(base.nodes())?,
            base: Arc::clone(base),
            failure: RefCell::default(),
        })
    }

    /// What has failed first.
    pub fn into_failure(self) -> Option<BlockError> {
        self.failure.into_inner()
    }

    fn wait<R: Send + 'static, F: Future<Output = Result<R>> + 'static>(
        &self,
        errand: impl FnOnce(Arc<Base>) -> F + Send + 'static,
    ) -> io::Result<R> {
        let base = Arc::clone(&self.base);
        let done = self.desk.wait(move || errand(base))?;
        done.map_err(|error| {
            let errno = error.errno();
            self.failure.borrow_mut().get_or_insert(error);
            io::Error::from_raw_os_error(errno)
        })
    }
}

impl ReadAt for Below {
    fn length(&self) -> io::Result<u64> {
        Ok(self.base.file.length())
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        for (number, piece) in (0..).zip(into.chunks_mut(PIECE)) {
            let (at, bytes) = (HostOffset(offset + number * PIECE as u64), piece.len());
            let read = self.wait(move |base| async move { base.read(at, bytes).await })?;
            piece.copy_from_slice(&read);
        }
        Ok(())
    }
}

impl WriteAt for Below {
    fn write_at(&mut self, offset: u64, from: &[u8]) -> io::Result<()> {
        for (number, piece) in (0..).zip(from.chunks(PIECE)) {
            let mut buffer = OwnedBuffer::new(piece.len()).map_err(io::Error::other)?;
            buffer.copy_from_slice(piece);
            let at = offset + number * PIECE as u64;
            self.wait(move |base| async move { write(&base, at, buffer).await })?;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.wait(|base| async move { base.file.submit(Io::flush()).await })
    }
}

async fn write(base: &Base, at: u64, mut buffer: OwnedBuffer) -> Result<()> {
    let io = Io::write(at, buffer.lend());
    if at + io.bytes <= base.file.length() {
        return base.file.submit(io).await;
    }
    // The edge is not granted what its lock already stands for, so that it must not grow by it.
    let node = base.file.node();
    match node.driver().capabilities().grow {
        Some(grow) if !node.read_only() => grow.submit_beyond(io).await,
        _ => {
            let text =
                "new reference counts need room behind the end of the image, which does not grow";
            Err(BlockError::new(libc::ENOSPC, text).at(node.name(), at, io.bytes))
        }
    }
}

#[cfg(test)]
mod tests;
