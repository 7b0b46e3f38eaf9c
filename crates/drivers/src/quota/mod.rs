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
//! granule counts as allocated.

mod account;
mod bitmap;
mod grow;

use std::ops::Range;
use std::sync::Arc;

use block::driver::park;
use block::{
    Access, Activate, AllocationLimit, BlockError, BoxFuture, Capabilities, Child, DetectZeroes,
    Driver, Extent, Io, IoFuture, Limits, Node, NodeInfo, Operation, Permissions, Resize, Result,
    WriteThreshold,
};
use parking_lot::{Mutex, MutexGuard};

pub use self::account::GRANULARITY;
use self::account::{Account, Ticket};
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
    node_name: Arc<str>,
    file: Child,
    account: Mutex<Account>,
    threshold: WriteThreshold,
}

/// The granules that a range touches.
fn touched(range: &Range<u64>) -> Range<u64> {
    range.start / GRANULARITY..range.end.div_ceil(GRANULARITY)
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
            node_name,
            account: Mutex::new(Account::new(limit, length.div_ceil(GRANULARITY))),
            threshold: WriteThreshold::default(),
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
        // The account is consistent wherever a change might stop.
        self.account.lock()
    }

    fn reserve<'a>(
        &'a self,
        io: &Io<'_>,
        reserved: &mut Reserved<'a>,
        range: Range<u64>,
    ) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let mut account = self.account();
        let begun = account.begin_write(range);
        let wanted = account.allocated()
            + begun
                .as_ref()
                .map_or_else(|no_space| no_space.needed, |_| 0);
        drop(account);
        self.threshold.reached(wanted);
        let ticket = begun.map_err(|no_space| {
            BlockError::new(libc::ENOSPC, no_space)
                .doing(io.op.name())
                .at(&self.node_name, io.offset, io.bytes)
        })?;
        reserved.writes.push(ticket);
        Ok(())
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
        let mut reserved = Reserved::new(self);
        self.reserve(
            &io,
            &mut reserved,
            touched(&(io.offset..io.offset + io.bytes)),
        )?;
        let result = self.file.submit(io).await;
        reserved.end(result.is_ok(), false);
        result
    }

    /// A discard, or a write-zeroes that may unmap, to a child that deallocates.
    async fn deallocating(&self, io: Io<'_>) -> Result<()> {
        let range = io.offset..io.offset + io.bytes;
        // The child deallocates whole units of its own only, and writes zeroes to what is left over
        // at both ends.
        let unit = u64::from(self.file.limits().discard_alignment).max(GRANULARITY);
        let start = range.start.next_multiple_of(unit);
        let end = (range.end & !(unit - 1)).max(start);
        let inner = touched(&(start..end));
        let mut reserved = Reserved::new(self);
        let zeroes = io.op != Operation::Discard;
        if zeroes {
            let all = touched(&range);
            let ends = if inner.is_empty() {
                [all, 0..0]
            } else {
                [all.start..inner.start, inner.end..all.end]
            };
            for part in ends {
                self.reserve(&io, &mut reserved, part)?;
            }
        }
        if !inner.is_empty() {
            reserved.discard = Some(self.account().begin_discard(inner.clone()));
        }
        let result = self.file.submit(io).await;
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

/// What one request has reserved. Dropped before its end it counts as done for what it may have
/// allocated, and as not done for what it may have given back.
#[derive(Debug)]
struct Reserved<'a> {
    quota: &'a Quota,
    writes: Tickets,
    discard: Option<Ticket>,
}

/// At most the two ends of a write-zeroes.
#[derive(Debug, Default)]
struct Tickets([Option<Ticket>; 2]);

impl Tickets {
    fn push(&mut self, ticket: Ticket) {
        if let Some(free) = self.0.iter_mut().find(|slot| slot.is_none()) {
            *free = Some(ticket);
        }
    }
}

impl<'a> Reserved<'a> {
    fn new(quota: &'a Quota) -> Self {
        Self {
            quota,
            writes: Tickets::default(),
            discard: None,
        }
    }

    fn end(&mut self, written: bool, deallocated: bool) {
        let mut account = self.quota.account();
        for ticket in self.writes.0.iter_mut().filter_map(Option::take) {
            account.end_write(ticket, written);
        }
        if let Some(ticket) = self.discard.take() {
            account.end_discard(ticket, deallocated);
        }
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        // What is taken back from a child that has it parked has not been executed in any part.
        self.end(!park::is_taken_back(), false);
    }
}

impl Driver for Quota {
    fn name(&self) -> &'static str {
        "quota"
    }

    fn info(&self) -> NodeInfo {
        NodeInfo {
            child_offset: Some(0),
            filter: true,
            detect_zeroes: DetectZeroes::default(),
            // These are the child's to give.
            host_file: false,
            extent_size_hint: None,
            warning: None,
            engine: None,
            ..self.file.info()
        }
    }

    fn actual_size(&self) -> Option<u64> {
        self.file.node().driver().actual_size()
    }

    fn length(&self) -> u64 {
        self.file.length()
    }

    fn limits(&self) -> Limits {
        self.file.limits()
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

    fn children(&self) -> Vec<&Child> {
        vec![&self.file]
    }

    /// What a child has beyond its former end would be counted anew by each write: nobody else resizes it.
    fn child_access(&self, _child: &Child, above: Access) -> Access {
        Access {
            shared: above.shared.without(Permissions::RESIZE),
            ..above
        }
    }

    fn block_status(&self, range: Range<u64>) -> BoxFuture<'_, Result<Vec<Extent>>> {
        Box::pin(self.file.block_status(range))
    }

    fn capabilities(&self) -> Capabilities<'_> {
        Capabilities {
            resize: Some(self),
            grow: Some(self),
            quota: Some(self),
            write_threshold: Some(&self.threshold),
            activate: Some(self),
            ..Capabilities::default()
        }
    }
}

impl Activate for Quota {
    /// Another child has allocated something else.
    fn activate(&self) -> Result<()> {
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
