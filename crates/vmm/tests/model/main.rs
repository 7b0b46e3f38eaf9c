//! The real machine of a link among random orders, faults and an administrator.
//!
//! At rest VMM and daemon agree: the VM is paused if run control is stopped; if not, it runs,
//! unless an administrator has paused it. Nothing is lost, nobody turns in circles. What an
//! administrator has paused, the link resumes only with `x-force`, except where nobody can know
//! whose pause it was (`contested` in the world): two pauses that cross, or what was lost with a
//! daemon.
//!
//! `finds_*` prove that the test can fail.

#![allow(clippy::panic, reason = "a failed test")]

mod world;

use world::{Mutant, Seen, World};

fn run(seed: u64, mutant: Mutant) -> Result<Seen, String> {
    let mut world = World::new(seed, mutant);
    for _ in 0..40 {
        let slow = world.rng.below(3);
        let ms = world
            .rng
            .below([5, 60, 3000][usize::try_from(slow).unwrap_or(0)]);
        world.pass(ms);
        world.shock();
    }
    world.settle();
    world.finish();
    match world.broken {
        None => Ok(world.seen),
        Some(what) => Err(format!("seed {seed}: {what}\n{}", world.log.join("\n"))),
    }
}

fn rounds(few: u64) -> u64 {
    match std::env::var_os("STANDFAST_SOAK") {
        Some(_) => few * 30,
        None => few,
    }
}

#[test]
fn at_rest_vmm_and_daemon_agree() {
    let mut all = Seen::default();
    for seed in 0..rounds(6000) {
        let seen = run(seed, Mutant::None).unwrap_or_else(|story| panic!("{story}"));
        all.conts += seen.conts;
        all.refused_conts += seen.refused_conts;
        all.admin_pauses_left_alone += seen.admin_pauses_left_alone;
        all.forced += seen.forced;
        all.restarts_paused += seen.restarts_paused;
        all.contested += seen.contested;
        all.lost += seen.lost;
        all.refused += seen.refused;
        all.orders_under_way += seen.orders_under_way;
    }
    println!("{all:?}");
    let counts = [
        all.conts,
        all.refused_conts,
        all.admin_pauses_left_alone,
        all.forced,
        all.restarts_paused,
        all.lost,
        all.refused,
        all.orders_under_way,
    ];
    assert!(
        counts.iter().all(|&count| count > 100),
        "the model does not get everywhere: {all:?}"
    );
}

fn finds(mutant: Mutant) {
    let found =
        (0..20_000).find(|&seed| run(seed, mutant).is_err() && run(seed, Mutant::None).is_ok());
    assert!(found.is_some(), "{mutant:?} is not found");
}

#[test]
fn finds_a_resume_that_is_not_heard() {
    finds(Mutant::DeafToResume);
}

#[test]
fn finds_a_foreign_resume_that_is_no_cont() {
    finds(Mutant::NoCont);
}

#[test]
fn finds_a_lost_request_taken_for_done() {
    finds(Mutant::LostIsDone);
}

#[test]
fn finds_a_refused_request_taken_for_done() {
    finds(Mutant::RefusedIsDone);
}

#[test]
fn finds_a_forgotten_force() {
    finds(Mutant::ForgetsForce);
}

#[test]
fn finds_a_dropped_order() {
    finds(Mutant::DropsOrders);
}

#[test]
fn finds_a_new_vmm_taken_for_the_old_one() {
    finds(Mutant::SameProcess);
}

#[test]
fn finds_a_pause_claimed_after_a_restart() {
    finds(Mutant::OwnsAll);
}

#[test]
fn finds_a_cont_that_never_ends() {
    finds(Mutant::NoContDone);
}
