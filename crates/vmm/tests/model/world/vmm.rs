//! The VMM, its administrator, and the way to it.

use block::{VmPause, VmState};
use standfast_vmm::machine::{Action, Answer, Failure};

use super::{Happening, Kind, Mutant, Who, World, chance};

impl World {
    pub(super) fn become_running(&mut self) {
        self.vmm.vm = VmState::Running;
        self.vmm.by = Who::Nobody;
        self.vmm.fresh = false;
        self.force_ok = false;
        self.contested = false;
        self.tell(VmState::Running);
    }

    pub(super) fn become_paused(&mut self, by: Who) {
        self.vmm.vm = VmState::Paused;
        self.vmm.by = by;
        self.tell(VmState::Paused);
    }

    pub(super) fn tell(&mut self, vm: VmState) {
        if self.kind == Kind::Telling && self.connected {
            let after = self.rng.below(4);
            self.send(after, Happening::Told(vm));
        }
    }

    /// The VMM does what is asked of it now. None: it does not even answer.
    pub(super) fn execute(&mut self) -> Option<Result<Answer, Failure>> {
        let request = self.request.as_mut()?;
        request.executed = true;
        let action = request.action;
        if !self.vmm.alive {
            return Some(Err(Failure::Lost("nobody there".to_owned())));
        }
        if self.kind == Kind::Telling && !self.connected {
            self.connected = true;
            self.new_connection = true;
            self.channel = self.now;
        }
        let fate = if self.storm { self.rng.below(100) } else { 99 };
        if fate < 6 {
            return None;
        }
        if fate < 16 && action != Action::Query {
            return Some(Err(Failure::Refused("not now".to_owned())));
        }
        let absent = || Some(Err(Failure::Refused("there is no VM".to_owned())));
        match (action, self.vmm.vm) {
            (Action::Pause | Action::Resume, VmState::Absent) => return absent(),
            (Action::Pause, VmState::Running) => {
                self.say("VM paused by the link");
                self.become_paused(Who::Link);
            }
            (Action::Pause, VmState::Paused) if self.kind == Kind::Polled => {
                return Some(Err(Failure::Refused("it is paused already".to_owned())));
            }
            (Action::Resume, VmState::Paused) => {
                self.say("VM resumed by the link");
                if self.vmm.by == Who::Admin && !self.force_ok && !self.contested {
                    self.wrong("the link resumes what an administrator has paused");
                }
                self.become_running();
            }
            _ => {}
        }
        if fate < 22 {
            return None;
        }
        let process = match self.mutant {
            Mutant::SameProcess => None,
            _ => Some(self.vmm.process),
        };
        Some(Ok(match action {
            Action::Query => Answer {
                vm: self.vmm.vm,
                process,
                fresh: std::mem::take(&mut self.new_connection)
                    && self.vmm.fresh
                    && self.mutant != Mutant::SameProcess,
            },
            _ => Answer::default(),
        }))
    }

    /// The connection goes, or the answer to the request does not come.
    pub(super) fn lose(&mut self) {
        let said: Vec<_> = self
            .queue
            .iter()
            .filter(|(_, what)| matches!(what, Happening::Told(_) | Happening::Reply { .. }))
            .map(|(&key, what)| (key, what.clone()))
            .collect();
        for (key, _) in &said {
            self.queue.remove(key);
        }
        self.connected = false;
        if !said.is_empty() {
            if chance(&mut self.rng, 50) {
                for (_, what) in said {
                    self.happen(what);
                }
            } else if self.vmm.vm == VmState::Paused && self.vmm.by == Who::Admin {
                self.contested = true;
            }
        }
        self.say("lost");
        self.seen.lost += 1;
        if let Some(request) = &self.request {
            let id = request.id;
            if !request.executed && chance(&mut self.rng, 50) {
                self.execute();
                self.connected = false;
                // Nobody reads what it has said of that.
                self.queue
                    .retain(|_, what| !matches!(what, Happening::Told(_)));
            }
            let result = Err(Failure::Lost("the connection went".to_owned()));
            self.happen(Happening::Reply { id, result });
        } else if self.kind == Kind::Telling {
            let now = self.time();
            self.machine.lost("the connection went".to_owned(), now);
            self.pump();
        }
    }

    pub(super) fn admin_pauses(&mut self) {
        if self.kind == Kind::Blind || self.vmm.vm != VmState::Running {
            return;
        }
        // Cases in which nobody can tell whose pause it was, or in which the link's request was
        // under way already.
        let under_way = self
            .request
            .as_ref()
            .is_some_and(|request| request.action != Action::Query);
        let stale = self.machine.status().paused_by == VmPause::Link
            && (self.kind == Kind::Polled || !self.connected);
        let unknown = !self.contacted && self.claims;
        self.contested = under_way || stale || unknown || self.doubt || self.force_unseen.is_some();
        self.seen.contested += u64::from(self.contested);
        self.say(format!(
            "administrator pauses (contested: {})",
            self.contested
        ));
        self.admin_paused_at = self.now;
        self.become_paused(Who::Admin);
    }

    pub(super) fn admin_resumes(&mut self) -> bool {
        if self.kind == Kind::Blind || self.vmm.vm != VmState::Paused {
            return false;
        }
        self.say("administrator resumes");
        self.become_running();
        true
    }

    pub(super) fn vmm_exits(&mut self) {
        if self.kind == Kind::Blind || !self.vmm.alive {
            return;
        }
        self.say("VMM exits");
        self.vmm.alive = false;
        self.vmm.vm = VmState::Absent;
        self.vmm.by = Who::Nobody;
        self.contested = false;
        self.force_ok = false;
        self.lose();
    }

    pub(super) fn vmm_starts(&mut self) {
        if self.vmm.alive {
            return;
        }
        self.vmm.alive = true;
        self.vmm.process += 1;
        self.vmm.fresh = false;
        self.vmm.by = Who::Nobody;
        self.vmm.vm = match (self.kind, self.rng.below(3)) {
            (Kind::Polled, 0) => VmState::Absent,
            (_, 1) => {
                self.vmm.by = Who::Admin;
                self.vmm.fresh = true;
                self.admin_paused_at = self.now;
                // Only events tell a VM that has never run from one that was paused.
                self.contested =
                    self.force_unseen.is_some() || (!self.contacted && self.kind == Kind::Polled);
                VmState::Paused
            }
            _ => VmState::Running,
        };
        self.say(format!("VMM starts: {:?}", self.vmm));
    }
}
