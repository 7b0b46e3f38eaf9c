//! The daemon: run control, the machine, and their end and new beginning.

use block::run_control::RunControl;
use block::{RunState, VmOrder, VmPause, VmState};
use standfast_vmm::machine::{Action, Machine, Output};

use super::{Happening, Kind, Mutant, Orders, Request, Who, World, chance, traits};

impl World {
    pub(super) fn give(&mut self, orders: Orders) {
        for order in orders.0 {
            self.say(format!("order {order:?}"));
            let mut order = order;
            if self.request.is_some() {
                self.seen.orders_under_way += 1;
                if self.mutant == Mutant::DropsOrders {
                    continue;
                }
            }
            if order == (VmOrder::Resume { force: true }) {
                self.seen.forced += 1;
                self.force_ok |= self.vmm.vm == VmState::Paused;
                self.force_unseen = Some(self.last_id);
                if self.mutant == Mutant::ForgetsForce {
                    order = VmOrder::Resume { force: false };
                }
            }
            self.machine.order(order);
        }
        self.pump();
    }

    pub(super) fn stop(&mut self) {
        let mut orders = Orders::default();
        let _ = self.control.stop(&mut orders);
        self.give(orders);
    }

    pub fn cont(&mut self, force: bool) -> bool {
        if self.blocked {
            self.say("cont refused");
            return false;
        }
        let mut orders = Orders::default();
        let done = self.control.cont(None, force, &mut orders);
        self.give(orders);
        done.is_ok()
    }

    /// Lets the machine act, and carries out what it says.
    pub(super) fn pump(&mut self) {
        for output in self.machine.outputs() {
            match output {
                Output::Cont => {
                    self.say("cont, because somebody resumed the VM");
                    self.seen.conts += 1;
                    if self.mutant == Mutant::NoCont {
                        self.machine.cont_done();
                    } else {
                        let after = self.rng.below(30);
                        self.schedule(after, Happening::Cont);
                    }
                }
                Output::Note(by) => {
                    self.say(format!("paused by {by:?}"));
                    self.control.note_vm_pause(by);
                }
                Output::Announce(status) => self.say(format!("event {status:?}")),
                Output::Reset(_) => {}
            }
        }
        if self.control.revision() != self.revision {
            self.revision = self.control.revision();
            let after = self.rng.below(20);
            self.schedule(after, Happening::Save);
        }
        self.machine.assume(self.control.state());
        if let Some(action) = self.machine.next(self.time()) {
            self.last_id += 1;
            let id = self.last_id;
            self.say(format!("request {id}: {action:?}"));
            if action == Action::Resume && self.held_back {
                self.wrong("the VM is resumed before its disks are back");
            }
            if matches!(action, Action::Pause | Action::Resume)
                && self.vmm.by == Who::Admin
                && self.now <= self.admin_paused_at + 50
            {
                // They cross: what the administrator has done cannot be known here yet.
                self.contested = true;
            }
            self.request = Some(Request {
                id,
                action,
                executed: false,
            });
            let slow = self.storm && chance(&mut self.rng, 4);
            let after = if slow { 4000 } else { 0 } + self.rng.below(8);
            self.schedule(after, Happening::Arrive { id });
            self.schedule(5000, Happening::TimeOut { id });
        } else if let Some(at) = self.machine.wake_at()
            && at <= self.time()
        {
            self.wrong("the machine wants to be woken at once, but does nothing");
        }
    }

    pub(super) fn restart_daemon(&mut self) {
        if self
            .request
            .as_ref()
            .is_some_and(|request| !request.executed)
            && chance(&mut self.rng, 50)
        {
            self.execute();
        }
        self.request = None;
        self.connected = false;
        self.queue.clear();
        self.say(format!("daemon restarts with {:?}", self.disk));
        self.control = RunControl::new();
        self.control.restore(self.disk.clone());
        self.revision = self.control.revision();
        let inherited = self.disk.run_state != RunState::Running;
        let saved = self.disk.vm_pause;
        let claims = saved == VmPause::Link || (inherited && saved == VmPause::Nobody);
        if self.vmm.vm == VmState::Paused {
            self.seen.restarts_paused += 1;
            // What the former daemon had not saved yet, the new one cannot know.
            self.contested |= match self.vmm.by {
                Who::Admin => self.force_ok || (saved != VmPause::Other && claims),
                _ => !claims,
            };
        }
        // A blind link knows what was saved, and no more.
        if self.kind == Kind::Blind && (saved == VmPause::Link) != (self.vmm.vm == VmState::Paused)
        {
            self.contested = true;
        }
        let (saved, inherited) = match self.mutant {
            Mutant::OwnsAll => (VmPause::Nobody, true),
            _ => (saved, inherited),
        };
        self.machine = Machine::new(traits(self.kind), saved, inherited);
        self.held_back = chance(&mut self.rng, 50);
        self.machine.hold_back(self.held_back);
        let after = self.rng.below(5000);
        self.schedule(after, Happening::Back);
        self.contacted = false;
        self.claims = claims;
        self.doubt = false;
        self.force_unseen = None;
        if self.control.state() != RunState::Running {
            self.give(Orders(vec![VmOrder::Pause]));
        }
        self.pump();
    }
}
