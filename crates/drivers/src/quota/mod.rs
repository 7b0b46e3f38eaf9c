//! `quota`: a filter that limits how many bytes its child allocates, as a thin volume would.
//!
//! A write that would allocate more than the limit fails with ENOSPC, wholly and before anything of
//! it is written. When the limit is raised ([`AllocationLimit::set_quota`]) it can be done again. The limit
//! may be lowered below what is allocated: then only writes that allocate nothing go.
//!
//! # What counts
//!
//! Space is accounted in granules of 4 KiB of the node's own offsets. What is allocated when the
//! node is opened comes from the child's block status; where a child does not know it, everything
//! counts. A granule that a discard or an unmapping write-zeroes has covered is given back once that
//! has succeeded, if the child really deallocates (`discard=unmap`). Write-zeroes without unmap
//! allocates, as it does on a filesystem. What a parent writes beyond the end makes the child longer, and
//! counts like all else; what it leaves out before that is a hole.
//!
//! The account is one for all iothreads and taken under a short lock, before the request goes to
//! the child; reads and flushes do not touch it. When in doubt (a write that overlaps a discard, a
//! request that is dropped half way, a child that got longer and does not say what it has there) a
//! granule counts as allocated. A request that a node below has parked has not begun, and counts as nothing.

mod account;
mod bitmap;
mod books;
mod grow;
mod reservation;

use std::ops::Range;
use std::sync::Arc;

use block::{
    Access, Activate, AllocationLimit, BlockError, Capabilities, Child, Driver, Extent, Io,
    IoFuture, Node, NodeInfo, Operation, Permissions, Resize, Result,
};
use parking_lot::MutexGuard;

use self::account::Account;
pub use self::account::GRANULARITY;
use self::books::Books;
use self::reservation::{Reserved, Wanted};
use crate::OpenError;

/// Longest child in bytes; the account of a node that long takes 64 MiB, and up to 2 GiB when
/// allocated granules and others alternate.
pub const LENGTH_MAX: u64 = 64 << 40;

/// Options of [`Quota`].
#[derive(Clone, Debug)]
pub struct QuotaOptions {
    /// Name of the node, for messages.
    pub node_name: Arc<str>,
    /// The child.
    pub file: Arc<Node>,
    /// Bytes that may be allocated; counts in whole granules.
    pub limit: u64,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Quota {
    file: Child,
    books: Books,
}

/// The granules that a range touches.
fn touched(range: &Range<u64>) -> Range<u64> {
    range.start / GRANULARITY..range.end.div_ceil(GRANULARITY)
}

/// The granules that a range covers wholly.
fn covered(range: &Range<u64>) -> Range<u64> {
    let start = range.start.div_ceil(GRANULARITY);
    start..(range.end / GRANULARITY).max(start)
}

impl Quota {
    /// Opens the filter; asks the child where its data is, which may take as long as the storage likes.
    ///
    /// # Errors
    ///
    /// A child that is too long, or that cannot tell.
    pub async fn open(options: QuotaOptions) -> std::result::Result<Self, OpenError> {
        let QuotaOptions {
            node_name,
            file,
            limit,
        } = options;
        let length = file.driver().length();
        check_length(length).map_err(|text| OpenError::new(libc::EFBIG, text))?;
        let quota = Self {
            file: Child::of(&node_name, "file", file),
            books: Books::new(node_name, Account::new(limit, length.div_ceil(GRANULARITY))),
        };
        quota.note_allocated(0).await.map_err(|error| {
            OpenError::new(
                error.errno(),
                format!(
                    "Could not find out what node '{}' has allocated: {error}",
                    quota.file.name()
                ),
            )
        })?;
        Ok(quota)
    }

    /// Accounts what the child has from byte `from` on. Whoever asks for the account meanwhile does not
    /// wait for the storage.
    async fn note_allocated(&self, from: u64) -> Result<()> {
        let length = self.file.length();
        let note = |at, extent: &Extent| {
            if extent.data {
                let granules = touched(&(at..at + extent.bytes));
                self.account().note_allocated(granules);
            }
        };
        self.file.extents(from..length, note).await
    }

    fn account(&self) -> MutexGuard<'_, Account> {
        self.books.account()
    }

    /// Whether the child gives the space of what this covers back.
    fn deallocates(&self, op: Operation) -> bool {
        let limits = self.file.limits();
        match op {
            Operation::Discard => limits.discard,
            Operation::WriteZeroes { unmap } => unmap && limits.unmap_zeroes,
            _ => false,
        }
    }

    async fn allocating(&self, io: Io<'_>) -> Result<()> {
        let wanted = Wanted::write(touched(&(io.offset..io.offset + io.bytes)));
        let mut reserved = Reserved::new(&self.books, wanted);
        let result = reserved.submit(&self.file, io).await;
        reserved.end(result.is_ok(), false);
        result
    }

    /// A discard, or a write-zeroes that may unmap, to a child that deallocates.
    async fn deallocating(&self, io: Io<'_>) -> Result<()> {
        let range = io.offset..io.offset + io.bytes;
        // The child deallocates whole units of its own only, and writes zeroes to what is left over
        // at both ends.
        let limits = self.file.limits();
        let unit = u64::from(limits.discard_alignment).max(GRANULARITY);
        let start = (range.start + limits.origin).next_multiple_of(unit) - limits.origin;
        let end = ((range.end + limits.origin) & !(unit - 1)).saturating_sub(limits.origin);
        let inner = covered(&(start..end.max(start)));
        let zeroes = io.op != Operation::Discard;
        let all = touched(&range);
        let writes = match (zeroes, inner.is_empty()) {
            (false, _) => [0..0, 0..0],
            (true, true) => [all, 0..0],
            (true, false) => [all.start..inner.start, inner.end..all.end],
        };
        let discard = inner.clone();
        let mut reserved = Reserved::new(&self.books, Wanted { writes, discard });
        let result = reserved.submit(&self.file, io).await;
        // A child that has found out only now that it cannot deallocate has written zeroes.
        let deallocates = self.deallocates(io.op);
        reserved.end(result.is_ok(), result.is_ok() && deallocates);
        if zeroes && !deallocates {
            self.account().note_allocated(inner);
        }
        result
    }
}

fn check_length(length: u64) -> std::result::Result<(), String> {
    if length > LENGTH_MAX {
        return Err(format!(
            "quota supports children of up to {LENGTH_MAX} bytes, not {length}"
        ));
    }
    Ok(())
}

impl Driver for Quota {
    fn name(&self) -> &'static str {
        "quota"
    }

    fn info(&self) -> NodeInfo {
        self.file.info().filtered()
    }

    fn filtered(&self) -> Option<&Child> {
        Some(&self.file)
    }

    fn length(&self) -> u64 {
        self.file.length()
    }

    fn submit<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        match io.op {
            Operation::Read | Operation::Flush => self.file.submit(io),
            _ if io.bytes == 0 => self.file.submit(io),
            _ if self.deallocates(io.op) => IoFuture::new(self.deallocating(io)),
            Operation::Discard => self.file.submit(io),
            Operation::Write | Operation::WriteZeroes { .. } => IoFuture::new(self.allocating(io)),
        }
    }

    /// What a child has beyond its former end would be counted anew by each write: nobody else resizes it.
    fn child_access(&self, _child: &Child, above: Access) -> Access {
        Access {
            shared: above.shared.without(Permissions::RESIZE),
            ..above
        }
    }

    fn capabilities(&self) -> Capabilities<'_> {
        Capabilities {
            resize: Some(self),
            grow: Some(self),
            quota: Some(self),
            write_threshold: Some(&self.books.threshold),
            activate: Some(self),
            ..Capabilities::default()
        }
    }
}

impl Activate for Quota {
    /// Another child has allocated something else.
    fn activate(&self, _above: Access) -> Result<()> {
        let length = self.file.length();
        check_length(length).map_err(|text| BlockError::new(libc::EFBIG, text))?;
        let mut found = Account::new(0, length.div_ceil(GRANULARITY));
        let note = |at, extent: &Extent| {
            if extent.data {
                found.note_allocated(touched(&(at..at + extent.bytes)));
            }
        };
        pollster::block_on(self.file.extents(0..length, note))?;
        // Until all is known it is the former one's: if this fails, so it stays.
        let mut account = self.account();
        found.set_limit(account.limit());
        *account = found;
        Ok(())
    }
}

impl Resize for Quota {
    fn resized_length(&self, length: u64) -> Result<u64> {
        let length = self.file.node().resized_length(length)?;
        check_length(length).map_err(|text| BlockError::new(libc::EFBIG, text))?;
        Ok(length)
    }

    fn resize(&self, length: u64) -> Result<()> {
        self.resized_length(length)?;
        let file = self.file.node();
        let driver = file.driver();
        let before = driver.length();
        file.resize(length)?;
        let length = driver.length();
        self.account().resize(length.div_ceil(GRANULARITY));
        // What the child has beyond its old end may be allocated already, on a device for instance. If it
        // does not say, all of it is: it is that long by now, so this is no failure.
        if pollster::block_on(self.note_allocated(before)).is_err() && before < length {
            self.account().note_allocated(touched(&(before..length)));
        }
        Ok(())
    }
}

impl AllocationLimit for Quota {
    fn set_quota(&self, limit: u64) -> Result<u64> {
        let mut account = self.account();
        account.set_limit(limit);
        Ok(account.allocated())
    }

    fn quota(&self) -> (u64, u64) {
        let account = self.account();
        (account.limit(), account.allocated())
    }
}
