//! The fault plan: which operations fail, when, and with which errno.
//!
//! The rules are those of QEMU's `blkdebug`. An operation is first an *event*, then it is checked:
//!
//! * The event (`read_aio`, `write_aio`, `flush_to_disk`, `pwritev_zero`; a discard is none) selects
//!   the inject-error rules that name it and whose `state` fits. If there are any, they *replace*
//!   the active rules. Active rules stay active until another event replaces them, whatever the
//!   operation: a rule on `write_aio` without an `iotype` also fails the flush and the reads that
//!   follow the write. Name an `iotype` to hit one kind of operation.
//! * The event `none` happens once, when the rule is added. With an `iotype` this is the plain way to
//!   say "these fail from now on".
//! * The set-state rules of the event take effect after that; the initial state is 1. If several
//!   fit, the one that was added first wins.
//! * Of the active rules the first added one that fits `iotype` and `sector` decides.
//!
//! Beyond QEMU, a rule may hit only each n-th operation it fits, and end after a number of hits.
//!
//! All decisions of a plan are in one order, so that a test which fixes the order of its requests
//! gets the same faults on any number of iothreads. A plan without rules costs one atomic load.

use std::sync::atomic::{AtomicBool, Ordering};

use block::Operation;
use block::fault::{
    FaultEvent, FaultId, FaultPlan, FaultStatus, InjectError, IoType, SECTOR_SIZE, SetState,
};
use parking_lot::{Mutex, MutexGuard};

/// The decision that an operation fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// The rule that decided.
    pub(super) id: FaultId,
    /// The (positive) errno.
    pub(super) errno: i32,
    /// See [`InjectError::immediately`].
    pub(super) immediately: bool,
}

/// A plan of faults to inject.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Whether there is any rule: without one an operation looks at nothing else.
    armed: AtomicBool,
    rules: Mutex<Rules>,
}

impl Plan {
    /// A plan with these rules; an empty one injects nothing.
    pub(super) fn new(
        inject: impl IntoIterator<Item = InjectError>,
        set_state: impl IntoIterator<Item = SetState>,
    ) -> Self {
        let plan = Self::default();
        plan.change(|rules| {
            for rule in inject {
                rules.push(rule, false);
            }
            for rule in set_state {
                rules.push_set_state(rule);
            }
            rules.happen(FaultEvent::None);
        });
        plan
    }

    /// Whether an operation fails. Counts as the operation's event: to be asked once for each.
    pub(super) fn decide(&self, op: Operation, offset: u64, bytes: u64) -> Option<Fault> {
        if !self.armed.load(Ordering::Acquire) {
            return None;
        }
        self.change(|rules| rules.decide(op, offset, bytes))
    }

    /// The state.
    #[cfg(test)]
    fn state(&self) -> u32 {
        self.lock().state
    }

    fn change<T>(&self, change: impl FnOnce(&mut Rules) -> T) -> T {
        let mut rules = self.lock();
        let result = change(&mut rules);
        self.armed.store(!rules.is_empty(), Ordering::Release);
        result
    }

    fn lock(&self) -> MutexGuard<'_, Rules> {
        // Each change leaves the rules usable wherever it might stop.
        self.rules.lock()
    }
}

impl FaultPlan for Plan {
    fn add(&self, rule: InjectError) -> FaultId {
        self.change(|rules| rules.add(rule))
    }

    fn clear(&self, id: FaultId) -> bool {
        self.change(|rules| rules.clear(id))
    }

    fn clear_all(&self) {
        self.change(|rules| {
            rules.inject.clear();
            rules.set_state.clear();
            rules.state = INITIAL_STATE;
        });
    }

    fn status(&self) -> Vec<FaultStatus> {
        self.lock()
            .inject
            .iter()
            .map(|rule| FaultStatus {
                id: rule.id,
                rule: rule.rule,
                active: rule.active,
                hits: rule.hits,
            })
            .collect()
    }
}

const INITIAL_STATE: u32 = 1;

#[derive(Debug)]
struct Rule {
    id: FaultId,
    rule: InjectError,
    active: bool,
    /// Operations that the rule fitted.
    fitted: u64,
    hits: u64,
}

impl Rule {
    fn fits(&self, op: Operation, offset: u64, bytes: u64) -> bool {
        let kind_fits = self.rule.iotype.is_none_or(|kind| kind == IoType::of(op));
        let range_fits = self.rule.sector.is_none_or(|sector| {
            sector
                .checked_mul(SECTOR_SIZE)
                .and_then(|at| at.checked_sub(offset))
                .is_some_and(|distance| distance < bytes)
        });
        kind_fits && range_fits
    }
}

/// The decision itself: no clock, no lock, no randomness.
#[derive(Debug)]
struct Rules {
    inject: Vec<Rule>,
    set_state: Vec<(FaultId, SetState)>,
    state: u32,
    next_id: u64,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            inject: Vec::new(),
            set_state: Vec::new(),
            state: INITIAL_STATE,
            next_id: 1,
        }
    }
}

impl Rules {
    fn is_empty(&self) -> bool {
        self.inject.is_empty() && self.set_state.is_empty()
    }

    fn next_id(&mut self) -> FaultId {
        let id = FaultId(self.next_id);
        self.next_id += 1;
        id
    }

    fn push(&mut self, rule: InjectError, active: bool) -> FaultId {
        let id = self.next_id();
        self.inject.push(Rule {
            id,
            rule,
            active,
            fitted: 0,
            hits: 0,
        });
        id
    }

    fn push_set_state(&mut self, rule: SetState) -> FaultId {
        let id = self.next_id();
        self.set_state.push((id, rule));
        id
    }

    fn add(&mut self, rule: InjectError) -> FaultId {
        let active = rule.event == FaultEvent::None && state_fits(rule.state, self.state);
        self.push(rule, active)
    }

    fn clear(&mut self, id: FaultId) -> bool {
        let before = self.inject.len() + self.set_state.len();
        self.inject.retain(|rule| rule.id != id);
        self.set_state.retain(|(other, _)| *other != id);
        before != self.inject.len() + self.set_state.len()
    }

    fn happen(&mut self, event: FaultEvent) {
        let state = self.state;
        let selected = |rule: &Rule| rule.rule.event == event && state_fits(rule.rule.state, state);
        if self.inject.iter().any(selected) {
            for rule in &mut self.inject {
                rule.active = selected(rule);
            }
        }
        let next = self
            .set_state
            .iter()
            .find(|(_, rule)| rule.event == event && state_fits(rule.state, state));
        if let Some((_, rule)) = next {
            self.state = rule.new_state;
        }
    }

    fn decide(&mut self, op: Operation, offset: u64, bytes: u64) -> Option<Fault> {
        if let Some(event) = FaultEvent::of(op) {
            self.happen(event);
        }
        let found = self.inject.iter_mut().position(|rule| {
            if !rule.active || !rule.fits(op, offset, bytes) {
                return false;
            }
            rule.fitted += 1;
            rule.fitted.is_multiple_of(rule.rule.every_nth.max(1))
        })?;
        let rule = &mut self.inject[found];
        if rule.rule.errno == 0 {
            return None;
        }
        rule.hits += 1;
        let fault = Fault {
            id: rule.id,
            errno: rule.rule.errno,
            immediately: rule.rule.immediately,
        };
        if rule.rule.once || rule.rule.limit.is_some_and(|limit| rule.hits >= limit) {
            self.inject.remove(found);
        }
        Some(fault)
    }
}

const fn state_fits(wanted: u32, state: u32) -> bool {
    wanted == 0 || wanted == state
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const READ: Operation = Operation::Read;
    const WRITE: Operation = Operation::Write;
    const FLUSH: Operation = Operation::Flush;
    const DISCARD: Operation = Operation::Discard;
    const ZEROES: Operation = Operation::WriteZeroes { unmap: true };

    fn errno(plan: &Plan, op: Operation, offset: u64, bytes: u64) -> i32 {
        plan.decide(op, offset, bytes)
            .map_or(0, |fault| fault.errno)
    }

    #[test]
    fn iotype_and_sector_select() {
        let rule = InjectError {
            iotype: Some(IoType::Write),
            errno: libc::ENOSPC,
            sector: Some(3),
            ..InjectError::default()
        };
        let plan = Plan::new([rule], []);
        for (op, offset, bytes, expected) in [
            (WRITE, 0, 1536, 0),
            (WRITE, 0, 1537, libc::ENOSPC),
            (WRITE, 1536, 512, libc::ENOSPC),
            (WRITE, 1537, 512, 0),
            (WRITE, 1536, 0, 0),
            (READ, 0, 4096, 0),
            (ZEROES, 0, 4096, 0),
            (DISCARD, 0, 4096, 0),
            (FLUSH, 0, 0, 0),
        ] {
            assert_eq!(errno(&plan, op, offset, bytes), expected, "{op} {offset}");
        }
    }

    #[test]
    fn hostile_ranges_do_not_wrap() {
        let rule = InjectError {
            sector: Some(u64::MAX),
            ..InjectError::default()
        };
        let plan = Plan::new([rule], []);
        assert_eq!(errno(&plan, WRITE, u64::MAX, u64::MAX), 0);
    }

    #[test]
    fn an_event_activates_for_what_follows_until_another_replaces() {
        let write = InjectError {
            event: FaultEvent::WriteAio,
            errno: 5,
            ..InjectError::default()
        };
        let flush = InjectError {
            event: FaultEvent::FlushToDisk,
            iotype: Some(IoType::Flush),
            errno: 28,
            ..InjectError::default()
        };
        let plan = Plan::new([write, flush], []);
        let seen: Vec<i32> = [READ, WRITE, READ, DISCARD, FLUSH, READ, ZEROES, WRITE]
            .into_iter()
            .map(|op| errno(&plan, op, 0, 512))
            .collect();
        assert_eq!(seen, [0, 5, 5, 5, 28, 0, 0, 5]);
    }

    #[test]
    fn once_nth_limit_and_errno_zero() {
        let base = InjectError::default();
        for (rule, expected) in [
            (InjectError { once: true, ..base }, [5, 0, 0, 0, 0, 0]),
            (
                InjectError {
                    every_nth: 2,
                    ..base
                },
                [0, 5, 0, 5, 0, 5],
            ),
            (
                InjectError {
                    every_nth: 0,
                    ..base
                },
                [5, 5, 5, 5, 5, 5],
            ),
            (
                InjectError {
                    every_nth: 2,
                    limit: Some(2),
                    ..base
                },
                [0, 5, 0, 5, 0, 0],
            ),
            (
                InjectError {
                    every_nth: 3,
                    once: true,
                    ..base
                },
                [0, 0, 5, 0, 0, 0],
            ),
            (
                InjectError {
                    errno: 0,
                    once: true,
                    ..base
                },
                [0; 6],
            ),
        ] {
            let plan = Plan::new([rule], []);
            let seen = [(); 6].map(|()| errno(&plan, WRITE, 0, 512));
            assert_eq!(seen, expected, "{rule:?}");
        }
        let masked = Plan::new([InjectError { errno: 0, ..base }, base], []);
        assert_eq!(errno(&masked, READ, 0, 512), 0);
    }

    /// Every second write fails, by states alone: the events see the state of before.
    #[test]
    fn states_sequence() {
        let rule = InjectError {
            event: FaultEvent::WriteAio,
            iotype: Some(IoType::Write),
            state: 2,
            once: true,
            ..InjectError::default()
        };
        let step = |state, new_state| SetState {
            event: FaultEvent::WriteAio,
            state,
            new_state,
        };
        let plan = Plan::new([rule], [step(1, 2), step(2, 3), step(2, 9)]);
        assert_eq!(errno(&plan, WRITE, 0, 512), 0);
        assert_eq!(plan.state(), 2);
        assert_eq!(errno(&plan, WRITE, 0, 512), 5);
        assert_eq!(plan.state(), 3);
        assert_eq!(errno(&plan, WRITE, 0, 512), 0);
    }

    #[test]
    fn rules_come_and_go_at_run_time() {
        let plan = Plan::default();
        assert!(!plan.armed.load(Ordering::Relaxed));
        assert_eq!(errno(&plan, READ, 0, 512), 0);
        let first = plan.add(InjectError::default());
        let second = plan.add(InjectError {
            errno: 28,
            immediately: true,
            ..InjectError::default()
        });
        assert_eq!(errno(&plan, READ, 0, 512), 5);
        assert!(plan.clear(first));
        assert!(!plan.clear(first));
        assert_eq!(
            plan.decide(READ, 0, 512),
            Some(Fault {
                id: second,
                errno: 28,
                immediately: true
            })
        );
        assert_eq!(plan.status()[0].hits, 1);
        plan.clear_all();
        assert_eq!((plan.status(), plan.state()), (Vec::new(), 1));
        assert!(!plan.armed.load(Ordering::Relaxed));
        assert_eq!(errno(&plan, READ, 0, 512), 0);
        let moved = SetState {
            event: FaultEvent::None,
            state: 1,
            new_state: 7,
        };
        let plan = Plan::new([], [moved]);
        assert_eq!(plan.state(), 7);
        plan.clear_all();
        assert_eq!(plan.state(), 1);
    }

    #[test]
    fn threads_share_one_order() {
        let plan = Plan::new(
            [InjectError {
                every_nth: 7,
                limit: Some(40),
                ..InjectError::default()
            }],
            [],
        );
        let hits: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        (0..250)
                            .filter(|_| errno(&plan, WRITE, 0, 512) != 0)
                            .count()
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().expect("no panic"))
                .sum()
        });
        assert_eq!(hits, 40, "of 1000 operations each seventh, at most 40");
        assert!(plan.status().is_empty());
    }

    /// QEMU's lists, as its source has them: newest first per event, and a list of active rules
    /// that an event refills at the head.
    struct Reference {
        inject: Vec<(usize, InjectError)>,
        set_state: Vec<SetState>,
        active: Vec<usize>,
        state: u32,
    }

    impl Reference {
        fn event(&mut self, event: FaultEvent) {
            let mut injected = false;
            for (id, rule) in self.inject.iter().rev() {
                if rule.event == event && (rule.state == 0 || rule.state == self.state) {
                    if !injected {
                        self.active.clear();
                        injected = true;
                    }
                    self.active.insert(0, *id);
                }
            }
            let mut new_state = self.state;
            for rule in self.set_state.iter().rev() {
                if rule.event == event && (rule.state == 0 || rule.state == self.state) {
                    new_state = rule.new_state;
                }
            }
            self.state = new_state;
        }

        fn check(&mut self, op: Operation, offset: u64, bytes: u64) -> i32 {
            if let Some(event) = FaultEvent::of(op) {
                self.event(event);
            }
            for (position, &id) in self.active.clone().iter().enumerate() {
                let (_, rule) = *self
                    .inject
                    .iter()
                    .find(|(other, _)| *other == id)
                    .expect("an active rule exists");
                let at = rule.sector.map(|sector| sector * 512);
                let range = at.is_none_or(|at| bytes > 0 && at >= offset && at < offset + bytes);
                if range && rule.iotype.is_none_or(|kind| kind == IoType::of(op)) {
                    if rule.errno != 0 && rule.once {
                        self.active.remove(position);
                        self.inject.retain(|(other, _)| *other != id);
                    }
                    return rule.errno;
                }
            }
            0
        }
    }

    fn event() -> impl Strategy<Value = FaultEvent> {
        prop::sample::select(FaultEvent::ALL.to_vec())
    }

    prop_compose! {
        fn inject_error()(
            event in event(),
            iotype in prop::option::of(prop::sample::select(IoType::ALL.to_vec())),
            errno in prop::sample::select(vec![0, 5, 28]),
            sector in prop::option::of(0u64..4),
            once: bool,
            state in 0u32..4,
        ) -> InjectError {
            InjectError { event, iotype, errno, sector, once, state, ..InjectError::default() }
        }
    }

    prop_compose! {
        fn set_state()(event in event(), state in 0u32..4, new_state in 1u32..4) -> SetState {
            SetState { event, state, new_state }
        }
    }

    proptest! {
        #[test]
        fn decides_as_the_reference(
            inject in prop::collection::vec(inject_error(), 0..8),
            set in prop::collection::vec(set_state(), 0..4),
            ops in prop::collection::vec(
                (prop::sample::select(vec![READ, WRITE, FLUSH, DISCARD, ZEROES]), 0u64..4, 1u64..4),
                1..40,
            ),
        ) {
            let plan = Plan::new(inject.clone(), set.clone());
            let mut reference = Reference {
                inject: inject.into_iter().enumerate().collect(),
                set_state: set,
                active: Vec::new(),
                state: 1,
            };
            reference.event(FaultEvent::None);
            for (op, sector, sectors) in ops {
                let (offset, bytes) = if op == FLUSH { (0, 0) } else { (sector * 512, sectors * 512) };
                prop_assert_eq!(
                    errno(&plan, op, offset, bytes),
                    reference.check(op, offset, bytes)
                );
                prop_assert_eq!(plan.state(), reference.state);
            }
        }
    }
}
