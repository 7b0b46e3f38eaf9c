use super::*;

use proptest::prelude::*;

use crate::words::error::Cause;
use crate::words::error_policy::OnError;
use crate::words::request::{Operation, Tag};

const NO_SPACE: Outcome = Outcome::Error(Cause::of_errno(libc::ENOSPC));

fn gate(scope: HoldScope) -> Gate {
    let mut gate = Gate::new(Policy::new(OnError::Enospc, OnError::Report), scope, 2);
    assert!(gate.release(1, 0));
    gate
}

fn request(head: u16, op: Operation, offset: u64) -> Request {
    Request {
        tag: Tag { queue: 0, head },
        op,
        offset,
        bytes: 10,
    }
}

fn nowhere(_: u64, _: &Request) -> bool {
    false
}

fn started(admission: Admission) -> Ticket {
    match admission {
        Admission::Start(ticket) => ticket,
        Admission::Parked => unreachable!("nothing is in its way"),
    }
}

#[test]
fn a_place_comes_into_being_only_for_what_waits() {
    let mut gate = gate(HoldScope::Request);
    let write = |gate: &mut Gate, head, offset| {
        gate.admit(request(head, Operation::Write, offset), nowhere)
    };
    let fine = started(write(&mut gate, 0, 0));
    let fails = started(write(&mut gate, 1, 100));
    assert_eq!((fine.slot(), gate.slots_in_use()), (None, 0));
    let done = Verdict::Complete {
        result: Ok(()),
        reported: None,
        was_held: None,
    };
    assert_eq!(gate.finish(fine, Outcome::Ok), done);
    let read = started(gate.admit(request(2, Operation::Read, 0), nowhere));
    let reported = gate.finish(read, NO_SPACE);
    assert!(matches!(
        reported,
        Verdict::Complete {
            reported: Some((Action::Report, _)),
            was_held: None,
            ..
        }
    ));
    assert_eq!((gate.slots_in_use(), gate.in_flight()), (0, 1));

    let Verdict::Held { slot, seq: 1, .. } = gate.finish(fails, NO_SPACE) else {
        unreachable!("the policy says stop");
    };
    assert_eq!((gate.slots_in_use(), gate.in_flight()), (1, 0));
    assert!(matches!(write(&mut gate, 3, 105), Admission::Parked));
    assert_eq!(gate.slots_in_use(), 2);

    assert!(gate.release(2, 1));
    let replayed = gate.next_ready(nowhere).unwrap();
    assert_eq!((replayed.slot(), replayed.order()), (Some(slot), 1));
    assert!(gate.next_ready(nowhere).is_none(), "it waits behind that");
    let again = gate.finish(replayed, NO_SPACE);
    assert!(matches!(again, Verdict::Held { slot: at, seq: 2, .. } if at == slot));
    assert!(gate.release(3, 2));
    let replayed = gate.next_ready(nowhere).unwrap();
    let done = Verdict::Complete {
        result: Ok(()),
        reported: None,
        was_held: Some(slot),
    };
    assert_eq!(gate.finish(replayed, Outcome::Ok), done);
    let parked = gate.next_ready(nowhere).unwrap();
    assert_eq!(
        (parked.slot(), gate.slots_in_use()),
        (None, 0),
        "it gave its place back"
    );
    assert!(gate.is_clear());
    gate.reset(1);
    assert_eq!(gate.finish(parked, NO_SPACE), Verdict::Dropped);
    assert_eq!((gate.slots_in_use(), gate.in_flight()), (0, 0));
}

/// What could not be executed because the client moves its memory goes ahead of what came later,
/// whether it has been held before or not, and no sooner than the memory has settled.
#[test]
fn what_was_put_back_keeps_its_place() {
    let mut gate = gate(HoldScope::Request);
    let fails = started(gate.admit(request(0, Operation::Write, 0), nowhere));
    let first = started(gate.admit(request(1, Operation::Write, 100), nowhere));
    assert!(matches!(gate.finish(fails, NO_SPACE), Verdict::Held { .. }));
    assert!(gate.release(2, 1));
    let replayed = gate.next_ready(nowhere).unwrap();
    for ticket in [first, replayed] {
        assert_eq!(gate.finish(ticket, Outcome::MemoryMoves), Verdict::PutBack);
    }
    let admission = gate.admit(request(2, Operation::Write, 105), nowhere);
    assert!(matches!(admission, Admission::Parked));
    assert!(gate.release(3, 1) && gate.next_ready(nowhere).is_none() && !gate.may_pop(0));
    assert_eq!((gate.in_flight(), gate.held().count()), (0, 0));
    gate.memory_settled();
    let mut order = Vec::new();
    while let Some(ticket) = gate.next_ready(nowhere) {
        order.push((ticket.request().tag.head, ticket.slot().is_some()));
        gate.finish(ticket, Outcome::Ok);
    }
    assert_eq!(order, [(0, true), (1, false), (2, false)]);
    assert!(gate.is_clear());
}

#[derive(Clone, Debug)]
enum Step {
    Submit {
        queue: u16,
        op: Operation,
        offset: u64,
        blocked_elsewhere: bool,
    },
    HandBack(u64),
    End {
        nth: usize,
        outcome: Outcome,
    },
    Ready,
    Freeze,
    FreezeBackend,
    ThawBackend,
    Release(u64),
    ReleaseBackend(u64),
    Reset,
    Drain(bool),
    MemorySettled,
    Stop(u16),
    Start(u16),
    Retain(u16),
    TakeFlushes,
}

fn step() -> impl Strategy<Value = Step> {
    let op = prop_oneof![
        Just(Operation::Write),
        Just(Operation::Read),
        Just(Operation::Flush),
    ];
    let outcome = prop_oneof![
        3 => Just(Outcome::Ok),
        2 => Just(NO_SPACE),
        1 => Just(Outcome::GuestFault),
        1 => Just(Outcome::MemoryMoves),
    ];
    prop_oneof![
        8 => (0..2u16, op, 0..40u64, any::<bool>()).prop_map(
            |(queue, op, offset, blocked_elsewhere)| Step::Submit {
                queue,
                op,
                offset,
                blocked_elsewhere
            }
        ),
        1 => (0..40u64).prop_map(Step::HandBack),
        8 => (0..8usize, outcome).prop_map(|(nth, outcome)| Step::End { nth, outcome }),
        6 => Just(Step::Ready),
        1 => Just(Step::Freeze),
        1 => Just(Step::FreezeBackend),
        1 => Just(Step::ThawBackend),
        3 => (0..4u64).prop_map(Step::Release),
        1 => (0..4u64).prop_map(Step::ReleaseBackend),
        1 => Just(Step::Reset),
        1 => any::<bool>().prop_map(Step::Drain),
        3 => Just(Step::MemorySettled),
        1 => (0..2u16).prop_map(Step::Stop),
        2 => (0..2u16).prop_map(Step::Start),
        1 => (0..2u16).prop_map(Step::Retain),
        1 => Just(Step::TakeFlushes),
    ]
}

/// Whether anything that is held or replayed overlaps, and is older.
fn overlaps_older(gate: &Gate, new: &Request, order: u64) -> bool {
    (gate.slots.iter())
        .any(|(_, slot)| slot.was_held() && slot.order < order && slot.request.overlaps(new))
}

/// A gate, and what is in flight.
struct World {
    gate: Gate,
    tickets: Vec<Ticket>,
    epoch: u64,
}

impl World {
    fn submit(&mut self, mut new: Request, queue: u16, blocked_elsewhere: bool) {
        new.tag.queue = queue;
        let gate = &mut self.gate;
        let elsewhere = |_: u64, _: &Request| blocked_elsewhere;
        let order = gate.next_order;
        // Every rule asked for itself, as if there were no flag.
        let expected = !gate.is_frozen()
            && !gate.is_stopped(queue)
            && gate.waiting().next().is_none()
            && !(new.op.modifies() && (blocked_elsewhere || overlaps_older(gate, &new, order)));
        let before = gate.slots_in_use();
        match gate.admit(new, elsewhere) {
            Admission::Start(ticket) => {
                assert!(expected, "{new:?} started");
                assert_eq!((ticket.slot(), gate.slots_in_use()), (None, before));
                self.tickets.push(ticket);
            }
            Admission::Parked => assert!(!expected, "{new:?} was parked"),
        }
    }

    fn end(&mut self, nth: usize, outcome: Outcome) {
        if self.tickets.is_empty() {
            return;
        }
        let ticket = self.tickets.swap_remove(nth % self.tickets.len());
        let (slot, request) = (ticket.slot(), *ticket.request());
        match self.gate.finish(ticket, outcome) {
            Verdict::Complete { was_held, .. } => assert_eq!(was_held, slot),
            Verdict::Held { slot: now, .. } => {
                assert!(slot.is_none_or(|before| before == now));
                assert!(self.gate.held().any(|held| held.request == request));
            }
            Verdict::PutBack => {
                assert!(self.gate.is_frozen());
                assert!(self.gate.waiting().any(|waiting| waiting == request));
            }
            Verdict::Dropped => {}
        }
    }

    fn apply(&mut self, head: u16, step: &Step) {
        let gate = &mut self.gate;
        self.epoch += 1;
        match *step {
            Step::Submit {
                queue,
                op,
                offset,
                blocked_elsewhere,
            } => self.submit(request(head, op, offset), queue, blocked_elsewhere),
            Step::HandBack(offset) => {
                gate.take_up(request(head, Operation::Write, offset));
            }
            Step::End { nth, outcome } => self.end(nth, outcome),
            Step::Ready => self.tickets.extend(gate.next_ready(nowhere)),
            Step::Freeze => assert!(gate.freeze(self.epoch)),
            Step::FreezeBackend => assert!(gate.freeze_backend(self.epoch)),
            Step::ThawBackend => assert!(gate.thaw_backend(self.epoch)),
            Step::Release(less) => {
                let upto = gate.last_seq.saturating_sub(less);
                assert!(gate.release(self.epoch, upto));
            }
            Step::ReleaseBackend(less) => {
                let upto = gate.last_seq.saturating_sub(less);
                assert!(gate.release_backend(self.epoch, upto));
            }
            Step::Reset => drop(gate.reset(self.epoch)),
            Step::Drain(true) => gate.drain_begin(),
            Step::Drain(false) if gate.freeze.draining > 0 => gate.drain_end(),
            Step::Drain(false) => {}
            Step::MemorySettled => gate.memory_settled(),
            Step::Stop(queue) => gate.stop_queue(queue),
            Step::Start(queue) => gate.start_queue(queue),
            Step::Retain(queue) => drop(gate.retain(queue, |head| head % 2 == 0)),
            Step::TakeFlushes => drop(gate.take_held_flushes()),
        }
    }
}

proptest! {
    #[test]
    fn the_flag_says_what_the_rules_say(
        steps in proptest::collection::vec(step(), 1..120),
        scope in prop_oneof![Just(HoldScope::Vm), Just(HoldScope::Device), Just(HoldScope::Request)],
    ) {
        let mut world = World { gate: gate(scope), tickets: Vec::new(), epoch: 1 };
        for (head, step) in (0..).zip(&steps) {
            world.apply(head, step);
            let gate = &world.gate;
            // Also where debug assertions are off.
            assert_eq!(gate.clear, gate.looks_clear(), "after {step:?}");
            let replayed = world.tickets.iter().filter(|ticket| ticket.slot().is_some()).count();
            let waiting = gate.held().count() + gate.waiting().count();
            assert_eq!(gate.slots_in_use(), waiting + replayed, "after {step:?}");
            let replays = |(_, slot): &(_, &Slot)| slot.state == SlotState::Replayed;
            assert_eq!(gate.slots.iter().filter(replays).count(), replayed);
            assert_eq!(gate.in_flight() as usize, world.tickets.len());
        }
        while !world.tickets.is_empty() {
            world.end(0, Outcome::Ok);
        }
        prop_assert_eq!(world.gate.in_flight(), 0);
    }
}

/// As many writes as 64 queues of 1024 have, all held, then released: what waits was looked through
/// for each that ended, and of one sector again for each that waited. 8,192 took minutes.
#[test]
fn much_that_is_held_is_released_in_linear_time() {
    const N: u64 = 1 << 16;
    for sectors in [1, N] {
        let policy = Policy::new(OnError::Stop, OnError::Stop);
        let mut gate = Gate::new(policy, HoldScope::Vm, 64);
        assert!(gate.release(1, 0));
        let mut tickets: Vec<_> = (0..N)
            .map(|n| {
                let sector = n.wrapping_mul(0x9e37_79b9) % sectors;
                let mut new = request(
                    u16::try_from(n % 1024).unwrap(),
                    Operation::Write,
                    sector * 10,
                );
                new.tag.queue = u16::try_from(n / 1024).unwrap();
                started(gate.admit(new, nowhere))
            })
            .collect();
        // The newest fails first.
        while let Some(ticket) = tickets.pop() {
            assert!(matches!(
                gate.finish(ticket, NO_SPACE),
                Verdict::Held { .. }
            ));
        }
        assert!(gate.release(2, N));
        let mut running = std::collections::VecDeque::new();
        let mut last = None;
        for _ in 0..N {
            running.extend(std::iter::from_fn(|| gate.next_ready(nowhere)));
            let ticket = running.pop_front().unwrap();
            if sectors == 1 {
                assert!(running.is_empty(), "they overlap");
            }
            assert!(last < Some(ticket.order()), "oldest first");
            last = Some(ticket.order());
            gate.finish(ticket, Outcome::Ok);
        }
        assert!(gate.is_clear());
    }
}

/// What the driver has parked is not in flight, and is taken back to where it was: before what came later.
#[test]
fn what_the_driver_parks_is_not_in_flight_and_keeps_its_place() {
    let mut gate = gate(HoldScope::Request);
    let write = |gate: &mut Gate, head| {
        started(gate.admit(
            request(head, Operation::Write, u64::from(head) * 100),
            nowhere,
        ))
    };
    let mut first = write(&mut gate, 0);
    let mut second = write(&mut gate, 1);
    gate.parks(&mut first);
    gate.parks(&mut second);
    gate.parks(&mut second);
    assert_eq!((gate.in_flight(), gate.queue_in_flight(0)), (0, 0));
    assert_eq!(gate.slots_in_use(), 0, "nothing waits for its turn");
    gate.goes_on(&mut second);
    gate.goes_on(&mut second);
    assert_eq!(gate.in_flight(), 1);
    let ended = gate.finish(second, Outcome::Ok);
    assert!(matches!(ended, Verdict::Complete { result: Ok(()), .. }));

    gate.drain_begin();
    assert_eq!(gate.finish(first, Outcome::TakenBack), Verdict::PutBack);
    assert_eq!((gate.in_flight(), gate.slots_in_use()), (0, 1));
    let overlaps = request(2, Operation::Write, 5);
    assert!(matches!(gate.admit(overlaps, nowhere), Admission::Parked));
    assert_eq!(gate.furthest().map(|request| request.tag.head), Some(2));
    assert!(gate.next_ready(nowhere).is_none(), "drained");
    gate.drain_end();
    let first = gate.next_ready(nowhere).unwrap();
    assert_eq!((first.request().tag.head, first.order()), (0, 0));
    assert!(!first.is_parked());
    let second = gate.next_ready(nowhere).unwrap();
    assert_eq!(second.request().tag.head, 2);
    gate.finish(first, Outcome::Ok);
    gate.finish(second, Outcome::Ok);
    assert!(gate.may_pop(0) && gate.in_flight() == 0);
}

/// One that was held before goes on waiting as released, known to run control.
#[test]
fn a_replayed_request_that_is_taken_back_waits_as_before() {
    let mut gate = gate(HoldScope::Vm);
    let write = started(gate.admit(request(0, Operation::Write, 0), nowhere));
    let Verdict::Held { slot, .. } = gate.finish(write, NO_SPACE) else {
        unreachable!("the policy says stop");
    };
    gate.release(2, 1);
    let mut replayed = gate.next_ready(nowhere).unwrap();
    gate.parks(&mut replayed);
    gate.stop_queue(0);
    assert_eq!(gate.finish(replayed, Outcome::TakenBack), Verdict::PutBack);
    assert!(gate.next_ready(nowhere).is_none() && gate.in_flight() == 0);
    gate.start_queue(0);
    let mut again = gate.next_ready(nowhere).unwrap();
    assert_eq!(again.slot(), Some(slot));
    gate.parks(&mut again);
    assert_eq!(gate.finish(again, Outcome::TakenBack), Verdict::PutBack);
    let removed = gate.reset(7);
    assert!(matches!(removed[..], [Removed { slot: at, was_held: true, .. }] if at == slot));
}
