//! The model test of the guarantees G1 to G7 (ARCHITECTURE.md) over random interleavings, and of time: it
//! passes only when a step says so.
//!
//! Mistakes put in on purpose, which it must find (`finds_*` below keep proving it):
//! - release without `upto`
//! - status latched after the event
//! - freeze forgotten on the second iothread
//! - completion after reset
//! - freeze that comes with the message instead of with the failure
//! - a write that does not wait for what it overlaps on another iothread
//! - `cont` that does not reset every status
//! - requests handed back that run control does not know
//! - a freeze that outlives what was held
//! - a request that the driver had parked and begins although something is frozen
//! - a write that is not told that what it waited behind on another iothread has ended
//! - an alarm that a reset of another device takes along
//! - a clock that is ahead
//! - a report that outlives the life of its device
//! - an incident that ends without a word, or twice
//! - a part that ends, and run control does not hear of it
//! - what a client that has left still writes, in nobody's way
//! - a client that joins what is frozen, and is not
//!
//! The first four were also put into the state machines themselves, and found: the condition
//! `seq <= upto` left out of `Gate::release_upto`; `set_err` moved behind the event in
//! `BackendState::failed`; `freeze_all` telling only the first part of a backend; the generation
//! check left out of `Gate::judge`. So were mistakes with time and incidents: a report that is not
//! cancelled with the life of its device, deadlines that outlive their backend, a deadline that is moved
//! and stays where it was, too, one that is never set, an event that does not begin the next second, and
//! a call of `RunControl::gone` left out.

#![allow(clippy::panic, reason = "a failed test")]

mod world;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use standfast_block::{HoldScope, OnError, Operation, Policy};

use world::{Check, Mutant, PARTS_MAX, World};

#[derive(Clone, Debug)]
enum Step {
    Submit {
        b: usize,
        l: usize,
        queue: u16,
        op: Operation,
        offset: u64,
        bytes: u64,
    },
    End {
        b: usize,
        l: usize,
        nth: usize,
        errno: Option<i32>,
    },
    /// A disk that fails at once, as often as it is asked.
    FailAtOnce {
        b: usize,
        l: usize,
        op: Operation,
        offset: u64,
        times: usize,
    },
    Park {
        b: usize,
        l: usize,
        nth: usize,
    },
    GoOn {
        b: usize,
        l: usize,
        nth: usize,
    },
    Control,
    Local {
        b: usize,
        l: usize,
    },
    Stop,
    Cont,
    ContBackend(usize),
    Attach(usize),
    ResetDevice(usize),
    Detach(usize),
    SetPolicy(usize, Policy),
    Resize {
        b: usize,
        length: u64,
        errno: Option<i32>,
    },
    StopQueue {
        b: usize,
        l: usize,
        queue: u16,
    },
    StartQueue {
        b: usize,
        l: usize,
        queue: u16,
    },
    Retain {
        b: usize,
        l: usize,
        queue: u16,
    },
    AcceptLoss(usize),
    CloseLocal {
        b: usize,
        l: usize,
    },
    Join(usize),
    AddBackend(Policy, HoldScope),
    RemoveBackend {
        b: usize,
        detach: bool,
    },
    /// So many milliseconds pass.
    Pass(u64),
    /// The control task looks at its alarm.
    Ring,
    Settle,
}

fn on_error() -> impl Strategy<Value = OnError> {
    prop_oneof![
        3 => Just(OnError::Stop),
        3 => Just(OnError::Enospc),
        1 => Just(OnError::Report),
        1 => Just(OnError::Ignore),
    ]
}

fn policy() -> impl Strategy<Value = Policy> {
    (on_error(), on_error()).prop_map(|(werror, rerror)| Policy::new(werror, rerror))
}

fn scope() -> impl Strategy<Value = HoldScope> {
    prop_oneof![
        2 => Just(HoldScope::Vm),
        1 => Just(HoldScope::Device),
        1 => Just(HoldScope::Request),
    ]
}

fn op() -> impl Strategy<Value = Operation> {
    prop_oneof![
        4 => Just(Operation::Write),
        3 => Just(Operation::Read),
        1 => Just(Operation::Flush),
        1 => Just(Operation::Discard),
        1 => Just(Operation::WriteZeroes { unmap: true }),
    ]
}

fn errno() -> impl Strategy<Value = Option<i32>> {
    prop_oneof![
        3 => Just(None),
        2 => Just(Some(libc::ENOSPC)),
        1 => Just(Some(libc::EIO)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let b = 0..3usize;
    // Of those that are there.
    let l = 0..PARTS_MAX;
    prop_oneof![
        20 => (b.clone(), l.clone(), 0..2u16, op(), 0..world::LENGTH, 1..12u64).prop_map(
            |(b, l, queue, op, offset, bytes)| Step::Submit { b, l, queue, op, offset, bytes }
        ),
        20 => (b.clone(), l.clone(), 0..8usize, errno())
            .prop_map(|(b, l, nth, errno)| Step::End { b, l, nth, errno }),
        5 => (b.clone(), l.clone(), op(), 0..world::LENGTH, 1..4usize)
            .prop_map(|(b, l, op, offset, times)| Step::FailAtOnce { b, l, op, offset, times }),
        6 => (b.clone(), l.clone(), 0..8usize).prop_map(|(b, l, nth)| Step::Park { b, l, nth }),
        6 => (b.clone(), l.clone(), 0..8usize).prop_map(|(b, l, nth)| Step::GoOn { b, l, nth }),
        16 => Just(Step::Control),
        16 => (b.clone(), l.clone()).prop_map(|(b, l)| Step::Local { b, l }),
        2 => Just(Step::Stop),
        5 => Just(Step::Cont),
        3 => b.clone().prop_map(Step::ContBackend),
        3 => b.clone().prop_map(Step::Attach),
        2 => b.clone().prop_map(Step::ResetDevice),
        1 => b.clone().prop_map(Step::Detach),
        1 => (b.clone(), policy()).prop_map(|(b, policy)| Step::SetPolicy(b, policy)),
        1 => (b.clone(), 8..world::LENGTH * 2, errno())
            .prop_map(|(b, length, errno)| Step::Resize { b, length, errno }),
        1 => (b.clone(), l.clone(), 0..2u16).prop_map(|(b, l, queue)| Step::StopQueue { b, l, queue }),
        2 => (b.clone(), l.clone(), 0..2u16).prop_map(|(b, l, queue)| Step::StartQueue { b, l, queue }),
        2 => (b.clone(), l.clone(), 0..2u16).prop_map(|(b, l, queue)| Step::Retain { b, l, queue }),
        2 => b.clone().prop_map(Step::AcceptLoss),
        2 => (b.clone(), l.clone()).prop_map(|(b, l)| Step::CloseLocal { b, l }),
        2 => b.clone().prop_map(Step::Join),
        1 => (policy(), scope()).prop_map(|(policy, scope)| Step::AddBackend(policy, scope)),
        1 => (b.clone(), any::<bool>()).prop_map(|(b, detach)| Step::RemoveBackend { b, detach }),
        3 => (0..900u64).prop_map(Step::Pass),
        3 => Just(Step::Ring),
        2 => Just(Step::Settle),
    ]
}

fn apply(world: &mut World, step: &Step) -> Check {
    match *step {
        Step::Submit {
            b,
            l,
            queue,
            op,
            offset,
            bytes,
        } => world.submit(b, l % world.parts(b), queue, op, offset, bytes),
        Step::End { b, l, nth, errno } => world.end(b, l % world.parts(b), nth, errno),
        Step::FailAtOnce {
            b,
            l,
            op,
            offset,
            times,
        } => (0..times).try_for_each(|_| {
            let l = l % world.parts(b);
            world.submit(b, l, 0, op, offset, 1)?;
            world.end_last(b, l, libc::EIO)
        }),
        Step::Park { b, l, nth } => world.park(b, l % world.parts(b), nth),
        Step::GoOn { b, l, nth } => world.go_on(b, l % world.parts(b), nth),
        Step::Control => world.control_step(),
        Step::Local { b, l } => world.local_step(b, l % world.parts(b)),
        Step::Stop => {
            world.stop();
            Ok(())
        }
        Step::Cont => {
            world.cont();
            Ok(())
        }
        Step::ContBackend(b) => {
            world.cont_backend(b);
            Ok(())
        }
        Step::Attach(b) => {
            world.attach(b);
            Ok(())
        }
        Step::ResetDevice(b) => {
            world.reset_device(b);
            Ok(())
        }
        Step::Detach(b) => {
            world.detach(b);
            Ok(())
        }
        Step::SetPolicy(b, policy) => {
            world.set_policy(b, policy);
            Ok(())
        }
        Step::Resize { b, length, errno } => world.resize(b, length, errno),
        Step::StopQueue { b, l, queue } => world.toggle_queue(b, l % world.parts(b), queue, false),
        Step::StartQueue { b, l, queue } => world.toggle_queue(b, l % world.parts(b), queue, true),
        Step::Retain { b, l, queue } => world.retain(b, l % world.parts(b), queue),
        Step::AcceptLoss(b) => {
            world.accept_loss(b);
            Ok(())
        }
        Step::CloseLocal { b, l } => world.close_local(b, l % world.parts(b)),
        Step::Join(b) => {
            world.join(b);
            Ok(())
        }
        Step::AddBackend(policy, scope) => {
            // A backend that comes while others run or are frozen; a few are enough.
            if world.backends() < 5 {
                world.add_backend(policy, scope);
            }
            Ok(())
        }
        Step::RemoveBackend { b, detach } => world.remove_backend(b, detach),
        Step::Pass(ms) => {
            world.pass(ms);
            Ok(())
        }
        Step::Ring => world.ring(),
        Step::Settle => world.settle(),
    }
}

fn run(mutant: Mutant, configs: &[(Policy, HoldScope)], steps: &[Step]) -> Result<World, String> {
    let mut world = World::new(mutant, configs);
    let outcome = (|| {
        world.settle()?;
        for step in steps {
            apply(&mut world, step).map_err(|wrong| format!("{step:?}: {wrong}"))?;
        }
        world.finish()
    })();
    match outcome {
        Ok(()) => Ok(world),
        Err(wrong) => {
            // Tickets that are still out would report themselves as lost, and hide the finding.
            world.abandon();
            Err(wrong)
        }
    }
}

fn cases() -> u32 {
    let asked = std::env::var("PROPTEST_CASES").ok();
    asked
        .and_then(|n| n.parse().ok())
        .unwrap_or_else(|| match std::env::var_os("STANDFAST_SOAK") {
            Some(_) => 20_000,
            None => 1500,
        })
}

fn strategy() -> impl Strategy<Value = (Vec<(Policy, HoldScope)>, Vec<Step>)> {
    (
        proptest::collection::vec((policy(), scope()), 3),
        proptest::collection::vec(step(), 1..250),
    )
}

#[test]
fn guarantees_hold_in_every_order() {
    let mut runner = TestRunner::new(Config {
        cases: cases(),
        ..Config::default()
    });
    let totals = std::cell::Cell::new([0; 5]);
    let outcome = runner.run(&strategy(), |(configs, steps)| {
        let world = run(Mutant::None, &configs, &steps).map_err(TestCaseError::fail)?;
        let reached = [
            world.holds,
            world.completions,
            world.late,
            world.ends,
            world.taken_back,
        ];
        let mut sums: [usize; 5] = totals.get();
        for (sum, more) in sums.iter_mut().zip(reached) {
            *sum += more;
        }
        totals.set(sums);
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
    let [holds, completions, late, ends, taken_back] = totals.get();
    let reached = format!(
        "{holds} holds, {completions} completions, {late} events that had to wait, {ends} incidents, \
         {taken_back} taken back from the driver"
    );
    println!("{reached}");
    // The random steps reach what they are for.
    let cases = cases() as usize;
    assert!(
        holds > cases
            && completions > holds
            && late > cases / 10
            && ends > cases / 2
            && taken_back > cases / 2,
        "{reached}"
    );
}

/// Two writes on one iothread and a discard on another, each overlapping the next, all held. Which
/// of two goes first was decided by arrival within an iothread and by the first hold between them:
/// each waited for another, and the guest's requests never came back after `cont`.
#[test]
fn nobody_waits_in_a_circle() {
    let stop = (Policy::new(OnError::Stop, OnError::Stop), HoldScope::Vm);
    let submit = |l, op, offset, bytes| Step::Submit {
        b: 1,
        l,
        queue: 0,
        op,
        offset,
        bytes,
    };
    let steps = [
        submit(0, Operation::Discard, 32, 9),
        submit(1, Operation::Write, 26, 11),
        submit(1, Operation::Write, 23, 10),
        Step::End {
            b: 1,
            l: 1,
            nth: 1,
            errno: Some(libc::ENOSPC),
        },
        Step::Resize {
            b: 1,
            length: 8,
            errno: Some(libc::ENOSPC),
        },
    ];
    let world = run(Mutant::None, &[stop; 3], &steps).unwrap();
    assert_eq!((world.holds, world.completions), (3, 3));
}

/// Scope `device`, two iothreads. The only held request went away without a `cont`: a flush, because
/// the operator accepted a loss; a write, because its queue was started by a client that had no
/// record of it, or because its part ended. The part on the other iothread stayed frozen with
/// nothing held anywhere, and half of the guest's queues hung until somebody sent a `cont`.
#[test]
fn a_freeze_ends_with_what_was_held() {
    let stop = (Policy::new(OnError::Stop, OnError::Stop), HoldScope::Device);
    let submit = |l, op| Step::Submit {
        b: 0,
        l,
        queue: 0,
        op,
        offset: 0,
        bytes: 1,
    };
    let queue = 0;
    for (op, gone) in [
        (Operation::Flush, Step::AcceptLoss(0)),
        (Operation::Write, Step::Retain { b: 0, l: 0, queue }),
        (Operation::Write, Step::CloseLocal { b: 0, l: 0 }),
    ] {
        let steps = [
            // Of the client's heads it keeps the even ones.
            submit(0, Operation::Read),
            submit(0, op),
            Step::End {
                b: 0,
                l: 0,
                nth: 1,
                errno: Some(libc::ENOSPC),
            },
            Step::End {
                b: 0,
                l: 0,
                nth: 0,
                errno: None,
            },
            Step::Settle,
            gone,
            submit(1, Operation::Write),
            // Checks that nothing is frozen where nothing is held.
            Step::Settle,
        ];
        let world = run(Mutant::None, &[stop; 3], &steps).unwrap();
        assert_eq!((world.holds, world.completions), (1, 2));
    }
}

/// The model is worth something only if it finds mistakes.
fn finds(mutant: Mutant) {
    let config = Config {
        cases: 3000,
        failure_persistence: None,
        max_shrink_iters: 0,
        ..Config::default()
    };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let outcome = runner.run(&strategy(), |(configs, steps)| {
        run(mutant, &configs, &steps)
            .map(|_| ())
            .map_err(TestCaseError::fail)
    });
    match outcome {
        Err(TestError::Fail(reason, _)) => println!("{mutant:?}: {reason}"),
        other => panic!("{mutant:?} was not found: {other:?}"),
    }
}

#[test]
fn finds_release_without_upto() {
    finds(Mutant::ReleaseWithoutUpto);
}

#[test]
fn finds_status_after_event() {
    finds(Mutant::StatusAfterEvent);
}

#[test]
fn finds_freeze_forgotten_on_the_second_iothread() {
    finds(Mutant::FreezeForgotten);
}

#[test]
fn finds_completion_after_reset() {
    finds(Mutant::CompletionAfterReset);
}

#[test]
fn finds_overlap_that_another_iothread_ignores() {
    finds(Mutant::OverlapElsewhere);
}

#[test]
fn finds_requests_handed_back_unseen() {
    finds(Mutant::HandedBackUnseen);
}

#[test]
fn finds_a_freeze_that_nothing_holds() {
    finds(Mutant::ThawForgotten);
}

#[test]
fn finds_a_wait_that_nobody_ends() {
    finds(Mutant::RecheckLost);
}

#[test]
fn finds_a_parked_request_that_begins_while_frozen() {
    finds(Mutant::ParkedNotTakenBack);
}

#[test]
fn finds_what_a_client_left_in_flight_overtaken() {
    finds(Mutant::LeftInFlight);
}

#[test]
fn finds_a_client_that_joins_unfrozen() {
    finds(Mutant::JoinsUnfrozen);
}

#[test]
fn finds_late_freeze() {
    finds(Mutant::FreezeLate);
}

#[test]
fn finds_status_that_cont_did_not_reset() {
    finds(Mutant::StatusNotReset);
}

#[test]
fn finds_an_alarm_that_a_reset_takes_along() {
    finds(Mutant::AlarmLost);
}

#[test]
fn finds_a_clock_that_is_ahead() {
    finds(Mutant::ClockAhead);
}

#[test]
fn finds_a_report_that_outlives_its_device() {
    finds(Mutant::ReportOutlivesReset);
}

#[test]
fn finds_an_end_of_an_incident_that_nobody_hears_of() {
    finds(Mutant::EndUntold);
}

#[test]
fn finds_an_incident_that_ends_twice() {
    finds(Mutant::EndToldTwice);
}

#[test]
fn finds_a_part_that_ends_unheard() {
    finds(Mutant::PartEndsUnheard);
}
