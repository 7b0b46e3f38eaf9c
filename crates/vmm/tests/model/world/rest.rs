//! What has to be so at rest.

use block::{LinkState, RunState, VmPause, VmState};

use super::{Kind, Who, World};

impl World {
    pub(super) fn check(&mut self) {
        if self.broken.is_some() {
            return;
        }
        let status = self.machine.status();
        let state = self.control.state();
        self.say(format!("at rest: {state:?}, {:?}, {status:?}", self.vmm));
        if !self.vmm.alive {
            if status.state != LinkState::Down {
                self.wrong("there is no VMM, but the link is not down");
            }
            return;
        }
        if self.kind == Kind::Blind {
            let paused = self.vmm.vm == VmState::Paused;
            if paused != (state != RunState::Running) && !self.contested {
                self.wrong("the VM is not as run control wants it");
            }
            return;
        }
        if status.state != LinkState::Connected || status.error.is_some() {
            self.wrong("the link is not well although nothing is wrong");
        }
        if status.vm != self.vmm.vm || status.pending.is_some() {
            self.wrong("the link does not know how the VM is, or has something left to do");
        }
        match self.vmm.vm {
            VmState::Running if state != RunState::Running => {
                self.wrong("the VM runs although its storage does not");
            }
            VmState::Paused => {
                let admin = self.vmm.by == Who::Admin;
                if state == RunState::Running {
                    self.seen.admin_pauses_left_alone += u64::from(admin);
                    if !(admin && !self.force_ok || self.contested) {
                        self.wrong("the VM stays paused although nobody wants it so");
                    }
                }
                let right = match status.paused_by {
                    VmPause::Link => !admin || self.force_ok || self.contested,
                    VmPause::Other => admin || self.contested,
                    VmPause::Nobody => false,
                };
                if !right {
                    self.wrong("the wrong one is said to have paused the VM");
                }
            }
            _ if status.paused_by != VmPause::Nobody => {
                self.wrong("somebody is said to have paused the VM, but it is not paused");
            }
            _ => {}
        }
    }

    /// From rest: each way out of a pause leads where it should.
    pub fn finish(&mut self) {
        if self.broken.is_some() || !self.vmm.alive {
            return;
        }
        let paused = self.vmm.vm == VmState::Paused;
        match self.rng.below(3) {
            0 => {
                if self.admin_resumes() {
                    let stopped = self.control.state() != RunState::Running;
                    self.settle();
                    let state = self.control.state();
                    if self.blocked && stopped {
                        if state == RunState::Running || self.vmm.vm != VmState::Paused {
                            self.wrong("a blocked storage lets the VM run");
                        }
                    } else if state != RunState::Running || self.vmm.vm != VmState::Running {
                        self.wrong("the VM was resumed by somebody else, and that is no cont");
                    }
                }
            }
            1 => {
                if self.cont(false) {
                    self.settle();
                    let admin = self.vmm.by == Who::Admin || self.contested;
                    if paused && self.vmm.vm == VmState::Paused && !admin {
                        self.wrong("cont does not resume what the link has paused");
                    }
                }
            }
            _ => {
                if self.cont(true) {
                    self.settle();
                    if paused && self.vmm.vm != VmState::Running {
                        self.wrong("a forced cont does not resume the VM");
                    }
                }
            }
        }
    }
}
