//! A node: one element of the block graph, the trait that a driver implements, and the edge by which one
//! is used.

use std::any::Any;
use std::fmt;
use std::mem::{self, ManuallyDrop};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use arc_swap::ArcSwap;
use iothread::mailbox::Sender;

use crate::driver::beside::drop_beside;
use crate::driver::capabilities::{Capabilities, Resize};
use crate::driver::future::{BoxFuture, IoFuture};
use crate::driver::growth::Growth;
use crate::driver::io::Io;
use crate::driver::limits::{Limits, NodeInfo};
use crate::driver::lines::Lent;
use crate::driver::own_io::WriteBack;
use crate::driver::status::{self, Extent, Origin, Stored};
use crate::driver::threshold::WriteThreshold;
use crate::driver::users::{EdgeId, Use, User, Users};
use crate::words::error::{BlockError, Result};
use crate::words::permissions::Access;
use crate::words::request::Operation;

/// A block driver: what makes a node what it is.
///
/// One driver object serves all iothreads at once; [`Driver::submit`] is called on an iothread and
/// its future stays there. Everything else is called on control threads and may block shortly.
pub trait Driver: Send + Sync + fmt::Debug {
    /// QEMU's name of the driver: `file`, `null-co`...
    fn name(&self) -> &'static str;

    /// How the node is opened. Asks nobody.
    fn info(&self) -> NodeInfo;

    /// The node below, of a filter: a driver that shows all of one node at the same offsets. That one is asked for what the
    /// driver does not say itself.
    fn filtered(&self) -> Option<&Child> {
        None
    }

    /// Bytes allocated on the storage, where known. Asks the storage, which may hang: never called where
    /// somebody else waits.
    fn actual_size(&self) -> Option<u64> {
        self.filtered()?.node().driver().actual_size()
    }

    /// Length in bytes. Cheap: it is asked for each request.
    fn length(&self) -> u64;

    /// What the node asks of requests.
    fn limits(&self) -> Limits {
        self.filtered().map_or_else(Limits::default, Child::limits)
    }

    /// Starts an operation on an iothread.
    ///
    /// The range lies inside [`Driver::length`] and the node is writable if the operation
    /// modifies ([`Node::submit`] and [`Child::submit`] see to it). EAGAIN, EINTR, ECANCELED and ENOMEM are retried inside,
    /// bounded; a short write is continued; a short read inside the length is an error. A failed
    /// operation may be submitted again at any time with the same effect as the first.
    fn submit<'a>(&'a self, io: Io<'a>) -> IoFuture<'a>;

    /// The edges to the nodes below.
    fn children(&self) -> Vec<&Child> {
        self.filtered().into_iter().collect()
    }

    /// What it does with `child`, one of its own, and lets others do, if its own users together have
    /// `above`. A filter passes that on. The more `above` holds and the less it shares, the more it holds
    /// and the less it shares; it asks nobody.
    fn child_access(&self, _child: &Child, above: Access) -> Access {
        above
    }

    /// What the bytes of `range` are, which is not empty and lies inside [`Driver::length`]: for a prefix
    /// of it, in their order, without gaps and in [`EXTENTS_MAX`](crate::EXTENTS_MAX) pieces at most, so that the work is
    /// bounded. May ask the storage, which may hang: awaited where that hurts nobody, on any thread, and
    /// dropped by whoever has no more time. A driver whose questions would keep a thread asks them beside
    /// ([`crate::OneBeside`]).
    ///
    /// Unless a driver knows better, all is data, and stored where it is.
    fn block_status(&self, range: Range<u64>) -> BoxFuture<'_, Result<Vec<Extent>>> {
        if let Some(child) = self.filtered() {
            return Box::pin(child.block_status(range));
        }
        let all = Extent::data(range.end - range.start, Stored::Here(range.start));
        Box::pin(std::future::ready(Ok(vec![all])))
    }

    /// Where the first bytes of `range` come from, which is not empty and lies inside [`Driver::length`]. Asks nobody, and may be
    /// asked for each request; none: that would take asking the storage, and a read of these bytes does. It may be untrue
    /// the next moment, if others write.
    ///
    /// Unless a driver knows better, all is its own.
    fn origin(&self, range: Range<u64>) -> Option<Origin> {
        match self.filtered() {
            Some(child) => child.origin(range),
            None => Some(Origin {
                own: true,
                bytes: range.end - range.start,
            }),
        }
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
    threshold: WriteThreshold,
    users: Users,
    write_back: WriteBack,
    /// It is closed beside, and then this goes.
    closed: OnceLock<Sender<()>>,
    /// Hears that it has become longer.
    growth: OnceLock<Weak<Growth>>,
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
            threshold: WriteThreshold::default(),
            users: Users::default(),
            write_back: WriteBack::default(),
            closed: OnceLock::new(),
            growth: OnceLock::new(),
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

    /// Who uses it, the oldest first.
    pub fn users(&self) -> Vec<Use> {
        self.users.list()
    }

    /// What its users have together.
    pub fn access(&self) -> Access {
        let users = self.users.list();
        users
            .iter()
            .fold(Access::NONE, |all, one| all.and(one.access))
    }

    /// One of its users was granted this. The registry's to say.
    pub fn set_access(&self, edge: EdgeId, access: Access) {
        self.users.set_access(edge, access);
    }

    /// What the bytes of `range` are: for a prefix of it, in their order and without gaps. Nothing, if
    /// the range is empty, or begins at the end of the node or beyond it: there is nothing there. Asks
    /// the storage, which may hang, as long as the future is there: for how long, is the caller's choice.
    ///
    /// # Errors
    /// If the storage cannot say.
    pub async fn block_status(&self, range: Range<u64>) -> Result<Vec<Extent>> {
        let range = range.start..range.end.min(self.driver.length());
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let mut extents = self.driver.block_status(range.clone()).await?;
        if !status::complete(&mut extents, &self.name, &range) {
            let nothing = BlockError::new(libc::EIO, "the driver does not know what is there");
            return Err(nothing.at(&self.name, range.start, range.end - range.start));
        }
        Ok(extents)
    }

    /// Calls `each` with all extents of `range`, as far as it lies inside the node, and where they
    /// begin. As [`Self::block_status`], as often as it takes.
    ///
    /// # Errors
    /// As [`Self::block_status`].
    pub async fn extents(
        &self,
        range: Range<u64>,
        mut each: impl FnMut(u64, &Extent) + Send,
    ) -> Result<()> {
        let mut at = range.start;
        loop {
            let extents = self.block_status(at..range.end).await?;
            if extents.is_empty() {
                return Ok(());
            }
            for extent in &extents {
                each(at, extent);
                at += extent.bytes;
            }
        }
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
            Ok(()) => self.start(io),
            Err(fault) => IoFuture::ready(Err(self.fault_error(fault, &io))),
        }
    }

    /// As [`Self::submit`], for what was [checked](Self::check).
    #[inline]
    pub(crate) fn start<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        self.threshold.submitted(&io);
        self.driver.submit(io)
    }

    /// Notes a successful write that ends at `end`.
    pub fn wrote(&self, end: u64) {
        // A plain load first: the common case writes nothing to the shared cache line.
        if end > self.wr_highest_offset.load(Ordering::Relaxed) {
            self.wr_highest_offset.fetch_max(end, Ordering::Relaxed);
        }
    }

    /// `parent` has written here, at offsets that are greater by `offset` than its own, and is going to use
    /// this no more.
    pub(crate) fn wrote_through(&self, parent: &Self, offset: u64) {
        let end = parent.wr_highest_offset();
        if end > 0 {
            self.wrote(end.saturating_add(offset));
        }
    }

    /// This node and all below it, each once, in the order of a walk from the top.
    pub fn subtree(self: &Arc<Self>) -> Vec<Arc<Self>> {
        let mut found: Vec<Arc<Self>> = vec![Arc::clone(self)];
        let mut next = 0;
        while next < found.len() {
            let children = found[next].driver.children();
            let below: Vec<_> = children.into_iter().map(Child::node).collect();
            for child in below {
                if !found.iter().any(|node| Arc::ptr_eq(node, &child)) {
                    found.push(child);
                }
            }
            next += 1;
        }
        found
    }

    /// This node and all below it, each once, every one after those below it.
    pub fn bottom_up(self: &Arc<Self>) -> Vec<Arc<Self>> {
        fn visit(node: &Arc<Node>, found: &mut Vec<Arc<Node>>) {
            if found.iter().any(|known| Arc::ptr_eq(known, node)) {
                return;
            }
            for child in node.driver.children() {
                visit(&child.node(), found);
            }
            found.push(Arc::clone(node));
        }
        let mut found = Vec::new();
        visit(self, &mut found);
        found
    }

    /// It leaves the graph: when the last one lets go, it is closed beside, and `told` dropped then.
    pub(crate) fn tell_closed(&self, told: Sender<()>) {
        // A node leaves once.
        let _ = self.closed.set(told);
    }

    /// It is in the graph, where `growth` hears when what is written to it has made it longer.
    pub(crate) fn tell_growth(&self, growth: &Weak<Growth>) {
        // It stays where it is.
        let _ = self.growth.set(Weak::clone(growth));
    }

    fn fault_error(&self, fault: GuestFault, io: &Io<'_>) -> BlockError {
        let (errno, text) = match fault {
            GuestFault::OutOfRange => (libc::EINVAL, "the range does not lie inside the node"),
            GuestFault::ReadOnly => (libc::EACCES, "the node is read-only"),
        };
        BlockError::new(errno, text).at(&self.name, io.offset, io.bytes)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(told) = self.closed.take() {
            let driver = mem::replace(&mut self.driver, Box::new(Gone));
            drop_beside(InOrder { driver, told });
        }
    }
}

/// Dropped from above to below.
struct InOrder {
    #[expect(dead_code, reason = "held for its drop")]
    driver: Box<dyn Driver>,
    #[expect(dead_code, reason = "held for its drop")]
    told: Sender<()>,
}

/// What is left of a driver while its node is dropped.
#[derive(Debug)]
struct Gone;

impl Driver for Gone {
    fn name(&self) -> &'static str {
        "closed"
    }

    fn info(&self) -> NodeInfo {
        NodeInfo::default()
    }

    fn length(&self) -> u64 {
        0
    }

    fn submit<'a>(&'a self, _: Io<'a>) -> IoFuture<'a> {
        let error = BlockError::new(libc::ENOMEDIUM, "the node is closed");
        IoFuture::ready(Err(error))
    }
}

/// An edge of the graph: one node, as somebody uses it. It is registered with the node ([`Node::users`])
/// until it is dropped or ended.
///
/// Another node may take the place below at any time. What is submitted goes to the one there is at
/// that moment, and has it until it has ended.
pub struct Child {
    edge: EdgeId,
    user: User,
    role: &'static str,
    used: ArcSwap<Lent<Node>>,
}

impl Child {
    /// `user` uses `node`, which is its `role`. It has no permissions yet, and minds nothing.
    pub fn new(user: User, role: &'static str, node: Arc<Node>) -> Self {
        let edge = EdgeId::fresh();
        let this = Self {
            edge,
            user: user.clone(),
            role,
            used: ArcSwap::from_pointee(Lent::new(Arc::clone(&node))),
        };
        node.users.add(Use {
            edge,
            user,
            role,
            access: Access::NONE,
        });
        this
    }

    /// The child of a node that is named `parent`.
    pub fn of(parent: &Arc<str>, role: &'static str, node: Arc<Node>) -> Self {
        Self::new(User::Node(Arc::clone(parent)), role, node)
    }

    /// The root node of the export `id`.
    pub fn root(id: &str, node: Arc<Node>) -> Self {
        Self::new(User::Export(id.into()), "root", node)
    }

    /// The node is not used any more, though its user may look at it as long as this exists.
    pub fn end(&self) {
        self.used.load().get().users.remove(self.edge);
    }

    /// Its name for [`Node::users`].
    pub fn edge(&self) -> EdgeId {
        self.edge
    }

    /// Who uses the node.
    pub fn user(&self) -> &User {
        &self.user
    }

    /// What the node is to its user: `root`, `file`, `image`...
    pub fn role(&self) -> &'static str {
        self.role
    }

    /// The node. For more than a look: to submit and to ask there is no need to own it.
    pub fn node(&self) -> Arc<Node> {
        Arc::clone(self.used.load().get())
    }

    /// From now on `node` is used, with the same permissions. Returns the one that was used so far:
    /// what runs there still has it. Whether that may be is the registry's to know; nobody else calls it
    /// at the same time.
    pub fn set_node(&self, node: Arc<Node>) -> Arc<Node> {
        // One that has ended meanwhile uses the new one no more than the old one.
        if let Some(access) = self.used.load().get().users.access(self.edge) {
            node.users.add(Use {
                edge: self.edge,
                user: self.user.clone(),
                role: self.role,
                access,
            });
        }
        let before = self.used.swap(Arc::new(Lent::new(node)));
        before.get().users.remove(self.edge);
        Arc::clone(before.get())
    }

    /// The permissions that were granted.
    pub fn access(&self) -> Access {
        self.used
            .load()
            .get()
            .users
            .access(self.edge)
            .unwrap_or_default()
    }

    /// These were granted, or given back. The registry's to say, as [`Self::set_node`].
    pub fn set_access(&self, access: Access) {
        self.used.load().get().set_access(self.edge, access);
    }

    /// The name of the node.
    pub fn name(&self) -> Arc<str> {
        Arc::clone(self.used.load().get().name())
    }

    /// [`Driver::length`] of the node.
    pub fn length(&self) -> u64 {
        self.used.load().get().driver.length()
    }

    /// [`Driver::limits`] of the node.
    pub fn limits(&self) -> Limits {
        self.used.load().get().driver.limits()
    }

    /// [`Driver::info`] of the node.
    pub fn info(&self) -> NodeInfo {
        self.used.load().get().driver.info()
    }

    /// [`Node::block_status`].
    ///
    /// # Errors
    /// As there.
    pub async fn block_status(&self, range: Range<u64>) -> Result<Vec<Extent>> {
        self.node().block_status(range).await
    }

    /// [`Driver::origin`] of the node.
    pub fn origin(&self, range: Range<u64>) -> Option<Origin> {
        self.used.load().get().driver.origin(range)
    }

    /// [`Node::extents`].
    ///
    /// # Errors
    /// As there.
    pub async fn extents(
        &self,
        range: Range<u64>,
        each: impl FnMut(u64, &Extent) + Send,
    ) -> Result<()> {
        self.node().extents(range, each).await
    }

    /// Starts an operation ([`Driver::submit`]). Bounds are the business of exports: what a parent reads
    /// beyond the end of the node is zeroes, and what it writes there makes the node longer
    /// ([`crate::Grow`]), if it may resize it.
    pub fn submit<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
        self.submit_keeping(io, None)
    }

    /// The same; `owner` is kept as long as the request runs. By the way: to give it to a future that is there is to move
    /// that, and it is some hundred bytes long.
    #[inline]
    pub fn submit_keeping<'a>(
        &'a self,
        io: Io<'a>,
        owner: Option<Arc<dyn Any + Send + Sync>>,
    ) -> IoFuture<'a> {
        let used = self.used.load();
        // SAFETY: the node lives as long as `used`, and after that as long as the future: that is given one of its
        // keepers, and a future drops what it keeps after its work. Nothing that an `IoFuture` yields borrows from
        // anything.
        let lent: &'a Node = unsafe { &*Arc::as_ptr(used.get()) };
        let mut future = self.send(lent, io);
        if let Some(result) = future.take_ready() {
            // It has nothing left that would have to be dropped.
            let _nothing = ManuallyDrop::new(future);
            return IoFuture::ready(result);
        }
        future.keep(used.keeper());
        if let Some(owner) = owner {
            future.keep(owner);
        }
        future
    }

    /// As [`Node::submit`], but what reaches beyond the end is not refused. There reads find zeroes, discards nothing, and
    /// writes make the node longer, if the edge may resize it.
    fn send<'a>(&self, node: &'a Node, io: Io<'a>) -> IoFuture<'a> {
        match node.check(io.op, io.offset, io.bytes) {
            Ok(()) => node.start(io),
            Err(fault) => node.submit_beyond(io, fault, self),
        }
    }
}

/// The length of a filter is that of its child.
impl Resize for Child {
    fn resized_length(&self, length: u64) -> Result<u64> {
        self.node().resized_length(length)
    }

    fn resize(&self, length: u64) -> Result<()> {
        self.node().resize(length)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.end();
    }
}

impl fmt::Debug for Child {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.role, self.name())
    }
}

mod abilities;
mod beyond;
pub mod chain;
#[cfg(test)]
mod tests;
