//! Run control with two exports, and what it tells.

use std::time::{Duration, SystemTime};

use standfast_block::run_control::{
    BackendConfig, Effects, Failed, GateMessage, Resolved, Restored, RunControl,
};
use standfast_block::{
    BackendId, Cause, Event, EventKind, HoldEnd, HoldScope, Image, LocalId, OnError, Operation,
    Policy, Request, SavedState, Status, Tag, VmOrder,
};

pub const AT: SystemTime = SystemTime::UNIX_EPOCH;

#[derive(Default)]
pub struct Outbox {
    pub events: Vec<EventKind>,
    pub posts: Vec<(LocalId, GateMessage)>,
    pub orders: Vec<VmOrder>,
}

impl Effects for Outbox {
    fn event(&mut self, event: Event) {
        self.events.push(event.kind);
    }
    fn post(&mut self, local: LocalId, message: GateMessage) {
        self.posts.push((local, message));
    }
    fn vm(&mut self, order: VmOrder) {
        self.orders.push(order);
    }
}

/// Run control with two exports, each with a part of the same number.
pub struct Daemon {
    pub control: RunControl,
    pub ids: Vec<BackendId>,
    pub outbox: Outbox,
}

impl Daemon {
    pub fn start(saved: Option<SavedState>, scope: HoldScope) -> Self {
        let mut control = RunControl::new();
        if let Some(saved) = saved {
            // As it is kept.
            let (saved, _) = SavedState::decode(&saved.encode("boot")).unwrap();
            control.restore(saved);
        }
        let mut outbox = Outbox::default();
        let mut ids = Vec::new();
        for (number, device) in (1..).zip(["vda", "vdb"]) {
            let id = control.add_backend(BackendConfig {
                device: device.into(),
                node: "disk".into(),
                policy: Policy::new(OnError::Stop, OnError::Report),
                scope,
                image: Image::default(),
            });
            control.add_local(id, LocalId(number), &mut outbox).unwrap();
            ids.push(id);
        }
        assert!(outbox.events.is_empty(), "a restart is no event");
        Self {
            control,
            ids,
            outbox,
        }
    }

    /// Both clients are there and a write of `vda` has failed.
    pub fn failed(scope: HoldScope) -> Self {
        let mut daemon = Self::start(None, scope);
        daemon.attach(0);
        daemon.attach(1);
        daemon.fail(0, 1, libc::ENOSPC);
        daemon
    }

    pub fn attach(&mut self, number: usize) {
        self.outbox.events.clear();
        self.control.attach(self.ids[number], &mut self.outbox);
    }

    pub fn fail(&mut self, number: usize, seq: u64, errno: i32) {
        let failed = Failed {
            backend: self.ids[number],
            local: LocalId(number as u64 + 1),
            generation: self.generation(number),
            seq,
            order: seq,
            request: request(seq),
            cause: Cause::of_errno(errno),
            node: Some("file0".into()),
            at: AT + Duration::from_secs(seq),
        };
        self.control.failed(&failed, &mut self.outbox);
    }

    pub fn hand_back(&mut self, number: usize, order: u64) {
        self.control.restored(&Restored {
            backend: self.ids[number],
            local: LocalId(number as u64 + 1),
            generation: self.generation(number),
            order,
            request: request(order),
            at: AT,
        });
    }

    pub fn resolve(&mut self, number: usize, order: u64) {
        let resolved = Resolved {
            backend: self.ids[number],
            local: LocalId(number as u64 + 1),
            generation: self.generation(number),
            order,
            end: HoldEnd::Completed,
        };
        self.control.resolved(resolved, &mut self.outbox);
    }

    pub fn generation(&self, number: usize) -> u64 {
        self.control.backend(self.ids[number]).unwrap().generation()
    }

    pub fn held(&self, number: usize) -> usize {
        self.control.backend(self.ids[number]).unwrap().held().len()
    }

    pub fn incident(&self, number: usize) -> Option<u64> {
        let backend = self.control.backend(self.ids[number]).unwrap();
        backend.incident().map(|incident| incident.number)
    }

    pub fn io_status(&self, number: usize) -> Option<Status> {
        self.control.backend(self.ids[number]).unwrap().io_status()
    }

    pub fn restart(&self, scope: HoldScope) -> Self {
        Self::start(Some(self.control.save()), scope)
    }
}

pub fn request(number: u64) -> Request {
    Request {
        tag: Tag { queue: 0, head: 1 },
        op: Operation::Write,
        offset: number * 4096,
        bytes: 4096,
    }
}

/// What is saved for exports that do not exist.
pub fn kept(control: &RunControl) -> Vec<String> {
    let saved = control.save().unclaimed;
    let name =
        |saved: &standfast_block::SavedBackend| format!("{} on {}", saved.device, saved.node);
    saved.iter().map(name).collect()
}

/// A daemon that was started with `vdb` alone, over a state in which both hold something or nothing.
pub fn without_vda(before: &Daemon, scope: HoldScope) -> (RunControl, BackendId, Outbox) {
    let (saved, _) = SavedState::decode(&before.control.save().encode("boot")).unwrap();
    let (mut control, mut outbox) = (RunControl::new(), Outbox::default());
    control.restore(saved);
    let vdb = control.add_backend(config("vdb", scope));
    control.add_local(vdb, LocalId(2), &mut outbox).unwrap();
    (control, vdb, outbox)
}

pub fn config(device: &str, scope: HoldScope) -> BackendConfig {
    BackendConfig {
        device: device.into(),
        node: "disk".into(),
        policy: Policy::new(OnError::Stop, OnError::Report),
        scope,
        image: Image::default(),
    }
}
