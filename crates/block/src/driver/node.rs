//! A node: one element of the block graph, and the trait that a driver implements.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::driver::capabilities::{AllocationLimit, Capabilities, DiscardStats, Resize};
use crate::driver::fault::FaultPlan;
use crate::driver::future::IoFuture;
use crate::driver::io::Io;
use crate::driver::loss::Loss;
use crate::words::error::{BlockError, Result};
use crate::words::request::Operation;

/// What a node asks of the requests that are sent to it, in bytes. All alignments, and a physical block
/// that is known, are powers of two; alignments are at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Offset and length of reads and writes must be multiples of it, or the driver bounces.
    pub request_alignment: u32,
    /// Buffers should be aligned to it, or the driver bounces.
    pub memory_alignment: u32,
    /// Granularity that discard works best with.
    pub discard_alignment: u32,
    /// What the storage writes without reading first; 0: not known. As the following: advice for
    /// guests.
    pub physical_block: u32,
    /// The smallest request that the storage likes; 0: not known.
    pub minimum_io: u32,
    /// The size of request that the storage likes best; 0: not known.
    pub optimal_io: u32,
    /// Where the first physical block begins.
    pub alignment_offset: u32,
    /// Whether a discard can give space back (it is accepted and ignored otherwise).
    pub discard: bool,
    /// Whether write-zeroes with `unmap` gives space back too (it only zeroes otherwise).
    pub unmap_zeroes: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request_alignment: 1,
            memory_alignment: 1,
            discard_alignment: 512,
            physical_block: 0,
            minimum_io: 0,
            optimal_io: 0,
            alignment_offset: 0,
            discard: true,
            unmap_zeroes: true,
        }
    }
}

/// How a node is opened, as `query-block` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeInfo {
    /// The file name, or what QEMU shows in its place (`null-co://`, a JSON pseudo file name).
    pub filename: String,
    /// Whether writes are refused.
    pub read_only: bool,
    /// `cache.direct`.
    pub cache_direct: bool,
    /// `cache.no-flush`.
    pub cache_no_flush: bool,
    /// Something the user should know, e.g. that a stop policy cannot hold what this node loses.
    pub warning: Option<String>,
}

/// A block driver: what makes a node what it is.
///
/// One driver object serves all iothreads at once; [`Driver::submit`] is called on an iothread and
/// its future stays there. Everything else is called on control threads and may block shortly.
pub trait Driver: Send + Sync + fmt::Debug {
    /// QEMU's name of the driver: `file`, `null-co`...
    fn name(&self) -> &'static str;

    /// How the node is opened. Asks nobody.
    fn info(&self) -> NodeInfo;

    /// Bytes allocated on the storage, where known. Asks the storage, which may hang: never called where
    /// somebody else waits.
    fn actual_size(&self) -> Option<u64> {
        None
    }

    /// Length in bytes. Cheap: it is asked for each request.
    fn length(&self) -> u64;

    /// What the node asks of requests.
    fn limits(&self) -> Limits {
        Limits::default()
    }

    /// Starts an operation on an iothread.
    ///
    /// The range lies inside [`Driver::length`] and the node is writable if the operation
    /// modifies ([`Node::submit`] checks). EAGAIN, EINTR, ECANCELED and ENOMEM are retried inside,
    /// bounded; a short write is continued; a short read inside the length is an error. A failed
    /// operation may be submitted again at any time with the same effect as the first.
    fn submit<'a>(&'a self, io: Io<'a>) -> IoFuture<'a>;

    /// The nodes below, with the name of the role (`file`, `image`).
    fn children(&self) -> Vec<(&'static str, Arc<Node>)> {
        Vec::new()
    }

    /// Whether the node goes on as it should if one of its children gets another length by itself. A
    /// filter does: it is as long as its child.
    fn follows_child(&self) -> bool {
        true
    }

    /// Calls `each` with the ranges in bytes from `from` on that may hold data, ascending and
    /// disjoint; what lies between reads as zeroes and occupies no space. Asks the storage, at length
    /// if the image is in many pieces, and is as old as its answer.
    fn data_extents(&self, from: u64, each: &mut dyn FnMut(Range<u64>)) -> Result<()> {
        let length = self.length();
        if from < length {
            each(from..length);
        }
        Ok(())
    }

    /// What it can do beside: most drivers nothing.
    fn capabilities(&self) -> Capabilities<'_> {
        Capabilities::default()
    }
}

/// Why a request cannot be sent to a node at all: the client's fault, always reported, never held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestFault {
    /// The range does not lie inside the node.
    OutOfRange,
    /// A modifying request to a read-only node.
    ReadOnly,
}

/// A named driver.
#[derive(Debug)]
pub struct Node {
    name: Arc<str>,
    driver: Box<dyn Driver>,
    read_only: bool,
    wr_highest_offset: AtomicU64,
}

impl Node {
    /// A node; the name must be unique in its graph ([`crate::Graph::add`] checks).
    pub fn new(name: &str, driver: Box<dyn Driver>) -> Arc<Self> {
        let read_only = driver.info().read_only;
        Arc::new(Self {
            name: name.into(),
            driver,
            read_only,
            wr_highest_offset: AtomicU64::new(0),
        })
    }

    /// The node-name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The driver.
    pub fn driver(&self) -> &dyn Driver {
        &*self.driver
    }

    /// Whether writes are refused.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// The highest end offset of a completed write in bytes (`wr_highest_offset`).
    pub fn wr_highest_offset(&self) -> u64 {
        self.wr_highest_offset.load(Ordering::Relaxed)
    }

    /// Why `cont` has to be refused, if it has to: a complete sentence that names the remedy.
    pub fn cont_blocker(&self) -> Option<String> {
        let blocker = self.driver.capabilities().cont_blocker?;
        blocker.cont_blocker()
    }

    /// A flush failure that is latched ([`crate::driver::capabilities::FlushLatch`]).
    pub fn latched(&self) -> Option<Loss> {
        self.driver.capabilities().flush_latch?.latched()
    }

    /// A former daemon had latched this failure. False: this driver has no flushes to fail. Called
    /// before the first request.
    pub fn latch(&self, loss: Loss) -> bool {
        let latch = self.driver.capabilities().flush_latch;
        latch.inspect(|latch| latch.latch(loss)).is_some()
    }

    /// Clears a latched flush failure for everybody, unless its number is greater than `upto`. False
    /// if there was none.
    pub fn accept_loss(&self, upto: u32) -> bool {
        let latch = self.driver.capabilities().flush_latch;
        latch.is_some_and(|latch| latch.accept_loss(upto))
    }

    /// The length in bytes that [`Self::resize`] to `length` would give the node. May ask the storage.
    ///
    /// # Errors
    /// As [`Self::resize`].
    pub fn resized_length(&self, length: u64) -> Result<u64> {
        self.resizable()?.resized_length(length)
    }

    /// Changes the length in bytes. Called drained.
    ///
    /// # Errors
    /// If the driver cannot, or the storage refuses.
    pub fn resize(&self, length: u64) -> Result<()> {
        self.resizable()?.resize(length)
    }

    fn resizable(&self) -> Result<&dyn Resize> {
        self.driver.capabilities().resize.ok_or_else(|| {
            BlockError::new(libc::ENOTSUP, "Image format driver does not support resize")
        })
    }

    /// The fault plan, where the driver injects errors.
    pub fn fault_plan(&self) -> Option<&dyn FaultPlan> {
        self.driver.capabilities().fault_plan
    }

    /// The limit of allocated bytes, where the driver has one.
    pub fn allocation_limit(&self) -> Option<&dyn AllocationLimit> {
        self.driver.capabilities().quota
    }

    /// Discard counters, where the driver keeps them.
    pub fn discard_stats(&self) -> Option<DiscardStats> {
        let counters = self.driver.capabilities().discard_counters?;
        Some(counters.discard_stats())
    }

    /// Whether a request may be sent to this node.
    pub fn check(
        &self,
        op: Operation,
        offset: u64,
        bytes: u64,
    ) -> std::result::Result<(), GuestFault> {
        if self.read_only && op.modifies() {
            return Err(GuestFault::ReadOnly);
        }
        match offset.checked_add(bytes) {
            Some(end) if end <= self.driver.length() => Ok(()),
            _ => Err(GuestFault::OutOfRange),
        }
    }

    /// Starts an operation; see [`Driver::submit`].
    pub fn submit<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        match self.check(io.op, io.offset, io.bytes) {
            Ok(()) => self.driver.submit(io),
            Err(fault) => IoFuture::ready(Err(self.fault_error(fault, &io))),
        }
    }

    /// Notes a successful write that ends at `end`.
    pub fn wrote(&self, end: u64) {
        // A plain load first: the common case writes nothing to the shared cache line.
        if end > self.wr_highest_offset.load(Ordering::Relaxed) {
            self.wr_highest_offset.fetch_max(end, Ordering::Relaxed);
        }
    }

    /// This node and all below it, each once, in the order of a walk from the top.
    pub fn subtree(self: &Arc<Self>) -> Vec<Arc<Self>> {
        let mut found: Vec<Arc<Self>> = vec![Arc::clone(self)];
        let mut next = 0;
        while next < found.len() {
            for (_, child) in found[next].driver.children() {
                if !found.iter().any(|node| Arc::ptr_eq(node, &child)) {
                    found.push(child);
                }
            }
            next += 1;
        }
        found
    }

    fn fault_error(&self, fault: GuestFault, io: &Io<'_>) -> BlockError {
        let (errno, text) = match fault {
            GuestFault::OutOfRange => (libc::EINVAL, "the range does not lie inside the node"),
            GuestFault::ReadOnly => (libc::EACCES, "the node is read-only"),
        };
        BlockError::new(errno, text).at(&self.name, io.offset, io.bytes)
    }
}
