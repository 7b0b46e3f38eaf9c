use std::time::Duration;

use super::*;
use crate::words::error::Cause;
use crate::words::error_policy::{Action, OnError};
use crate::words::ids::LocalId;
use crate::words::image::Image;
use crate::words::incident::{EndedIncident, ErrorRecord};
use crate::words::request::{Operation, Request, Tag};

#[derive(Default)]
struct Outbox {
    events: Vec<EventKind>,
    ended: Vec<EndedIncident>,
}

impl Effects for Outbox {
    fn event(&mut self, event: Event) {
        self.events.push(event.kind);
    }
    fn post(&mut self, _: LocalId, _: GateMessage) {}
    fn vm(&mut self, _: VmOrder) {}
    fn incident_ended(&mut self, ended: &EndedIncident) {
        self.ended.push(ended.clone());
    }
}

impl Outbox {
    fn take(&mut self) -> Vec<(Option<BackendId>, u64, HoldEnd)> {
        let ended = std::mem::take(&mut self.ended);
        let told = |ended: EndedIncident| (ended.backend, ended.incident.number, ended.end);
        ended.into_iter().map(told).collect()
    }
}

const A: LocalId = LocalId(1);
const B: LocalId = LocalId(2);
/// Of the other backend.
const C: LocalId = LocalId(3);

fn config(device: &str, scope: HoldScope) -> BackendConfig {
    BackendConfig {
        device: device.into(),
        node: "disk".into(),
        policy: Policy::new(OnError::Stop, OnError::Report),
        scope,
        image: Image::default(),
    }
}

fn request(order: u64) -> Request {
    Request {
        tag: Tag { queue: 0, head: 0 },
        op: Operation::Write,
        offset: order * 512,
        bytes: 512,
    }
}

/// Two exports, the first of which has two parts.
struct Daemon {
    control: RunControl,
    vda: BackendId,
    vdb: BackendId,
    fx: Outbox,
    seq: u64,
}

impl Daemon {
    fn start(saved: Option<SavedState>, scope: HoldScope) -> Self {
        let (mut control, mut fx) = (RunControl::new(), Outbox::default());
        if let Some(saved) = saved {
            control.restore(saved);
        }
        let [vda, vdb] = ["vda", "vdb"].map(|device| control.add_backend(config(device, scope)));
        for (backend, local) in [(vda, A), (vda, B), (vdb, C)] {
            control.add_local(backend, local, &mut fx).unwrap();
        }
        let seq = 0;
        Self {
            control,
            vda,
            vdb,
            fx,
            seq,
        }
    }

    /// Both devices are there, and each holds one request.
    fn holding(scope: HoldScope) -> Self {
        let mut daemon = Self::start(None, scope);
        for backend in [daemon.vda, daemon.vdb] {
            daemon.control.attach(backend, &mut daemon.fx);
        }
        daemon.fail(A, 1);
        daemon.fail(C, 1);
        daemon
    }

    fn of(&self, local: LocalId) -> BackendId {
        if local == C { self.vdb } else { self.vda }
    }

    fn generation(&self, backend: BackendId) -> u64 {
        self.control
            .backend(backend)
            .map_or(0, BackendState::generation)
    }

    fn fail(&mut self, local: LocalId, order: u64) {
        self.seq += 1;
        let backend = self.of(local);
        let failed = Failed {
            backend,
            local,
            generation: self.generation(backend),
            seq: self.seq,
            order,
            request: request(order),
            cause: Cause::of_errno(libc::ENOSPC),
            node: Some(format!("file{order}").into()),
            at: SystemTime::UNIX_EPOCH,
        };
        self.control.failed(&failed, &mut self.fx);
    }

    fn resolve(&mut self, local: LocalId, order: u64, end: HoldEnd) {
        let backend = self.of(local);
        let resolved = Resolved {
            backend,
            local,
            generation: self.generation(backend),
            order,
            end,
        };
        self.control.resolved(resolved, &mut self.fx);
    }

    fn report(&mut self, now: Instant) {
        let reported = Reported {
            backend: self.vda,
            generation: self.generation(self.vda),
            request: request(9),
            action: Action::Report,
            cause: Cause::of_errno(libc::EIO),
            node: Some("quota0".into()),
            at: SystemTime::UNIX_EPOCH,
        };
        self.control.reported(&reported, now, &mut self.fx);
    }

    fn incident(&self, backend: BackendId) -> Option<u64> {
        let incident = self.control.backend(backend)?.incident();
        incident.map(|incident| incident.number)
    }

    /// Sets every deadline that what is held may have, for both.
    fn set_timers(&mut self, now: Instant) {
        for backend in [self.vda, self.vdb] {
            for timer in Timer::OF_HELD {
                self.control.clock.set(backend, timer, Some(now));
            }
        }
    }
}

/// A way in which what is held may go.
type Way = fn(&mut Daemon);

const WAYS: [(HoldEnd, Way); 10] = [
    (HoldEnd::Completed, |d| d.resolve(A, 1, HoldEnd::Completed)),
    (HoldEnd::Reported, |d| d.resolve(A, 1, HoldEnd::Reported)),
    (HoldEnd::NoRecord, |d| d.resolve(A, 1, HoldEnd::NoRecord)),
    (HoldEnd::LossAccepted, |d| {
        d.resolve(A, 1, HoldEnd::LossAccepted);
    }),
    (HoldEnd::Attached, |d| {
        d.control.attach(d.vda, &mut d.fx);
    }),
    (HoldEnd::Reset, |d| {
        d.control.reset_device(d.vda, &mut d.fx);
    }),
    (HoldEnd::Abandoned, |d| {
        d.control.abandon(d.vda, &mut d.fx);
    }),
    (HoldEnd::Detached, |d| d.control.detach(d.vda, &mut d.fx)),
    (HoldEnd::PartRemoved, |d| {
        d.control.remove_local(d.vda, A, &mut d.fx);
    }),
    (HoldEnd::BackendRemoved, |d| {
        d.control.remove_backend(d.vda, &mut d.fx);
    }),
];

#[test]
fn however_an_incident_ends_it_ends_once_and_takes_along_what_was_its() {
    let now = Instant::now();
    for scope in [HoldScope::Vm, HoldScope::Device, HoldScope::Request] {
        for (end, way) in WAYS {
            let mut daemon = Daemon::holding(scope);
            daemon.set_timers(now);
            let (vda, vdb) = (daemon.vda, daemon.vdb);
            assert_eq!(daemon.incident(vda), Some(1));
            assert!(daemon.fx.take().is_empty(), "attached with nothing held");
            let revision = daemon.control.revision();
            way(&mut daemon);
            assert_eq!(daemon.fx.take(), [(Some(vda), 1, end)], "{scope:?}");
            assert!(
                daemon.control.revision() > revision,
                "{end:?} is to be saved"
            );
            assert_eq!(
                (daemon.incident(vda), daemon.incident(vdb)),
                (None, Some(1))
            );
            for timer in Timer::OF_HELD {
                assert_eq!(daemon.control.clock.get(vda, timer), None, "{end:?}");
                assert_eq!(daemon.control.clock.get(vdb, timer), Some(now), "{end:?}");
            }
            // Once: whatever comes now finds nothing that could end.
            for (_, again) in WAYS {
                again(&mut daemon);
            }
            daemon.control.cont(None, false, &mut daemon.fx).unwrap();
            assert!(daemon.fx.take().is_empty(), "{end:?} ended twice");
            assert_eq!(daemon.incident(vdb), Some(1), "what is tried again is held");
        }
    }
}

/// Events named the export's node alone, whichever node below it was full.
#[test]
fn the_node_that_failed_is_told_and_kept() {
    let mut daemon = Daemon::holding(HoldScope::Vm);
    daemon.fail(A, 2);
    daemon.report(Instant::now());
    let told = daemon.fx.events.iter().filter_map(|event| match event {
        EventKind::BlockIoError(error) => Some(error.error_node.as_deref()),
        _ => None,
    });
    let told: Vec<_> = told.collect();
    let quota = Some("quota0");
    assert_eq!(told, [Some("file1"), Some("file1"), Some("file2"), quota]);
    let backend = daemon.control.backend(daemon.vda).unwrap();
    let held = backend.held().map(|held| held.node.as_deref());
    assert!(held.eq([Some("file1"), Some("file2")]));
    let incident = backend.incident().unwrap();
    assert_eq!(incident.node.as_deref(), Some("file1"));
    let error = |error: Option<&ErrorRecord>| error.unwrap().node.clone();
    assert_eq!(error(backend.first_error()).as_deref(), Some("file1"));
    assert_eq!(error(backend.last_error()).as_deref(), quota);
    let saved = &daemon.control.save().backends[0];
    assert_eq!(error(saved.last_error.as_ref()).as_deref(), quota);
}

#[test]
fn the_next_incident_has_the_next_number() {
    for (end, way) in WAYS {
        let mut daemon = Daemon::holding(HoldScope::Device);
        let vda = daemon.vda;
        way(&mut daemon);
        if end == HoldEnd::BackendRemoved {
            continue;
        }
        daemon.fail(B, 1);
        assert_eq!(daemon.incident(vda), Some(2), "{end:?}");
        daemon.resolve(B, 1, HoldEnd::Completed);
        let expected = [(Some(vda), 1, end), (Some(vda), 2, HoldEnd::Completed)];
        assert_eq!(daemon.fx.take(), expected);
        assert_eq!(daemon.control.backend(vda).unwrap().incidents(), 2);
    }
}

#[test]
fn the_last_that_goes_says_how_it_ended() {
    for (end, way) in WAYS {
        // What another part holds goes at once with the device, or before or after this one.
        let mut daemon = Daemon::holding(HoldScope::Vm);
        daemon.fail(B, 7);
        let vda = daemon.vda;
        let whole = daemon.control.backend(vda).unwrap().held().len();
        assert_eq!(whole, 2);
        way(&mut daemon);
        let left = daemon
            .control
            .backend(vda)
            .map_or(0, |state| state.held().len());
        if left == 0 {
            assert_eq!(daemon.fx.take(), [(Some(vda), 1, end)]);
            continue;
        }
        assert_eq!(
            (daemon.fx.take(), daemon.incident(vda)),
            (vec![], Some(1)),
            "{end:?}"
        );
        daemon.resolve(B, 7, HoldEnd::Reported);
        assert_eq!(daemon.fx.take(), [(Some(vda), 1, HoldEnd::Reported)]);
    }
}

#[test]
fn as_long_as_something_is_held_nothing_ends_it() {
    let mut daemon = Daemon::holding(HoldScope::Vm);
    let vda = daemon.vda;
    let report = Policy::new(OnError::Report, OnError::Report);
    daemon.control.set_policy(vda, report, &mut daemon.fx);
    daemon.control.stop(&mut daemon.fx).unwrap();
    daemon.control.cont(None, false, &mut daemon.fx).unwrap();
    daemon.control.fail_held_flushes(vda, &mut daemon.fx);
    daemon.control.remove_local(vda, B, &mut daemon.fx);
    daemon.control.reattach(vda);
    // Another order, a part that is not there, a former generation.
    daemon.resolve(A, 2, HoldEnd::Completed);
    daemon.resolve(B, 1, HoldEnd::Completed);
    let stale = Resolved {
        backend: vda,
        local: A,
        generation: daemon.generation(vda) - 1,
        order: 1,
        end: HoldEnd::Completed,
    };
    daemon.control.resolved(stale, &mut daemon.fx);
    daemon.control.shutdown("quit", &mut daemon.fx);
    assert_eq!((daemon.fx.take(), daemon.incident(vda)), (vec![], Some(1)));
}

#[test]
fn what_a_former_daemon_held_goes_through_the_same_door() {
    for scope in [HoldScope::Device, HoldScope::Request] {
        let saved = Daemon::holding(scope).control.save();
        // Each way but those in which it would have to be handed back before.
        for (end, way) in WAYS.into_iter().skip(4) {
            let mut daemon = Daemon::start(Some(saved.clone()), scope);
            let vda = daemon.vda;
            way(&mut daemon);
            if end == HoldEnd::PartRemoved {
                assert_eq!((daemon.fx.take(), daemon.incident(vda)), (vec![], Some(1)));
                continue;
            }
            assert_eq!(daemon.fx.take(), [(Some(vda), 1, end)]);
            assert_eq!(daemon.incident(vda), None);
        }
        let mut daemon = Daemon::start(Some(saved.clone()), scope);
        let (vda, vdb) = (daemon.vda, daemon.vdb);
        daemon
            .control
            .cont_backend("vda", None, &mut daemon.fx)
            .unwrap();
        let not_awaited = |id| (Some(id), 1, HoldEnd::NotAwaited);
        assert_eq!(daemon.fx.take(), [not_awaited(vda)]);
        daemon.control.cont(None, false, &mut daemon.fx).unwrap();
        assert_eq!(daemon.fx.take(), [not_awaited(vdb)]);
        daemon.control.cont(None, false, &mut daemon.fx).unwrap();
        assert!(daemon.fx.take().is_empty());

        // Its client is back, and has nothing of it.
        let mut daemon = Daemon::start(Some(saved.clone()), scope);
        daemon.control.reattach(daemon.vda);
        for _ in 0..2 {
            daemon.control.handed_back(daemon.vda, &mut daemon.fx);
        }
        assert_eq!(daemon.fx.take(), [(Some(daemon.vda), 1, HoldEnd::NoRecord)]);

        // Handed back, so that `cont` is not the end of it.
        let mut daemon = Daemon::start(Some(saved.clone()), scope);
        let restored = Restored {
            backend: daemon.vda,
            local: A,
            generation: 0,
            order: 5,
            request: request(5),
            at: SystemTime::UNIX_EPOCH,
        };
        daemon.control.restored(&restored);
        daemon.control.cont(None, false, &mut daemon.fx).unwrap();
        assert_eq!(daemon.fx.take(), [not_awaited(daemon.vdb)]);
        daemon.resolve(A, 5, HoldEnd::Completed);
        assert_eq!(
            daemon.fx.take(),
            [(Some(daemon.vda), 1, HoldEnd::Completed)]
        );

        // One ring has started, and what was handed back there has ended before the next one does.
        let mut daemon = Daemon::start(Some(saved.clone()), scope);
        let vda = daemon.vda;
        let frozen = |daemon: &Daemon| daemon.control.backend(vda).unwrap().is_frozen();
        let freezes = scope == HoldScope::Device;
        for order in [5, 6] {
            daemon.control.restored(&Restored {
                order,
                request: request(order),
                ..restored
            });
            daemon.resolve(A, order, HoldEnd::Completed);
            assert_eq!((daemon.fx.take(), frozen(&daemon)), (vec![], freezes));
        }
        daemon.control.handed_back(vda, &mut daemon.fx);
        assert_eq!(daemon.fx.take(), [(Some(vda), 1, HoldEnd::NoRecord)]);
        assert!(!frozen(&daemon));
    }
}

#[test]
fn the_incident_of_an_export_that_does_not_come_back_ends_with_cont() {
    let saved = Daemon::holding(HoldScope::Device).control.save();
    let (mut control, mut fx) = (RunControl::new(), Outbox::default());
    control.restore(saved);
    let vda = control.add_backend(config("vda", HoldScope::Device));
    let left = control.start_ended(&mut fx);
    assert_eq!((left.kept[0].device.as_str(), left.kept.len()), ("vdb", 1));
    assert!(left.dropped.is_empty() && fx.take().is_empty());
    let revision = control.revision();
    control.cont(None, false, &mut fx).unwrap();
    assert!(control.revision() > revision);
    assert_eq!(fx.ended[1].device.as_ref(), "vdb");
    let ended = |backend| (backend, 1, HoldEnd::NotAwaited);
    assert_eq!(fx.take(), [ended(Some(vda)), ended(None)]);
    // What it was released from does not freeze it when it comes; the rest is as it was.
    let vdb = control.add_backend(config("vdb", HoldScope::Device));
    let state = control.backend(vdb).unwrap();
    assert!(!state.is_frozen() && !state.holds());
    assert_eq!(state.raw_io_status(), crate::words::io_status::Status::Ok);
    assert_eq!((state.incident(), state.incidents()), (None, 1));
    assert!(state.first_error().is_none() && state.last_error().is_some());
    control.cont(None, false, &mut fx).unwrap();
    assert!(fx.take().is_empty(), "once");
}

/// Exports get new names at each restart: the latest are kept.
#[test]
fn what_is_unclaimed_is_bounded_and_the_oldest_goes_first() {
    let mut saved = SavedState::default();
    let mut dropped = Vec::new();
    for round in 0..UNCLAIMED_MAX + 10 {
        let (mut control, mut fx) = (RunControl::new(), Outbox::default());
        control.restore(saved);
        let id = control.add_backend(config(&format!("vd{round}"), HoldScope::Request));
        control.add_local(id, A, &mut fx).unwrap();
        let left = control.start_ended(&mut fx);
        assert!(left.kept.len() <= UNCLAIMED_MAX);
        let ended = fx.take();
        assert_eq!(ended.len(), left.dropped.len());
        assert!(
            ended
                .iter()
                .all(|&end| end == (None, 1, HoldEnd::Unclaimed))
        );
        dropped.extend(left.dropped.into_iter().map(|saved| saved.device));
        control.attach(id, &mut fx);
        control.failed(
            &Failed {
                backend: id,
                local: A,
                generation: 1,
                seq: 1,
                order: 1,
                request: request(1),
                cause: Cause::of_errno(libc::EIO),
                node: None,
                at: SystemTime::UNIX_EPOCH,
            },
            &mut fx,
        );
        let (read, _) = SavedState::decode(&control.save().encode("boot")).unwrap();
        assert_eq!(read.backends[0].device, format!("vd{round}"), "the latest");
        saved = read;
    }
    assert_eq!(saved.backends.len(), UNCLAIMED_MAX + 1);
    let oldest: Vec<_> = (0..9).map(|round| format!("vd{round}")).collect();
    assert_eq!(dropped, oldest);
}

#[test]
fn a_backend_on_another_node_voids_what_was_saved_of_the_two() {
    let saved = Daemon::holding(HoldScope::Vm).control.save();
    let (mut control, mut fx) = (RunControl::new(), Outbox::default());
    control.restore(saved);
    let other = BackendConfig {
        node: "other".into(),
        ..config("vda", HoldScope::Vm)
    };
    let vda = control.add_backend(other);
    assert!(!control.backend(vda).unwrap().holds());
    assert_eq!(control.start_ended(&mut fx).kept.len(), 2);
    control.set_node(vda, "disk".into(), &mut fx);
    assert_eq!(fx.take(), [(None, 1, HoldEnd::Unclaimed)]);
    let saved = control.save();
    let names: Vec<_> = (saved.backends.iter().chain(&saved.unclaimed))
        .map(|saved| (saved.device.as_str(), saved.node.as_str()))
        .collect();
    assert_eq!(names, [("vda", "disk"), ("vdb", "disk")]);
}

/// The report limit on one clock with all that is still to come.
#[test]
fn an_event_comes_when_it_is_due_whatever_else_is() {
    let start = Instant::now();
    let ms = |ms| start + Duration::from_millis(ms);
    let mut daemon = Daemon::start(None, HoldScope::Vm);
    let (vda, vdb) = (daemon.vda, daemon.vdb);
    daemon.report(ms(0));
    daemon.report(ms(1));
    daemon.fx.events.clear();
    daemon.set_timers(ms(500));
    daemon.control.clock.set(vdb, Timer::Retry, Some(ms(1000)));
    assert_eq!(daemon.control.wake_at(), Some(ms(500)));
    daemon.control.wake(ms(499), &mut daemon.fx);
    assert_eq!(daemon.control.clock.len(), 7);
    daemon.control.wake(ms(999), &mut daemon.fx);
    assert_eq!(daemon.control.wake_at(), Some(ms(1000)));
    assert!(daemon.fx.events.is_empty());
    // Late, and one more has failed meanwhile: that one is told instead.
    daemon.report(ms(3000));
    assert_eq!(daemon.fx.events.len(), 1);
    assert_eq!(daemon.control.clock.get(vda, Timer::Report), None);
    daemon.report(ms(3001));
    daemon.control.wake(ms(9000), &mut daemon.fx);
    assert_eq!(daemon.fx.events.len(), 2);
    assert_eq!(daemon.control.wake_at(), None);
    // With the backend goes what it had to wait for.
    daemon.report(ms(9001));
    daemon.set_timers(ms(9500));
    daemon.control.remove_backend(vda, &mut daemon.fx);
    assert_eq!(daemon.control.clock.len(), Timer::OF_HELD.len());
    daemon.control.remove_backend(vdb, &mut daemon.fx);
    assert_eq!(daemon.control.wake_at(), None);
}

#[test]
fn a_clock_at_its_end_loses_no_event() {
    let mut last = Instant::now();
    for step in (0..64).rev().map(|n| Duration::from_secs(1 << n)) {
        while let Some(later) = last.checked_add(step) {
            last = later;
        }
    }
    let mut daemon = Daemon::start(None, HoldScope::Vm);
    for told in 1..4 {
        daemon.report(last);
        assert_eq!(daemon.fx.events.len(), told);
        daemon.control.wake(last, &mut daemon.fx);
    }
}
