use std::time::Duration;

use proptest::prelude::*;

use super::*;

const A: BackendId = BackendId(1);
const B: BackendId = BackendId(2);

/// Takes and collects everything that is due; `handle` is what its handler does.
fn wake(clock: &mut Clock, now: Instant, mut handle: impl FnMut(&mut Clock, Due)) -> Vec<Due> {
    let mut handled = Vec::new();
    for due in clock.due(now) {
        if clock.take(due) {
            handle(clock, due);
            handled.push(due);
        }
    }
    handled
}

fn names(handled: &[Due]) -> Vec<(BackendId, Timer)> {
    handled.iter().map(|due| (due.backend, due.timer)).collect()
}

struct Times(Instant);

impl Times {
    fn ms(&self, ms: u64) -> Instant {
        self.0 + Duration::from_millis(ms)
    }
}

#[test]
fn many_that_are_past_come_in_their_order_and_each_once() {
    let t = Times(Instant::now());
    let mut clock = Clock::new();
    clock.set(A, Timer::Probe, Some(t.ms(30)));
    clock.set(B, Timer::Retry, Some(t.ms(10)));
    clock.set(A, Timer::Report, Some(t.ms(20)));
    clock.set(B, Timer::Deadline, Some(t.ms(99)));
    assert_eq!(clock.wake_at(), Some(t.ms(10)));
    assert!(wake(&mut clock, t.ms(9), |_, _| ()).is_empty());
    let handled = wake(&mut clock, t.ms(50), |_, _| ());
    let expected = [(B, Timer::Retry), (A, Timer::Report), (A, Timer::Probe)];
    assert_eq!(names(&handled), expected);
    assert!(wake(&mut clock, t.ms(50), |_, _| ()).is_empty());
    assert_eq!((clock.wake_at(), clock.len()), (Some(t.ms(99)), 1));
}

#[test]
fn of_one_moment_it_is_the_order_of_backends_and_kinds_that_counts() {
    let t = Times(Instant::now());
    for reversed in [false, true] {
        let mut clock = Clock::new();
        let mut keys: Vec<_> = [A, B]
            .into_iter()
            .flat_map(|backend| Timer::ALL.map(|timer| (backend, timer)))
            .collect();
        let expected = keys.clone();
        if reversed {
            keys.reverse();
        }
        for (backend, timer) in keys {
            clock.set(backend, timer, Some(t.ms(5)));
        }
        assert_eq!(names(&wake(&mut clock, t.ms(5), |_, _| ())), expected);
        assert!(clock.is_empty());
    }
}

#[test]
fn one_that_is_moved_comes_once_and_at_the_new_time() {
    let t = Times(Instant::now());
    let mut clock = Clock::new();
    for at in [50, 10, 10, 30] {
        clock.set(A, Timer::Retry, Some(t.ms(at)));
        assert_eq!((clock.wake_at(), clock.len()), (Some(t.ms(at)), 1));
    }
    assert!(wake(&mut clock, t.ms(29), |_, _| ()).is_empty());
    assert_eq!(wake(&mut clock, t.ms(60), |_, _| ()).len(), 1);
    clock.set(A, Timer::Retry, Some(t.ms(70)));
    clock.set(A, Timer::Retry, None);
    clock.set(A, Timer::Retry, None);
    assert_eq!((clock.wake_at(), clock.len()), (None, 0));
}

/// A handler may do to every deadline whatever it likes.
#[test]
fn what_a_handler_changes_counts_at_once() {
    let t = Times(Instant::now());
    let mut clock = Clock::new();
    let all = |clock: &mut Clock| {
        for timer in Timer::ALL {
            clock.set(A, timer, Some(t.ms(5)));
        }
        clock.set(B, Timer::Report, Some(t.ms(6)));
    };
    // Takes one back, moves one into the future and one within the past, sets a new one.
    all(&mut clock);
    let handled = wake(&mut clock, t.ms(10), |clock, due| {
        if due.timer == Timer::Report && due.backend == A {
            clock.set(A, Timer::Deadline, None);
            clock.set(A, Timer::Retry, Some(t.ms(20)));
            clock.set(A, Timer::Probe, Some(t.ms(7)));
            clock.set(B, Timer::Probe, Some(t.ms(1)));
        }
    });
    assert_eq!(names(&handled), [(A, Timer::Report), (B, Timer::Report)]);
    // What is due already is next, without a wait.
    assert_eq!(clock.wake_at(), Some(t.ms(1)));
    let handled = wake(&mut clock, t.ms(10), |_, _| ());
    assert_eq!(names(&handled), [(B, Timer::Probe), (A, Timer::Probe)]);
    assert_eq!((clock.wake_at(), clock.len()), (Some(t.ms(20)), 1));

    // Removes the backend.
    all(&mut clock);
    let handled = wake(&mut clock, t.ms(10), |clock, _| clock.forget(A));
    assert_eq!(names(&handled), [(A, Timer::Report), (B, Timer::Report)]);
    assert!(clock.is_empty());
}

/// A retry without a pause, on a clock that does not move: each time that it is asked it comes once.
#[test]
fn a_clock_that_stands_still_keeps_nobody_in_a_loop() {
    let t = Times(Instant::now());
    let mut clock = Clock::new();
    clock.set(A, Timer::Retry, Some(t.ms(0)));
    clock.set(B, Timer::Probe, Some(t.ms(0)));
    for _ in 0..100 {
        let handled = wake(&mut clock, t.ms(0), |clock, due| {
            clock.set(due.backend, due.timer, Some(t.ms(0)));
        });
        assert_eq!(names(&handled), [(A, Timer::Retry), (B, Timer::Probe)]);
        assert_eq!((clock.wake_at(), clock.len()), (Some(t.ms(0)), 2));
    }
    // One that goes back finds nothing due, and loses nothing.
    clock.set(A, Timer::Retry, Some(t.ms(9)));
    assert_eq!(wake(&mut clock, t.ms(9), |_, _| ()).len(), 2);
    clock.set(A, Timer::Retry, Some(t.ms(9)));
    assert!(wake(&mut clock, t.ms(8), |_, _| ()).is_empty());
    assert_eq!(clock.wake_at(), Some(t.ms(9)));
}

/// The last moment that an [`Instant`] can say.
fn last_moment() -> Instant {
    let mut last = Instant::now();
    for step in (0..64).rev().map(|n| Duration::from_secs(1 << n)) {
        while let Some(later) = last.checked_add(step) {
            last = later;
        }
    }
    last
}

#[test]
fn a_time_that_no_clock_reaches_is_never_due() {
    let t = Times(Instant::now());
    let mut clock = Clock::new();
    clock.set(A, Timer::Retry, Some(t.ms(1)));
    // Moved out of reach.
    clock.set(A, Timer::Retry, t.0.checked_add(Duration::MAX));
    assert!(clock.is_empty());
    let last = last_moment();
    clock.set(A, Timer::Deadline, Some(last));
    clock.set(A, Timer::Probe, Some(t.ms(1)));
    assert_eq!(wake(&mut clock, t.ms(2), |_, _| ()).len(), 1);
    assert_eq!(clock.wake_at(), Some(last));
    assert_eq!(wake(&mut clock, last, |_, _| ()).len(), 1);
}

#[test]
fn what_is_gone_leaves_nothing() {
    let t = Times(Instant::now());
    let mut clock = Clock::new();
    for n in 0..1000 {
        for (ms, timer) in (0..).zip(Timer::ALL) {
            clock.set(BackendId(n), timer, Some(t.ms(n * 7 % 100 + ms)));
        }
    }
    for n in (0..1000).filter(|n| n % 10 != 0) {
        clock.forget(BackendId(n));
    }
    assert_eq!((clock.len(), clock.times.len()), (400, 400));
    let handled = wake(&mut clock, t.ms(1000), |_, _| ());
    assert!(handled.iter().all(|due| due.backend.0 % 10 == 0));
    assert_eq!((clock.len(), clock.times.len()), (0, 0));
}

#[derive(Clone, Debug)]
enum Step {
    Set(u64, usize, Option<u64>),
    Forget(u64),
    Pass(u64),
    /// Asks; whoever handles the n-th one does what is said.
    Wake(usize, u64, usize, Option<u64>),
}

fn step() -> impl Strategy<Value = Step> {
    let at = || proptest::option::weighted(0.8, 0..40u64);
    let backend = || 0..4u64;
    let timer = || 0..Timer::ALL.len();
    prop_oneof![
        6 => (backend(), timer(), at()).prop_map(|(b, t, at)| Step::Set(b, t, at)),
        1 => backend().prop_map(Step::Forget),
        2 => (0..12u64).prop_map(Step::Pass),
        3 => (0..4usize, backend(), timer(), at()).prop_map(|(n, b, t, at)| Step::Wake(n, b, t, at)),
    ]
}

/// What a plain list does: looked through from its beginning each time.
#[derive(Default)]
struct Plain(Vec<Due>);

impl Plain {
    fn set(&mut self, backend: BackendId, timer: Timer, at: Option<Instant>) {
        self.0
            .retain(|due| (due.backend, due.timer) != (backend, timer));
        self.0.extend(at.map(|at| Due { at, backend, timer }));
        self.0.sort();
    }
}

proptest! {
    #[test]
    fn it_does_what_a_plain_list_does(steps in proptest::collection::vec(step(), 1..80)) {
        let t = Times(Instant::now());
        let (mut clock, mut plain, mut now) = (Clock::new(), Plain::default(), 0);
        for step in steps {
            match step {
                Step::Set(backend, timer, ms) => {
                    let (backend, timer) = (BackendId(backend), Timer::ALL[timer]);
                    let at = ms.map(|ms| t.ms(now + ms - ms.min(now).min(10)));
                    clock.set(backend, timer, at);
                    plain.set(backend, timer, at);
                    prop_assert_eq!(clock.get(backend, timer), at);
                }
                Step::Forget(backend) => {
                    clock.forget(BackendId(backend));
                    plain.0.retain(|due| due.backend != BackendId(backend));
                }
                Step::Pass(ms) => now += ms,
                Step::Wake(nth, backend, timer, ms) => {
                    let change = (BackendId(backend), Timer::ALL[timer], ms.map(|ms| t.ms(now + ms)));
                    let mut left = nth;
                    let handled = wake(&mut clock, t.ms(now), |clock, _| {
                        if left == 0 {
                            clock.set(change.0, change.1, change.2);
                        }
                        left = left.wrapping_sub(1);
                    });
                    // The same by the plain list.
                    let mut expected = Vec::new();
                    for due in plain.0.clone().into_iter().filter(|due| due.at <= t.ms(now)) {
                        if plain.0.contains(&due) {
                            plain.set(due.backend, due.timer, None);
                            if expected.len() == nth {
                                plain.set(change.0, change.1, change.2);
                            }
                            expected.push(due);
                        }
                    }
                    prop_assert_eq!(handled, expected);
                }
            }
            prop_assert_eq!(clock.wake_at(), plain.0.first().map(|due| due.at));
            prop_assert_eq!(clock.len(), plain.0.len());
            prop_assert_eq!(clock.times.len(), plain.0.len());
        }
    }
}
