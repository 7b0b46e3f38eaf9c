//! The state of one backend, as run control keeps it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use crate::control::accounting::Accounting;
use crate::driver::loss::Loss;
use crate::persist::saved::SavedBackend;
use crate::words::error_policy::{Action, Policy};
use crate::words::event::{BlockIoError, Event, EventKind};
use crate::words::hold_scope::HoldScope;
use crate::words::ids::LocalId;
use crate::words::image::Image;
use crate::words::incident::{ErrorRecord, HeldRecord, Incident};
use crate::words::io_status::{IoStatus, Status};
use crate::words::write_cache::WriteCache;

use super::held::Held;
use super::message::{Effects, Failed, GateMessage, Reported, Restored};
use super::report_limit::{Offered, ReportLimit};

/// What a backend is, to run control.
#[derive(Clone, Debug)]
pub struct BackendConfig {
    /// The export's id: `device` of events.
    pub device: Arc<str>,
    /// The root node.
    pub node: Arc<str>,
    /// Its error policy.
    pub policy: Policy,
    /// What a stop error freezes.
    pub scope: HoldScope,
    /// The image that clients see.
    pub image: Image,
}

/// The state of one backend.
#[derive(Debug)]
pub struct BackendState {
    config: BackendConfig,
    io_status: IoStatus,
    generation: u64,
    /// The last failure processed, for each part.
    locals: BTreeMap<LocalId, u64>,
    held: Held,
    /// Scope `device`: its parts were told to freeze, because something is held in one of them.
    frozen: bool,
    first_error: Option<ErrorRecord>,
    last_error: Option<ErrorRecord>,
    stale_failures: u64,
    write_cache: WriteCache,
    reports: ReportLimit,
    accounting: Arc<Accounting>,
    losses_accepted: Arc<AtomicU32>,
    claimed: bool,
    /// A client is there, or was when a former daemon ended: a guest may use the image.
    connected: bool,
    /// The image that clients have seen, if there have been any.
    seen: Option<Image>,
    /// It is about to be another one.
    doubted: bool,
}

impl BackendState {
    /// As a former daemon has left it, if it did.
    pub(super) fn new(config: BackendConfig, saved: Option<SavedBackend>) -> Self {
        let claimed = saved.is_some();
        let saved = saved.unwrap_or_default();
        Self {
            claimed,
            connected: saved.connected,
            seen: saved.image,
            doubted: false,
            io_status: saved.io_status,
            generation: 0,
            locals: BTreeMap::new(),
            // A former daemon held something here, which froze it.
            frozen: config.scope == HoldScope::Device && saved.incident.is_some(),
            config,
            held: Held::saved(saved.incident, saved.incidents),
            first_error: saved.first_error,
            last_error: saved.last_error,
            write_cache: saved.write_cache,
            stale_failures: 0,
            reports: ReportLimit::default(),
            // A loss that is still to come counts in any case.
            losses_accepted: Arc::new(AtomicU32::new(saved.losses_accepted.min(Loss::last()))),
            accounting: Arc::new(Accounting::starting_from(saved.stats)),
        }
    }

    pub(super) fn set_node(&mut self, node: Arc<str>) {
        self.config.node = node;
    }

    pub(super) fn doubt_image(&mut self) {
        self.doubted = true;
    }

    pub(super) fn set_image(&mut self, image: Image) {
        self.doubted = false;
        if let Some(seen) = &mut self.seen {
            seen.clone_from(&image);
        }
        self.config.image = image;
    }

    /// Whether that is something new.
    pub(super) fn set_connected(&mut self, connected: bool) -> bool {
        let seen = match connected {
            true => Some(self.config.image.clone()),
            false => self.seen.clone(),
        };
        let before = (self.connected, std::mem::replace(&mut self.seen, seen));
        self.connected = connected;
        before != (self.connected, self.seen.clone())
    }

    /// Whether it began with what a former daemon had saved.
    pub(super) fn is_claimed(&self) -> bool {
        self.claimed
    }

    /// What it is.
    pub fn config(&self) -> &BackendConfig {
        &self.config
    }

    /// The I/O status, if it is enabled.
    pub fn io_status(&self) -> Option<Status> {
        self.io_status
            .is_enabled(self.config.policy)
            .then(|| self.io_status.get())
    }

    /// The value of the latch, enabled or not.
    pub fn raw_io_status(&self) -> Status {
        self.io_status.get()
    }

    /// Whether there is a device: one has been attached, by a former daemon maybe, and not detached.
    pub fn has_device(&self) -> bool {
        self.io_status.has_device()
    }

    /// The generation of the device: counts resets and attachments.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Held requests (also those whose retry has not ended), by iothread, oldest first.
    pub fn held(&self) -> impl ExactSizeIterator<Item = &HeldRecord> {
        self.held.records()
    }

    /// The incident that goes on.
    pub fn incident(&self) -> Option<&Incident> {
        self.held.incident()
    }

    /// Whether something is held, or may be handed back that a former daemon held.
    pub fn holds(&self) -> bool {
        self.held.is_any()
    }

    /// Up to which number losses of its nodes are void for its client.
    pub fn losses_accepted(&self) -> &Arc<AtomicU32> {
        &self.losses_accepted
    }

    /// Where its requests are counted.
    pub fn accounting(&self) -> &Arc<Accounting> {
        &self.accounting
    }

    /// Number of incidents so far.
    pub fn incidents(&self) -> u64 {
        self.held.incidents()
    }

    /// The first error since the status was last reset.
    pub fn first_error(&self) -> Option<&ErrorRecord> {
        self.first_error.as_ref()
    }

    /// The last error.
    pub fn last_error(&self) -> Option<&ErrorRecord> {
        self.last_error.as_ref()
    }

    /// Failures that came from before a reset and were ignored.
    pub fn stale_failures(&self) -> u64 {
        self.stale_failures
    }

    /// Whether the guest believes in a write cache.
    pub fn write_cache(&self) -> WriteCache {
        self.write_cache
    }

    /// The last failure of `local` that was processed.
    pub fn upto(&self, local: LocalId) -> Option<u64> {
        self.locals.get(&local).copied()
    }

    pub(super) fn reset_status(&mut self) {
        self.io_status.reset();
        self.first_error = None;
    }

    /// What is held, to note what has become of it.
    pub(super) fn held_mut(&mut self) -> &mut Held {
        &mut self.held
    }

    /// All that is held goes on.
    pub(super) fn release(&mut self) {
        self.held.release();
        self.frozen = false;
    }

    /// Whatever has become of what was held: where nothing waits for a `cont` any more, nothing is
    /// frozen because of it. Called whenever something that was held has gone.
    pub(super) fn thaw_if_nothing_held(&mut self, epoch: &mut u64, fx: &mut impl Effects) {
        if self.frozen && !self.held.is_waiting() {
            self.frozen = false;
            *epoch += 1;
            for &local in self.locals.keys() {
                fx.post(local, GateMessage::ThawBackend { epoch: *epoch });
            }
        }
    }

    pub(super) fn save(&self) -> SavedBackend {
        SavedBackend {
            device: self.config.device.to_string(),
            node: self.config.node.to_string(),
            io_status: self.io_status,
            incidents: self.held.incidents(),
            incident: self.held.incident().cloned(),
            first_error: self.first_error.clone(),
            last_error: self.last_error.clone(),
            write_cache: self.write_cache,
            image: self.seen.clone().filter(|_| !self.doubted),
            connected: self.connected,
            losses_accepted: self.losses_accepted.load(Ordering::SeqCst),
            stats: self.accounting.read(),
        }
    }

    pub(super) fn tell(&self, reported: &Reported, fx: &mut impl Effects) {
        let error = reported.into();
        let kind = self.event(reported.action, error);
        fx.event(Event {
            at: reported.at,
            kind,
        });
    }

    fn event(&self, action: Action, error: ErrorRecord) -> EventKind {
        let request = &error.request;
        EventKind::BlockIoError(Box::new(BlockIoError {
            device: self.config.device.to_string(),
            node_name: self.config.node.to_string(),
            direction: request.op.direction(),
            action,
            status_enabled: self.io_status.is_enabled(self.config.policy),
            io_status: self.io_status.get(),
            cause: error.cause,
            error_node: error.node,
            operation: request.op,
            offset: request.offset,
            bytes: request.bytes,
            incident: match action {
                Action::Stop => self.incident().map(|incident| incident.number),
                Action::Ignore | Action::Report => None,
            },
        }))
    }

    /// A part starts, which has a gate that is frozen and knows nothing yet.
    pub(super) fn add_local(&mut self, local: LocalId, fx: &mut impl Effects) {
        self.locals.insert(local, 0);
        fx.post(
            local,
            GateMessage::Reset {
                generation: self.generation,
            },
        );
        fx.post(local, GateMessage::SetPolicy(self.config.policy));
    }

    /// A part has ended.
    pub(super) fn remove_local(&mut self, local: LocalId) {
        self.locals.remove(&local);
        self.held.remove_local(local);
    }

    /// Whether its parts were told to freeze.
    pub(super) fn is_frozen(&self) -> bool {
        self.frozen
    }

    /// Tells each of its parts the same.
    pub(super) fn post(&self, message: GateMessage, fx: &mut impl Effects) {
        for &local in self.locals.keys() {
            fx.post(local, message);
        }
    }

    /// Tells each of its parts up to which failure it shall go on.
    pub(super) fn post_release(&self, release: impl Fn(u64) -> GateMessage, fx: &mut impl Effects) {
        for (&local, &upto) in &self.locals {
            fx.post(local, release(upto));
        }
    }

    /// The device supports I/O status, which is reset.
    pub(super) fn enable_status(&mut self) {
        self.io_status.enable();
        self.first_error = None;
    }

    /// The device that was there before the daemon was started again supports I/O status.
    pub(super) fn enable_status_again(&mut self) {
        self.io_status.enable_again();
    }

    /// The device is gone.
    pub(super) fn disable_status(&mut self) {
        self.io_status.disable();
    }

    /// What is held is dropped. Returns the new generation.
    pub(super) fn abandon(&mut self, fx: &mut impl Effects) -> u64 {
        self.generation += 1;
        self.held.clear();
        self.frozen = false;
        self.accounting.merged(self.reports.forget());
        let generation = self.generation;
        self.post(GateMessage::Reset { generation }, fx);
        generation
    }

    /// Another error policy.
    pub(super) fn set_policy(&mut self, policy: Policy, fx: &mut impl Effects) {
        self.config.policy = policy;
        self.post(GateMessage::SetPolicy(policy), fx);
    }

    /// Whether that is something new.
    pub(super) fn set_write_cache(&mut self, write_cache: WriteCache) -> bool {
        std::mem::replace(&mut self.write_cache, write_cache) != write_cache
    }

    /// A request is held: what the event says. None: it does not count, because it is of a former
    /// generation or of a part that has ended.
    pub(super) fn failed(&mut self, failed: &Failed) -> Option<EventKind> {
        if failed.generation != self.generation {
            self.stale_failures += 1;
            return None;
        }
        let upto = self.locals.get_mut(&failed.local)?;
        *upto = failed.seq;
        self.io_status.set_err(failed.cause);
        let error = ErrorRecord::from(failed);
        self.first_error.get_or_insert_with(|| error.clone());
        self.last_error = Some(error.clone());
        self.held.failed(failed);
        Some(self.event(Action::Stop, error))
    }

    /// The part `failing` froze itself; the others have to be told.
    pub(super) fn freeze_others(
        &mut self,
        failing: LocalId,
        epoch: &mut u64,
        fx: &mut impl Effects,
    ) {
        self.frozen = true;
        if self.locals.len() > 1 {
            *epoch += 1;
            for &local in self.locals.keys().filter(|&&local| local != failing) {
                fx.post(local, GateMessage::FreezeBackend { epoch: *epoch });
            }
        }
    }

    /// A request was reported or ignored: when the event comes. None: it does not count.
    pub(super) fn reported(&mut self, reported: &Reported, now: Instant) -> Option<Offered> {
        if reported.generation != self.generation {
            self.stale_failures += 1;
            return None;
        }
        self.last_error = Some(reported.into());
        let (offered, merged) = self.reports.offer(reported, now);
        self.accounting.merged(merged);
        Some(offered)
    }

    /// When the event that waits is due, if one does.
    pub(super) fn report_due(&self) -> Option<Instant> {
        self.reports.due()
    }

    /// Sends the event whose time has come.
    pub(super) fn tell_due(&mut self, now: Instant, fx: &mut impl Effects) {
        if let Some(reported) = self.reports.take_due(now) {
            self.tell(&reported, fx);
        }
    }

    /// A client of a former daemon has handed a request back.
    pub(super) fn restored(&mut self, restored: &Restored) {
        let known = self.locals.contains_key(&restored.local);
        if known && restored.generation == self.generation {
            self.held.restored(restored);
        }
    }
}
