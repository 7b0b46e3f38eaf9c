//! What the link does next. Pure: no I/O and no clock, times are inputs.
//!
//! One request to the VMM at a time ([`Machine::next`], [`Machine::done`]). What the VMM says of
//! itself, by an event or as an answer, is an observation. What has to be told to run control comes
//! out as [`Output`].
//!
//! At rest the VM is paused if run control wants it so; if not, it runs, unless somebody else has
//! paused it.

mod trouble;
mod words;

use std::time::Duration;

use block::{LinkState, LinkStatus, RunState, VmOrder, VmPause, VmPending, VmState};

use trouble::{RETRY_MAX, Trouble};

pub use words::{Action, Answer, Failure, Output, Traits};

/// Asked that often while something is paused or pending.
const POLL_BUSY: Duration = Duration::from_millis(500);
/// Asked that often otherwise.
const POLL_IDLE: Duration = Duration::from_secs(2);
/// What the VMM said is good for that long when a pause or resume depends on it.
const FRESH: Duration = Duration::from_millis(20);

/// What run control wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Running,
    Paused,
}

/// The state machine of one link.
#[derive(Debug)]
pub struct Machine {
    traits: Traits,
    /// None: nobody has said anything yet.
    wish: Option<Wish>,
    ordered: bool,
    /// A pause by somebody else counts as the link's own, until a query has shown how things are.
    force: bool,
    /// The VMM has not been asked since `force` came.
    force_new: bool,
    link: LinkState,
    /// As the VMM said last.
    vm: VmState,
    owner: VmPause,
    /// `vm` is how it is now, as far as anybody can know.
    known: bool,
    /// An order has come since the VMM was asked: ask before a pause.
    recheck: bool,
    /// No observation yet in the life of this daemon.
    first: bool,
    /// The stopped state comes from a former daemon, whose link has paused the VM.
    inherited: bool,
    process: Option<i32>,
    outstanding: Option<Action>,
    /// Events while a pause or a resume was under way: the first and the last.
    overheard: Option<(VmState, VmState)>,
    /// A request that may have been carried out although it failed.
    tried: Option<Action>,
    down: Trouble,
    up_since: Duration,
    refused: Trouble,
    asked_at: Duration,
    /// The VM must not be resumed yet.
    held_back: bool,
    conting: bool,
    cont_again: bool,
    reset_wanted: bool,
    noted: VmPause,
    announced: (LinkState, Option<String>),
    outputs: Vec<Output>,
}

impl Machine {
    /// A link that has reached nobody yet. `saved`: who had paused the VM, as the former daemon
    /// knew; `inherited`: run control's stopped state comes from that daemon.
    pub fn new(traits: Traits, saved: VmPause, inherited: bool) -> Self {
        Self {
            traits,
            wish: None,
            ordered: false,
            force: false,
            force_new: false,
            link: LinkState::Connecting,
            vm: match saved {
                VmPause::Link if traits.blind => VmState::Paused,
                _ => VmState::Unknown,
            },
            owner: saved,
            known: traits.blind,
            recheck: false,
            first: true,
            inherited,
            process: None,
            outstanding: None,
            overheard: None,
            tried: None,
            down: Trouble::default(),
            up_since: Duration::ZERO,
            refused: Trouble::default(),
            asked_at: Duration::ZERO,
            held_back: false,
            conting: false,
            cont_again: false,
            reset_wanted: false,
            noted: saved,
            announced: (LinkState::Connecting, None),
            outputs: Vec::new(),
        }
    }

    /// What is known now.
    pub fn status(&self) -> LinkStatus {
        LinkStatus {
            state: self.link,
            vm: self.vm,
            pending: self.pending(),
            paused_by: self.owner,
            error: self.error().cloned(),
        }
    }

    /// What is to be told to others since the last call.
    pub fn outputs(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.outputs)
    }

    /// Run control's state, as long as no order has come.
    pub fn assume(&mut self, state: RunState) {
        if self.ordered {
            return;
        }
        self.wish = match state {
            RunState::Running => Some(Wish::Running),
            RunState::Paused | RunState::IoError => Some(Wish::Paused),
            RunState::Shutdown => None,
        };
    }

    /// An order of run control.
    pub fn order(&mut self, order: VmOrder) {
        let wish = match order {
            VmOrder::Pause => Wish::Paused,
            VmOrder::Resume { .. } => Wish::Running,
        };
        let force = order == VmOrder::Resume { force: true };
        self.ordered = true;
        if force || self.wish != Some(wish) {
            self.recheck = !self.traits.blind;
            self.refused.forgive();
            self.down.hurry();
            self.refused.hurry();
        }
        self.wish = Some(wish);
        if force {
            self.force = true;
            self.force_new = !self.traits.blind;
            if self.owner == VmPause::Other {
                self.owner = VmPause::Link;
            }
        }
        self.settle();
    }

    /// Whether the VM must not be resumed yet, whatever is wanted. What is wanted is pending
    /// meanwhile.
    pub fn hold_back(&mut self, held_back: bool) {
        self.held_back = held_back;
    }

    /// The reset button. The answer comes as [`Output::Reset`]; one at a time.
    pub fn reset(&mut self) {
        match self.down.text() {
            Some(text) => self.outputs.push(Output::Reset(Err(text.clone()))),
            // Pressed twice at once is pressed once.
            None => self.reset_wanted |= self.outstanding != Some(Action::Reset),
        }
    }

    /// The next request, if it is time for one; [`Self::done`] is owed for it.
    pub fn next(&mut self, now: Duration) -> Option<Action> {
        if self.outstanding.is_some() {
            return None;
        }
        let action = self.choose(now)?;
        match action {
            Action::Query => {
                self.recheck = false;
                self.force_new = false;
            }
            Action::Pause | Action::Resume => self.overheard = None,
            Action::Reset => self.reset_wanted = false,
        }
        self.outstanding = Some(action);
        Some(action)
    }

    /// When [`Self::next`] may have something, if nothing happens before.
    pub fn wake_at(&self) -> Option<Duration> {
        if self.outstanding.is_some() {
            return None;
        }
        if let Some(until) = self.down.until() {
            // A peer that cannot be asked is left alone until something is wanted of it.
            let wanted = !self.traits.blind || self.goal().is_some();
            return wanted.then_some(until);
        }
        let retry = self.refused.until();
        let poll = self.poll_at();
        match (self.goal().and(retry), poll) {
            (Some(retry), Some(poll)) => Some(retry.min(poll)),
            (retry, poll) => retry.or(poll),
        }
    }

    /// The VMM has told how the VM is without being asked.
    pub fn event(&mut self, vm: VmState) {
        match self.outstanding {
            Some(Action::Pause | Action::Resume) => {
                let first = self.overheard.map_or(vm, |(first, _)| first);
                self.overheard = Some((first, vm));
            }
            _ if !self.known && self.first => {
                // The answer that is awaited says more than an event of unknown history.
            }
            _ => {
                if vm == VmState::Paused && !self.known {
                    // It ran until now, whatever was believed of it.
                    self.observe(VmState::Running, false);
                }
                self.observe(vm, false);
            }
        }
        self.settle();
    }

    /// Something happened to the VM: what is known of it is old.
    pub fn changed(&mut self) {
        self.known = self.traits.blind;
    }

    /// What came of the request.
    pub fn done(&mut self, result: Result<Answer, Failure>, now: Duration) {
        let Some(action) = self.outstanding.take() else {
            debug_assert!(false, "an answer without a request");
            return;
        };
        self.asked_at = now;
        match (action, result) {
            (Action::Query, Ok(answer)) => self.answered(answer, now),
            (Action::Query, Err(Failure::Refused(text) | Failure::Lost(text))) => {
                self.down(text, now);
            }
            (Action::Pause, Ok(_)) => {
                self.up(now);
                self.refused = Trouble::default();
                self.tried = None;
                if self.traits.blind {
                    self.force = false;
                }
                self.owner = VmPause::Link;
                self.carried_out(VmState::Paused);
            }
            (Action::Resume, Ok(_)) => {
                self.up(now);
                self.refused = Trouble::default();
                self.tried = None;
                self.owner = VmPause::Nobody;
                self.force &= self.force_new;
                self.carried_out(VmState::Running);
            }
            (Action::Pause, Err(Failure::Refused(text))) => {
                // Whoever has paused it meanwhile was not the link.
                self.tried = None;
                self.replay(action, VmPause::Other);
                self.refuse(text, now);
            }
            (Action::Resume, Err(Failure::Refused(text))) => {
                self.tried = Some(Action::Resume);
                self.replay(action, VmPause::Nobody);
                self.refuse(text, now);
            }
            (Action::Pause | Action::Resume, Err(Failure::Lost(text))) => {
                self.tried = Some(action);
                self.replay(action, VmPause::Link);
                if action == Action::Pause && self.owner == VmPause::Nobody {
                    // It may have been carried out after all that was told.
                    self.tried = Some(action);
                }
                if self.traits.blind {
                    self.vm = VmState::Unknown;
                    self.owner = VmPause::Link;
                }
                self.down(text, now);
            }
            (Action::Reset, result) => {
                self.changed();
                let result = match result {
                    Ok(_) => {
                        self.up(now);
                        Ok(())
                    }
                    Err(Failure::Refused(text)) => {
                        self.up(now);
                        Err(text)
                    }
                    Err(Failure::Lost(text)) => {
                        self.down(text.clone(), now);
                        Err(text)
                    }
                };
                self.outputs.push(Output::Reset(result));
            }
        }
        self.settle();
    }

    /// The connection went while nothing was asked.
    pub fn lost(&mut self, text: String, now: Duration) {
        self.down(text, now);
        self.settle();
    }

    /// What came of [`Output::Cont`]. If it was refused, the pause order stands.
    pub fn cont_done(&mut self) {
        self.conting = false;
        if std::mem::take(&mut self.cont_again) {
            self.foreign_resume();
        }
        self.settle();
    }

    fn choose(&self, now: Duration) -> Option<Action> {
        if self.down.waits(now) {
            return None;
        }
        if self.reset_wanted {
            return Some(Action::Reset);
        }
        if !self.traits.blind
            && (!self.known || self.recheck || self.poll_at().is_some_and(|at| at <= now))
        {
            return Some(Action::Query);
        }
        let goal = self.goal()?;
        if self.refused.waits(now) {
            None
        } else if !self.traits.blind && now > self.asked_at + FRESH {
            // Somebody else may have paused it since, or it is another VM by now.
            Some(Action::Query)
        } else {
            Some(goal)
        }
    }

    /// What would bring the VM where it shall be.
    fn goal(&self) -> Option<Action> {
        match self.wish? {
            Wish::Paused => {
                let runs = match self.vm {
                    VmState::Running => true,
                    VmState::Unknown => self.traits.blind,
                    VmState::Paused | VmState::Absent => false,
                };
                (runs && !self.conting).then_some(Action::Pause)
            }
            Wish::Running => {
                let paused = match self.traits.blind {
                    true => self.owner == VmPause::Link || self.force,
                    false => self.owner == VmPause::Link && self.vm == VmState::Paused,
                };
                (paused && !self.held_back).then_some(Action::Resume)
            }
        }
    }

    fn pending(&self) -> Option<VmPending> {
        match self.wish? {
            Wish::Paused => {
                (!matches!(self.vm, VmState::Paused | VmState::Absent)).then_some(VmPending::Pause)
            }
            Wish::Running => {
                (self.owner == VmPause::Link || self.force).then_some(VmPending::Resume)
            }
        }
    }

    fn poll_at(&self) -> Option<Duration> {
        let busy = self.owner != VmPause::Nobody
            || self.wish == Some(Wish::Paused)
            || self.pending().is_some();
        let interval = if busy { POLL_BUSY } else { POLL_IDLE };
        (self.traits.polled && !self.traits.blind).then(|| self.asked_at + interval)
    }

    fn error(&self) -> Option<&String> {
        self.down.text().or_else(|| self.refused.text())
    }

    fn answered(&mut self, answer: Answer, now: Duration) {
        self.up(now);
        // A reset of a paused VM makes it look fresh, too: a known process is known better.
        let new_life = match (self.process, answer.process) {
            (Some(known), Some(new)) => known != new,
            _ => answer.fresh,
        };
        self.process = answer.process.or(self.process);
        self.known = true;
        self.observe(answer.vm, new_life);
        self.force &= self.force_new;
    }

    /// The VM is in this state. `new_life`: what was known of it is of a former life.
    fn observe(&mut self, vm: VmState, new_life: bool) {
        let first = std::mem::replace(&mut self.first, false);
        let tried = self.tried.take().filter(|_| !new_life);
        self.vm = vm;
        match vm {
            VmState::Running => {
                let ours = first || tried == Some(Action::Resume);
                let was = std::mem::take(&mut self.owner);
                if was != VmPause::Nobody && !ours {
                    self.foreign_resume();
                }
            }
            VmState::Paused => {
                if new_life {
                    self.owner = VmPause::Other;
                } else if self.owner == VmPause::Nobody {
                    self.owner = if tried == Some(Action::Pause) || (first && self.inherited) {
                        VmPause::Link
                    } else {
                        VmPause::Other
                    };
                }
                if self.force {
                    self.owner = VmPause::Link;
                }
            }
            VmState::Absent => self.owner = VmPause::Nobody,
            VmState::Unknown => {}
        }
    }

    fn foreign_resume(&mut self) {
        if self.conting {
            self.cont_again = true;
        } else {
            self.conting = true;
            self.outputs.push(Output::Cont);
        }
    }

    /// A pause or resume has failed, but the VM has told something meanwhile. `pauser`: who has
    /// paused it if it was paused.
    fn replay(&mut self, action: Action, pauser: VmPause) {
        let Some((first, last)) = self.overheard.take() else {
            return;
        };
        for vm in [first, last] {
            match (action, vm) {
                (Action::Pause, VmState::Paused) if self.owner == VmPause::Nobody => {
                    self.tried = None;
                    self.owner = pauser;
                }
                _ => self.observe(vm, false),
            }
        }
    }

    /// A pause or resume has led to `vm`, unless something was heard since.
    fn carried_out(&mut self, vm: VmState) {
        self.first = false;
        if self.overheard.is_some_and(|(_, last)| last != vm) {
            self.changed();
        }
        self.vm = vm;
    }

    fn up(&mut self, now: Duration) {
        if self.link != LinkState::Connected {
            self.up_since = now;
        }
        self.link = LinkState::Connected;
        self.down.end();
    }

    fn down(&mut self, text: String, now: Duration) {
        // A link that comes and goes all the time is tried less and less often.
        if self.link == LinkState::Connected && now.saturating_sub(self.up_since) >= RETRY_MAX {
            self.down.forgive();
        }
        self.link = LinkState::Down;
        self.changed();
        if std::mem::take(&mut self.reset_wanted) {
            self.outputs.push(Output::Reset(Err(text.clone())));
        }
        self.down.begin(text, now);
    }

    fn refuse(&mut self, text: String, now: Duration) {
        self.up(now);
        self.changed();
        self.refused.begin(text, now);
    }

    /// After every input: tells what has changed.
    fn settle(&mut self) {
        if self.known && !self.recheck && self.outstanding.is_none() && self.goal().is_none() {
            // What was refused is not wanted any more, or has come about otherwise.
            self.refused = Trouble::default();
        }
        if self.noted != self.owner {
            self.noted = self.owner;
            self.outputs.push(Output::Note(self.owner));
        }
        let now = (self.link, self.error().cloned());
        if self.announced != now {
            self.announced = now;
            self.outputs.push(Output::Announce(self.status()));
        }
    }
}
