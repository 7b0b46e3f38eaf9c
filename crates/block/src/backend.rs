//! A backend (QEMU's BlockBackend): what an export talks to.
//!
//! This is the part of it that the control plane holds; [`crate::LocalBackend`] is the part that
//! lives on an iothread and sees the requests.
//!
//! Here is the life of the *device*: attach, reset, abandon, detach, and what lasts as long as it does.
//! Its clients are [`crate::Connection`]s, one or several, which come and go without touching it.

pub mod connection;
mod parts;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use iothread::mailbox::{self, Receiver, Sender};
use parking_lot::Mutex;

use crate::control::accounting::histogram::Boundaries;
use crate::control::accounting::observed::HistogramKind;
use crate::control::accounting::{Accounted, Accounting, AccountingOptions};
use crate::control::run_control::{
    BackendConfig, BackendState, BusyPart, LocalMessage, RunControl,
};
use crate::control::task::Control;
use crate::control::wiring::Wiring;
use crate::driver::loss::Loss;
use crate::driver::node::{Child, Node};
use crate::gate::overlap::SharedBlockers;
use crate::persist::changes::Saved;
use crate::words::error_policy::Policy;
use crate::words::hold_scope::HoldScope;
use crate::words::ids::{BackendId, ConnectionId, LocalId};
use crate::words::image::Image;
use crate::words::request::Request;
use crate::words::stats::BackendStats;
use crate::words::write_cache::WriteCache;
use pollster::block_on;

use self::parts::Parts;

/// Of how many images that it has had a backend knows: an administrator changes them by hand.
const IMAGES_MAX: usize = 16;

/// One export's access to its root node: error policy, I/O status, held requests, accounting.
#[derive(Debug)]
pub struct Backend {
    id: BackendId,
    device: Arc<str>,
    root: Arc<Child>,
    policy: Policy,
    scope: HoldScope,
    control: Control,
    accounting: Arc<Accounting>,
    /// Losses of its nodes up to this number are void for its client.
    losses_accepted: Arc<AtomicU32>,
    /// The client remembers in an inflight region what has not been completed.
    remembered: AtomicBool,
    /// The length of the root node that clients were told of, in bytes.
    told_length: AtomicU64,
    /// The images that it has had, the latest last.
    images: Mutex<Vec<Image>>,
    blockers: SharedBlockers,
    parts: Parts,
}

impl Backend {
    /// A backend for the export `device`, which uses a node by `root` ([`Child::root`]). None: the daemon
    /// ends.
    pub async fn new(
        control: &Control,
        device: &str,
        root: Child,
        policy: Policy,
        scope: HoldScope,
    ) -> Option<Arc<Self>> {
        let root = Arc::new(root);
        let device: Arc<str> = device.into();
        let config = BackendConfig {
            device: Arc::clone(&device),
            node: root.name(),
            policy,
            scope,
            image: root.node().image(),
        };
        let images = Mutex::new(vec![config.image.clone()]);
        let used = Arc::clone(&root);
        let told_length = AtomicU64::new(root.length());
        let (id, accounting, losses_accepted) = control
            .call(move |state, wiring| {
                let id = state.add_backend(config);
                let backend = state.backend(id)?;
                let accounting = Arc::clone(backend.accounting());
                let losses_accepted = Arc::clone(backend.losses_accepted());
                wiring.add_backend(id, used, Arc::clone(&losses_accepted));
                Some((id, accounting, losses_accepted))
            })
            .await??;
        Some(Arc::new(Self {
            id,
            device,
            root,
            policy,
            scope,
            control: control.clone(),
            accounting,
            losses_accepted,
            remembered: AtomicBool::new(false),
            told_length,
            images,
            blockers: SharedBlockers::default(),
            parts: Parts::default(),
        }))
    }

    /// Its identity in run control.
    pub fn id(&self) -> BackendId {
        self.id
    }

    /// The export's id.
    pub fn device(&self) -> &Arc<str> {
        &self.device
    }

    /// The root node.
    pub fn node(&self) -> Arc<Node> {
        self.root.node()
    }

    /// How it uses its root node.
    pub fn root(&self) -> &Child {
        &self.root
    }

    /// From now on `node` is the root node: what starts when the drain ends goes there. Called drained,
    /// by the registry, which knows whether that may be. Returns the one there was.
    pub async fn set_node(&self, node: Arc<Node>, _drained: &Drained) -> Arc<Node> {
        let (id, name) = (self.id, Arc::clone(node.name()));
        let before = self.root.set_node(node);
        self.control
            .call(move |state, wiring| state.set_node(id, name, wiring))
            .await;
        before
    }

    /// The image that clients see.
    pub fn image(&self) -> Image {
        self.images.lock().last().cloned().unwrap_or_default()
    }

    /// Whether it has, or has had, this image: a client that was away meanwhile has seen that one.
    pub fn has_had(&self, image: &Image) -> bool {
        let images = self.images.lock();
        images.iter().any(|known| known.is_same(image))
    }

    /// Whether other nodes are below, so that clients see another image from now on than they did. Until
    /// [`Self::image_settled`] the next daemon is told of none.
    pub(crate) async fn look_at_image(&self) -> bool {
        if self.images.lock().last() == Some(&self.node().image()) {
            return false;
        }
        let id = self.id;
        let told = self.control.call(move |state, _| state.doubt_image(id));
        told.await;
        true
    }

    /// Clients see the image that is there now: that is what they are told of.
    pub(crate) fn take_image(&self) {
        let image = self.node().image();
        let mut images = self.images.lock();
        images.retain(|known| *known != image);
        let most = images.len().saturating_sub(IMAGES_MAX - 1);
        images.drain(..most);
        images.push(image);
    }

    /// Whatever clients keep says so, too: run control is told.
    pub(crate) async fn image_settled(&self) {
        let (id, image) = (self.id, self.image());
        let told = self
            .control
            .call(move |state, _| state.set_image(id, image));
        told.await;
    }

    /// The client is there, whose guest uses the image; or it is gone, and may come back. For threads that
    /// may block.
    pub fn set_connected(&self, connected: bool) {
        let id = self.id;
        let told = self
            .control
            .call(move |state, _| state.set_connected(id, connected));
        // A daemon that ends has saved it.
        let _: Option<()> = block_on(told);
    }

    /// Whether the root node has another length than clients were told of. From now on this one is.
    pub(crate) fn take_new_length(&self) -> bool {
        let length = self.root.length();
        self.told_length.swap(length, Ordering::AcqRel) != length
    }

    /// The error policy it was made with.
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// What a stop error freezes.
    pub fn scope(&self) -> HoldScope {
        self.scope
    }

    /// Run control.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// The counters, summed over all iothreads.
    pub fn stats(&self) -> BackendStats {
        self.accounting.read()
    }

    /// What is counted beside them, and how.
    pub fn accounted(&self) -> Accounted {
        self.accounting.accounted()
    }

    /// How it counts. Connections that are there already count on as before.
    pub fn configure_accounting(&self, options: AccountingOptions) {
        self.accounting.configure(options);
    }

    /// From now on there are these latency histograms, empty ones, or none.
    pub fn set_histograms(&self, changes: &[(HistogramKind, Option<Boundaries>)]) {
        self.accounting.set_histograms(changes);
    }

    pub(crate) fn blockers(&self) -> &SharedBlockers {
        &self.blockers
    }

    /// A request of `local` has ended: tells the parts in which something has waited behind it.
    pub(crate) fn unblock(&self, local: LocalId, order: u64) {
        let told = self.blockers.remove(local, order);
        if !told.is_empty() {
            self.parts.recheck(&told);
        }
    }

    /// The connection of `local` has ended, which has these `writes` in flight.
    pub(crate) fn end_local(&self, local: LocalId, writes: &[(u64, Request)]) {
        let told = self.blockers.end_local(local, writes);
        if !told.is_empty() {
            self.parts.recheck(&told);
        }
    }

    /// See [`crate::driver::loss`].
    #[inline]
    pub fn losses_accepted(&self) -> u32 {
        self.losses_accepted.load(Ordering::Relaxed)
    }

    pub(crate) fn accounting(&self) -> &Accounting {
        &self.accounting
    }

    /// How many connections there are that have not ended.
    pub fn connections(&self) -> usize {
        self.parts.connections()
    }

    /// A new client with a fresh life of the device: the I/O status is enabled and reset, what was
    /// held is dropped, latched flush failures are void for it; `io-error` ends if nothing is held any
    /// more. When this returns, nothing of the former life is in flight. Returns the new generation;
    /// none: the daemon ends.
    pub async fn attach(self: &Arc<Self>) -> Option<u64> {
        self.begin_life(RunControl::attach).await
    }

    /// As [`Self::attach`], for a client that stays and resets its device: the run state is left
    /// alone.
    pub async fn reset(self: &Arc<Self>) -> Option<u64> {
        self.begin_life(RunControl::reset_device).await
    }

    async fn begin_life(
        self: &Arc<Self>,
        begin: fn(&mut RunControl, BackendId, &mut Wiring) -> Option<u64>,
    ) -> Option<u64> {
        let id = self.id;
        self.set_remembered(false);
        let generation = self
            .control
            .call(move |state, wiring| begin(state, id, wiring))
            .await??;
        self.settle().await;
        // What was lost is void for this client, which has nothing there yet; for the clients of
        // other exports on the same nodes it is not.
        self.losses_accepted.store(Loss::last(), Ordering::SeqCst);
        let clear = |state: &mut RunControl, wiring: &mut Wiring| {
            wiring.clear_void_losses();
            state.touch();
        };
        self.control.call(clear).await;
        Some(generation)
    }

    /// The first client of this process hands its inflight region back, and with it what a former
    /// daemon has not completed. The I/O status is enabled, and what was saved stays. None: the
    /// daemon ends.
    pub async fn reattach(&self) -> Option<()> {
        let id = self.id;
        self.control.call(move |state, _| state.reattach(id)).await
    }

    /// That client has started every queue that its region had anything of: what a former daemon left
    /// has been handed back. None: the daemon ends.
    pub async fn handed_back(&self) -> Option<()> {
        let id = self.id;
        self.control
            .call(move |state, wiring| state.handed_back(id, wiring))
            .await
    }

    /// Whether the client remembers what has not been completed, and would hand it to the next
    /// daemon.
    pub fn is_remembered(&self) -> bool {
        self.remembered.load(Ordering::Relaxed)
    }

    /// Says so. A fresh life of the device begins without.
    pub fn set_remembered(&self, remembered: bool) {
        self.remembered.store(remembered, Ordering::Relaxed);
    }

    /// Whether the guest believes in a write cache, as it was last recorded, by a former daemon maybe.
    pub fn write_cache(&self) -> WriteCache {
        let state = |run: &RunControl| run.backend(self.id).map(BackendState::write_cache);
        self.control.read(state).unwrap_or_default()
    }

    /// Records it for the next daemon. Waits at most `limit` for the state file, where there is one;
    /// not at all if that is 0. For threads that may block.
    pub fn record_write_cache(&self, write_cache: WriteCache, limit: Duration) -> Saved {
        let id = self.id;
        let told = self.control.call(move |state, wiring| {
            state.set_write_cache(id, write_cache);
            wiring.saver().cloned()
        });
        match block_on(told) {
            Some(Some(_)) if limit.is_zero() => Saved::No,
            Some(Some(changes)) => changes.save_within(limit),
            // A daemon that ends saves once more.
            Some(None) | None => Saved::Nowhere,
        }
    }

    /// The client has given up its device, and nobody can take it over: what was held is dropped. The
    /// I/O status says on what happened, until a client attaches or `cont`; the run state is left
    /// alone. When this returns, nothing is in flight. None: the daemon ends.
    pub async fn abandon(self: &Arc<Self>) -> Option<()> {
        let id = self.id;
        self.set_remembered(false);
        let dropped = move |state: &mut RunControl, wiring: &mut Wiring| state.abandon(id, wiring);
        self.control.call(dropped).await?;
        self.settle().await;
        Some(())
    }

    /// The device is gone: what was held is dropped and the I/O status disabled. When this returns,
    /// nothing of it is in flight.
    pub async fn detach(self: &Arc<Self>) {
        let id = self.id;
        self.control
            .call(move |state, wiring| state.detach(id, wiring))
            .await;
        self.settle().await;
    }

    /// Run control forgets the backend, whose parts have been told to end, and its root node is not used
    /// any more. Waits for what connections that have ended have left in flight.
    pub async fn remove(self: &Arc<Self>) {
        self.end(RunControl::remove_backend).await;
    }

    /// As [`Self::remove`], of a backend that was just made and whose export was not: what it has found of
    /// a former daemon waits for the next one of its name.
    pub async fn unmake(self: &Arc<Self>) {
        self.end(RunControl::unmake_backend).await;
    }

    async fn end(self: &Arc<Self>, remove: fn(&mut RunControl, BackendId, &mut Wiring)) {
        self.settle().await;
        let id = self.id;
        self.control
            .call(move |state, wiring| {
                remove(state, id, wiring);
                wiring.remove_backend(id);
                // It may have been the last one for which they counted.
                wiring.clear_void_losses();
            })
            .await;
        self.root.end();
    }

    /// Starts nothing any more and waits until nothing is in flight, of connections that have ended
    /// neither. Held requests are not waited for. What connects meanwhile starts nothing either.
    pub async fn drain(self: &Arc<Self>) -> Drained {
        let (done, mut drained) = mailbox::channel::<Request>();
        self.parts.drain_begin(&done);
        drop(done);
        let mut guard = Drained {
            backend: Arc::clone(self),
            furthest: None,
        };
        while let Some(request) = drained.recv().await {
            if guard
                .furthest
                .is_none_or(|known| known.end() < request.end())
            {
                guard.furthest = Some(request);
            }
        }
        guard
    }

    /// Other nodes are in use than before: there is another root, or another node is below it. Whoever
    /// changes that has drained this ([`Self::drain`]), and iothreads are attached to what there is when the
    /// drain ends. When this returns they are already, and nothing here has the former ones any more.
    pub async fn graph_changed(&self) {
        let (done, mut all) = mailbox::channel();
        self.parts.graph_changed(&done);
        drop(done);
        while all.recv().await.is_some() {}
    }

    /// Asks every part for the `most` requests that it has had in flight for longest. One answer comes
    /// from each, at once: none of them waits for storage. An iothread that is stuck itself does not
    /// answer, so whoever asks has a limit; after the last one the receiver ends. What the connections
    /// that have ended have left in flight is told, too.
    pub fn busy(&self, most: usize) -> Receiver<BusyPart> {
        let (reply, answers) = mailbox::channel();
        self.parts.ask_busy(most, &reply);
        answers
    }

    /// Waits until every part has taken note of what run control has told it so far, and what was
    /// in flight then has ended.
    async fn settle(self: &Arc<Self>) {
        drop(self.drain().await);
    }

    /// With how many drains the part begins; none: its connection has ended.
    pub(crate) fn add_local(
        &self,
        connection: ConnectionId,
        id: LocalId,
        sender: Sender<LocalMessage>,
    ) -> Option<u32> {
        self.parts.add(connection, id, sender)
    }

    pub(crate) fn remove_local(&self, id: LocalId) {
        self.parts.remove(id);
    }
}

/// Nothing of a backend starts as long as this exists.
#[derive(Debug)]
#[must_use]
pub struct Drained {
    backend: Arc<Backend>,
    furthest: Option<Request>,
}

impl Drained {
    /// Of the requests that are held or wait, the one that ends last.
    pub fn furthest(&self) -> Option<&Request> {
        self.furthest.as_ref()
    }
}

impl Drop for Drained {
    fn drop(&mut self) {
        self.backend.parts.drain_end();
    }
}
