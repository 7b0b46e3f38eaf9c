//! What is done before it is full.

use std::sync::Arc;
use std::time::Duration;

use super::super::early::{Seen, Stage};
use super::super::headroom::mark;
use super::super::incident::{DiskState, Stage as Incident};
use super::super::record::{Extended, What};
use super::super::room::{Ask, Kind, Measure, can_grow};
use super::super::view::Disk;
use super::{Machine, Order, RoomAnswer, RoomOrder, RoomResult};

use crate::settings::Strategy;

/// A snapshot puts another node below a disk, and nothing tells of it: it is looked at so often.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(60);

impl Machine {
    /// Whether some disk is extended before it is full.
    pub(super) fn wants_early(&self) -> bool {
        self.disks.iter().any(|disk| disk.settings.early.is_some())
    }

    /// It was looked at: begins where nothing goes on, and takes the server's hints.
    pub(super) fn look_early(&mut self, now: Duration, at: usize) {
        self.hint(now, at);
        let short = self.is_short(at);
        let DiskState {
            settings,
            incident,
            early,
            ..
        } = &mut self.disks[at];
        if settings.early.is_none() {
            early.stage = Stage::Off;
            return;
        }
        match early.stage {
            Stage::Off if incident.is_none() => self.begin_early(at),
            // What is further than was known may cause an extension, never prevent one.
            Stage::Armed(_) if short => self.weigh(now, at),
            _ => {}
        }
    }

    /// How far the server says that a format on a device has come.
    fn hint(&mut self, now: Duration, at: usize) {
        let DiskState { disk, early, .. } = &mut self.disks[at];
        let highest = disk.growth.highest;
        if highest == 0 {
            return;
        }
        early.reached = early.reached.max(Some(highest));
        if early
            .measure
            .is_none_or(|measure| measure.kind == Kind::Device)
        {
            early.saw(now, highest, disk.growth.written);
        }
    }

    /// Measures, then weighs.
    pub(super) fn begin_early(&mut self, at: usize) {
        let DiskState {
            settings, early, ..
        } = &mut self.disks[at];
        if !self.connected || settings.early.is_none() || early.stage == Stage::Extending {
            return;
        }
        early.stage = Stage::Measuring;
        let order = self.early_order(at);
        self.orders.push(Order::Measure(order));
    }

    fn early_order(&self, at: usize) -> Box<RoomOrder> {
        let DiskState {
            disk,
            settings,
            early,
            ..
        } = &self.disks[at];
        Box::new(RoomOrder {
            disk: disk.clone(),
            settings: Arc::clone(settings),
            incident: 0,
            ask: Ask {
                own_event: false,
                extend: true,
                baseline: None,
                needs: 0,
                head_room: early.head_room,
                early: true,
                used: early.reached,
            },
        })
    }

    fn named(&self, disk: &str) -> Option<usize> {
        self.disks.iter().position(|known| known.disk.name == disk)
    }

    /// What became of [`Order::Measure`].
    ///
    /// # Errors
    /// `result` has why it cannot be measured.
    pub fn measured(&mut self, now: Duration, disk: &str, result: Result<Measure, String>) {
        let Some(at) = self.named(disk) else {
            return;
        };
        let early = &mut self.disks[at].early;
        if early.stage != Stage::Measuring {
            return;
        }
        early.stage = Stage::Off;
        match result {
            Err(why) => self.give_up_early(at, &why),
            Ok(measure) => {
                let used = |measure: &Measure| Some(measure.size - measure.free?.min(measure.size));
                let before = early.measure.as_ref().and_then(used);
                early.measure = Some(measure);
                let grows = used(&measure) > before;
                if let Some(used) = used(&measure) {
                    early.saw(now, used, None);
                }
                self.weigh_moving(now, at, grows);
            }
        }
    }

    /// What became of [`Order::Arm`].
    ///
    /// # Errors
    /// `result` has why the server refuses it.
    pub fn armed(&mut self, now: Duration, disk: &str, threshold: u64, result: Result<(), String>) {
        let Some(at) = self.named(disk) else {
            return;
        };
        let early = &mut self.disks[at].early;
        if early.stage != Stage::Armed(threshold) {
            return;
        }
        let Err(why) = result else {
            early.told = false;
            return;
        };
        early.stage = Stage::Off;
        match early.measure.map(|measure| measure.kind) {
            Some(Kind::Device) | None => self.give_up_early(at, &why),
            Some(_) => {
                early.blind = true;
                self.weigh(now, at);
            }
        }
    }

    fn give_up_early(&mut self, at: usize, why: &str) {
        if !std::mem::replace(&mut self.disks[at].early.told, true) {
            let reason = format!("it is extended only when it is full: {why}");
            self.decide(at, "no head-room", reason);
        }
    }

    /// What it answers to [`Order::Stats`]: the disks, of which the growth counts.
    pub fn stats(&mut self, now: Duration, disks: &[Disk]) {
        for disk in disks {
            let Some(at) = self.named(&disk.name) else {
                continue;
            };
            let known = &mut self.disks[at];
            if known.disk.growth.node != disk.growth.node {
                // The next look says more.
                continue;
            }
            known.disk.growth = disk.growth.clone();
            self.hint(now, at);
            if matches!(self.disks[at].early.stage, Stage::Armed(_)) {
                self.weigh(now, at);
            }
        }
    }

    /// A node has grown so far.
    pub(super) fn grown(&mut self, now: Duration, node: &str, reached: u64, age: Duration) {
        let is_of = |state: &DiskState| node_of(state) == Some(node);
        let Some(at) = self.disks.iter().position(is_of) else {
            return;
        };
        let DiskState {
            incident, early, ..
        } = &mut self.disks[at];
        let seen = early.measure.map(|measure| measure.kind);
        match seen {
            Some(Kind::Device) => {
                early.reached = early.reached.max(Some(reached));
                // How fast: that needs what the guest has written.
                self.orders.push(Order::Stats);
            }
            Some(Kind::Quota) => {
                if let Some(measure) = &mut early.measure {
                    measure.free = Some(measure.size.saturating_sub(reached));
                }
                early.saw(now.saturating_sub(age), reached, None);
            }
            _ => {}
        }
        if !matches!(early.stage, Stage::Armed(_)) || incident.is_some() {
            return;
        }
        early.stage = Stage::Off;
        early.since = Some(now.saturating_sub(age));
        match seen.map(Seen::of) {
            Some(Seen::Threshold) => self.weigh(now, at),
            Some(Seen::Measuring) => {
                (early.moves, early.every) = (true, Duration::ZERO);
                self.begin_early(at);
            }
            None => {}
        }
    }

    /// A guest was told that there is no space: what is too late for that request is in time for the next.
    pub(super) fn told_of_no_space(&mut self, at: usize) {
        let early = &mut self.disks[at].early;
        early.reached = early.reached.max(early.measure.map(|measure| measure.size));
        if matches!(early.stage, Stage::Armed(_) | Stage::Moving { .. }) {
            self.begin_early(at);
        }
    }

    /// Whether less is free than is to be.
    fn is_short(&self, at: usize) -> bool {
        let DiskState {
            settings, early, ..
        } = &self.disks[at];
        let head_room = settings.early.map(|wanted| early.pace.head_room(wanted));
        let free = early.free();
        free.zip(head_room)
            .is_some_and(|(free, head_room)| free < head_room)
    }

    fn weigh(&mut self, now: Duration, at: usize) {
        self.weigh_moving(now, at, true);
    }

    /// Extends if less is free than is to be, else sees to it that it is told when that is so.
    fn weigh_moving(&mut self, now: Duration, at: usize, grows: bool) {
        let short = self.is_short(at);
        let dry_run = self.dry_run;
        let state = &mut self.disks[at];
        let node = node_of(state).map(str::to_owned);
        let DiskState {
            disk,
            settings,
            incident,
            early,
            ..
        } = state;
        let (Some(wanted), Some(measure)) = (settings.early, early.measure) else {
            return;
        };
        early.head_room = early.pace.head_room(wanted);
        if incident.is_some() {
            // Afterwards it is measured again.
            early.stage = Stage::Off;
            return;
        }
        if !can_grow(disk, settings, measure) {
            early.stage = Stage::Off;
            if short && settings.cap.is_some_and(|cap| measure.size >= cap) {
                let why = "it is as large as it may be (cap)".to_owned();
                self.tell_short(at, why);
            }
            return;
        }
        if dry_run {
            early.stage = Stage::Off;
            let head_room = early.head_room;
            if !std::mem::replace(&mut early.told, true) {
                let what = if short { "is" } else { "would be, if it were" };
                let would = format!(
                    "less than {head_room} bytes free {what} a reason to extend before it is full"
                );
                self.decide(at, "dry run", would);
            }
            return;
        }
        if short {
            early.stage = Stage::Extending;
            early.since.get_or_insert(now);
            let order = self.early_order(at);
            self.orders.push(Order::Early(order));
            return;
        }
        early.since = None;
        let threshold = match Seen::of(measure.kind) {
            Seen::Threshold => {
                let used = early.free().map_or(0, |free| measure.size - free);
                mark(measure.size, used, early.head_room)
            }
            Seen::Measuring if early.moves => match early.next_look(grows, settings.poll) {
                Some(every) => {
                    early.stage = Stage::Moving { until: now + every };
                    return;
                }
                None => {
                    early.moves = false;
                    1
                }
            },
            Seen::Measuring => 1,
        };
        match node.filter(|_| !early.blind) {
            Some(_) if early.stage == Stage::Armed(threshold) => {}
            Some(node) => {
                early.stage = Stage::Armed(threshold);
                let disk = disk.name.clone();
                self.orders.push(Order::Arm {
                    disk,
                    node,
                    threshold,
                });
            }
            None if measure.kind == Kind::Device => {
                early.stage = Stage::Off;
                self.give_up_early(at, "the node that grows has no name");
            }
            None => {
                early.stage = Stage::Moving {
                    until: now + settings.poll,
                };
            }
        }
    }

    /// Somebody should know before it is full.
    fn tell_short(&mut self, at: usize, reason: String) {
        if !std::mem::replace(&mut self.disks[at].early.told, true) {
            let decision = "short of room";
            self.tell(Some(at), What::Decision { decision, reason }, true);
        }
    }

    /// What became of [`Order::Early`].
    pub fn early(&mut self, now: Duration, disk: &str, answer: RoomAnswer) {
        let Some(at) = self.named(disk) else {
            return;
        };
        let chance = self.chance.draw();
        let DiskState {
            settings,
            early,
            incident,
            ..
        } = &mut self.disks[at];
        // Of a connection before: it is told, and what goes on now is not touched.
        let own = early.stage == Stage::Extending;
        let awaited = std::mem::take(&mut early.awaited);
        let lead = match (own, early.since.take()) {
            (true, Some(since)) => now.saturating_sub(since).saturating_sub(answer.took),
            _ => Duration::ZERO,
        };
        early.measure = answer.measure.or(early.measure);
        if own {
            early.stage = Stage::Off;
        }
        let result = answer.result;
        let detail = answer.detail.clone();
        if let RoomResult::Grown { .. } = result {
            early.failed = 0;
            early.pace.extended(lead + answer.took);
            // It goes on growing, by all that is known.
            (early.moves, early.every) = (true, Duration::ZERO);
        }
        let head_room = early.head_room;
        if own && !matches!(result, RoomResult::Grown { .. } | RoomResult::Enough) {
            early.failed += 1;
            let delay = settings.backoff.delay(early.failed, chance);
            early.stage = Stage::Waiting { until: now + delay };
        }
        let waits = incident
            .as_ref()
            .is_some_and(|incident| incident.stage == Incident::Room);
        match result {
            RoomResult::Grown { by, grown } => {
                self.tell_growth(
                    at,
                    Extended::Grown,
                    by,
                    grown,
                    answer,
                    (true, head_room, lead),
                );
            }
            RoomResult::Failed { by } => {
                self.tell_growth(at, Extended::Failed, by, 0, answer, (true, head_room, lead));
                self.tell_short(at, format!("it could not be extended: {detail}"));
            }
            RoomResult::Refused => {
                self.tell_growth(at, Extended::Refused, 0, 0, answer, (true, head_room, lead));
                self.tell_short(at, format!("it is not extended: {detail}"));
            }
            RoomResult::AtCap => self.tell_short(at, detail),
            RoomResult::Enough | RoomResult::NotAtEnd | RoomResult::Full => {}
        }
        if awaited && waits {
            return self.goes_on_after(now, at, matches!(result, RoomResult::Grown { .. }));
        }
        if own && matches!(self.disks[at].early.stage, Stage::Off) {
            self.weigh(now, at);
            if self.disks[at]
                .early
                .measure
                .is_some_and(|measure| measure.kind == Kind::Device)
            {
                self.orders.push(Order::Stats);
            }
        }
    }

    /// An incident has begun while it was extended: that extension is its own.
    fn goes_on_after(&mut self, now: Duration, at: usize, grown: bool) {
        if !grown {
            let extend = self.disks[at].settings.strategy != Strategy::Wait;
            return self.order_room(at, extend);
        }
        let DiskState { incident, past, .. } = &mut self.disks[at];
        if let Some(incident) = incident {
            incident.extensions += 1;
            incident.stage = Incident::Ready;
            past.flaps = 0;
        }
        self.decide(
            at,
            "continue",
            "it was being extended when it ran full".to_owned(),
        );
        self.go_on(now);
    }

    /// What is due.
    pub(super) fn early_tick(&mut self, now: Duration, at: usize) {
        match self.disks[at].early.stage {
            Stage::Moving { until } | Stage::Waiting { until } if now >= until => {
                if self.disks[at].incident.is_none() {
                    self.begin_early(at);
                } else {
                    self.disks[at].early.stage = Stage::Off;
                }
            }
            _ => {}
        }
    }
}

/// The node whose growth is told.
fn node_of(state: &DiskState) -> Option<&str> {
    let DiskState {
        disk,
        settings,
        early,
        ..
    } = state;
    match (&settings.strategy, early.measure?.kind) {
        (Strategy::Quota(Some(node)), _) => Some(node),
        (_, Kind::Quota) => disk.node.as_deref(),
        _ => disk.growth.node.as_deref(),
    }
}
