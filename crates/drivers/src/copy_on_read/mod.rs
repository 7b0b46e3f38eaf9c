//! `copy-on-read`: a filter that writes what is read from behind its child (a backing node) into the child, so that it is
//! there the next time.
//!
//! What is copied was there before: nobody sees that it is copied, and no flush has to wait for it. A copy that cannot be
//! written is no failure of the read, which has its data; the log says so, and for a moment nothing is copied.
//!
//! # Nothing old comes back
//!
//! Between the read of what is behind and the write of the copy nobody else writes there: whoever copies is alone in these
//! clusters, and what changes them waits for it, or is waited for ([`RangeLock`]). Only what goes through this node is kept in
//! order so, and therefore nobody else may write to the child.

mod bottom;
mod copy;
mod pause;

use std::ops::Range;
use std::sync::Arc;

use block::driver::park;
use block::range_lock::{Mode, RangeLock};
use block::{
    Access, Activate, BlockError, Capabilities, Child, Copies, Driver, Grow, Io, IoFuture, Node,
    NodeInfo, Operation, Origin, Permissions, Result,
};

use self::bottom::Bottom;
use self::pause::Pause;
use crate::{OpenError, pseudo_filename};

/// Options of [`CopyOnRead`].
#[derive(Clone, Debug)]
pub struct CopyOnReadOptions {
    /// Name of the node, for messages.
    pub node_name: Arc<str>,
    /// The child.
    pub file: Arc<Node>,
    /// The name of the lowest node, behind the child, that is copied from; none: all are.
    pub bottom: Option<String>,
    /// How the node is opened, as far as that is not the child's concern.
    pub info: NodeInfo,
}

/// See the [module](self).
#[derive(Debug)]
pub struct CopyOnRead {
    name: Arc<str>,
    file: Child,
    bottom: Option<Bottom>,
    /// Who changes what is there, and who copies.
    order: RangeLock,
    pause: Pause,
    copies: Copies,
    info: NodeInfo,
}

impl CopyOnRead {
    /// Opens the filter.
    ///
    /// # Errors
    /// A `bottom` that is not behind the child, or is a filter.
    pub fn new(options: CopyOnReadOptions) -> std::result::Result<Self, OpenError> {
        let bottom = options.bottom.map(|bottom| {
            let found = Bottom::find(&options.node_name, &options.file, &bottom);
            found.map_err(|text| OpenError::new(libc::EINVAL, text))
        });
        Ok(Self {
            file: Child::of(&options.node_name, "file", options.file),
            bottom: bottom.transpose()?,
            name: options.node_name,
            order: RangeLock::default(),
            pause: Pause::default(),
            copies: Copies::default(),
            info: options.info,
        })
    }

    /// Where the first bytes of `range` come from, as far as that is of interest: what is behind the bottom stays there, as
    /// if it were the child's own.
    fn shown(&self, range: Range<u64>) -> Option<Origin> {
        match &self.bottom {
            None => self.file.origin(range),
            Some(bottom) => bottom.shown(&self.file.node(), range),
        }
    }

    /// Whether nothing of `range` has to be copied. None: that is not known.
    fn is_own(&self, range: Range<u64>) -> Option<bool> {
        let mut at = range.start;
        while at < range.end {
            let origin = self.shown(at..range.end)?;
            if !origin.own {
                return Some(false);
            }
            at += origin.bytes.max(1);
        }
        Some(true)
    }

    /// What changes the bytes of `io`.
    fn change<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        let range = io.offset..io.offset.saturating_add(io.bytes);
        IoFuture::new(async move {
            let _held = park::until(self.order.lock(range, Mode::Shared)).await;
            self.file.submit(io).await
        })
    }
}

impl Driver for CopyOnRead {
    fn name(&self) -> &'static str {
        "copy-on-read"
    }

    fn info(&self) -> NodeInfo {
        NodeInfo {
            // As with QEMU the bottom is not part of it.
            filename: pseudo_filename::of("copy-on-read", &[], Some(&self.file)),
            child_offset: Some(0),
            filter: true,
            ..self.info.clone()
        }
    }

    fn filtered(&self) -> Option<&Child> {
        Some(&self.file)
    }

    fn length(&self) -> u64 {
        self.file.length()
    }

    fn submit<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        match io.op {
            Operation::Flush => self.file.submit(io),
            Operation::Read => {
                let range = io.offset..io.offset.saturating_add(io.bytes);
                let copies = !self.copies.have_ended() && !self.pause.is_on();
                if !copies || self.is_own(range) == Some(true) {
                    return self.file.submit(io);
                }
                IoFuture::new(Box::pin(park::never(self.read(io))))
            }
            Operation::Write | Operation::WriteZeroes { .. } | Operation::Discard => {
                self.change(io)
            }
        }
    }

    /// It writes whether its users do or not, and nobody else does: not by another way.
    fn child_access(&self, _child: &Child, above: Access) -> Access {
        Access {
            held: above.held.and(Permissions::WRITE_UNCHANGED),
            shared: above.shared.without(Permissions::WRITE),
        }
    }

    fn capabilities(&self) -> Capabilities<'_> {
        Capabilities {
            resize: Some(&self.file),
            grow: Some(self),
            activate: self.bottom.is_some().then_some(self),
            copies: Some(&self.copies),
            ..Capabilities::default()
        }
    }
}

/// What reaches beyond the end is the child's business.
impl Grow for CopyOnRead {
    fn submit_beyond<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        self.change(io)
    }
}

impl Activate for CopyOnRead {
    /// The bottom stays where it is.
    fn activate(&self, _above: Access) -> Result<()> {
        let moved = self.bottom.as_ref();
        let moved = moved.and_then(|bottom| bottom.check(&self.file.node()).err());
        moved.map_or(Ok(()), |text| Err(BlockError::new(libc::EPERM, text)))
    }
}

#[cfg(test)]
mod tests;
