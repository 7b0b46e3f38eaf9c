//! The sweep: sequences from seeds, every operation of which fails in turn, and every event of which is a cut.

use std::fmt;

use testkit::Rng;

use crate::event::Event;
use crate::format::Format;
use crate::hand::Hands;
use crate::judge::{Broken, Cuts, judge};
pub use crate::player::Plan;
use crate::player::{Run, play};
use crate::sector::index;
use crate::sequence::sequence;
use crate::storage::{Discarded, Fault, FlushFailure, Settings};

/// How much is tried.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Steps of a sequence, at most.
    pub steps: usize,
    /// Length of the disk, in sectors.
    pub sectors: u64,
    /// Where the run in which nothing fails is cut.
    pub one_in: u64,
    /// Subsets at each cut.
    pub subsets: u64,
    /// Operations that fail, one in a run of its own; none: all, in each of the four ways.
    pub faults: Option<u64>,
    /// Where these runs are cut.
    pub fault_one_in: u64,
    /// So many shorter runs are tried to tell what was found with fewer steps.
    pub shorten: u32,
}

impl Size {
    /// For a test among others.
    pub const SMALL: Self = Self {
        steps: 30,
        sectors: 96,
        one_in: 3,
        subsets: 3,
        faults: Some(6),
        fault_one_in: 12,
        shorten: 120,
    };

    /// All there is in one sequence.
    pub const WHOLE: Self = Self {
        steps: 40,
        sectors: 96,
        one_in: 1,
        subsets: 4,
        faults: None,
        fault_one_in: 8,
        shorten: 120,
    };
}

/// What was tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Sequences.
    pub sequences: u64,
    /// Runs in which an operation failed.
    pub faults: u64,
    /// Cuts.
    pub cuts: u64,
    /// Operations on the storage.
    pub operations: u64,
    /// Requests that have failed.
    pub failed: u64,
    /// Requests that have been tried again.
    pub retried: u64,
}

/// What was found, with everything that is needed to see it again.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Which format.
    pub format: String,
    /// The run.
    pub plan: Plan,
    /// What is wrong.
    pub what: String,
    /// What has happened until then.
    pub story: Vec<String>,
}

/// The last lines of a story that are shown.
const SHOWN: usize = 60;

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan {
            seed,
            fault,
            settings,
            depth,
            steps,
            ..
        } = &self.plan;
        writeln!(f, "{}: {}", self.format, self.what)?;
        writeln!(
            f,
            "STANDFAST_SWEEP_SEED={seed} {fault:?} {settings:?} depth {depth}"
        )?;
        writeln!(f, "steps: {steps:?}")?;
        let skipped = self.story.len().saturating_sub(SHOWN);
        writeln!(f, "events (the first {skipped} are left out):")?;
        self.story
            .iter()
            .skip(skipped)
            .try_for_each(|line| writeln!(f, "{line}"))
    }
}

/// The plan of a seed.
pub fn plan(format: &dyn Format, seed: u64, size: &Size) -> Plan {
    let mut rng = Rng::new(seed);
    let discarded = match format.discards_are_private() {
        true => [Discarded::Zeroes, Discarded::Kept, Discarded::Garbage][index(rng.below(3))],
        false => [Discarded::Zeroes, Discarded::Kept][index(rng.below(2))],
    };
    let settings = Settings {
        flush_failure: [FlushFailure::Keeps, FlushFailure::Forgets][index(rng.below(2))],
        discarded,
        at_once: [0, 10, 50][index(rng.below(3))],
        early: [0, 50, 100][index(rng.below(3))],
        slow: rng.below(2) * (2 + rng.below(9)),
    };
    Plan {
        seed,
        sectors: size.sectors,
        settings,
        depth: [1, 3, 8, 32][index(rng.below(4))],
        steps: sequence(format, size.sectors, size.steps, &mut rng),
        fault: None,
        mends_after: 10 + rng.below(200),
    }
}

/// Plays and judges one plan.
///
/// # Errors
/// What was found.
pub fn attempt(
    format: &dyn Format,
    hands: &mut Hands,
    plan: &Plan,
    cuts: Cuts,
    totals: &mut Totals,
) -> Result<u64, Box<Failure>> {
    let run = play(format, hands, plan);
    totals.operations += run.operations;
    totals.failed += run.failed;
    totals.retried += run.retried;
    totals.faults += u64::from(plan.fault.is_some());
    let forgets = plan.settings.flush_failure == FlushFailure::Forgets;
    for (number, segment) in run.segments.iter().enumerate() {
        match judge(format, segment, forgets, cuts) {
            Ok(count) => totals.cuts += count,
            Err(broken) => return Err(failure(format, plan, &run, number, &broken)),
        }
    }
    if let Some(what) = &run.broken {
        let number = run.segments.len().saturating_sub(1);
        let broken = Broken {
            what: what.clone(),
            time: run.segments.last().map_or(0, |segment| segment.log.len()),
            survivors: None,
        };
        return Err(failure(format, plan, &run, number, &broken));
    }
    Ok(run.operations)
}

fn failure(
    format: &dyn Format,
    plan: &Plan,
    run: &Run,
    number: usize,
    broken: &Broken,
) -> Box<Failure> {
    let log = run
        .segments
        .get(number)
        .map_or(&[][..], |segment| &segment.log);
    let told = log.iter().take(broken.time.saturating_add(1));
    Box::new(Failure {
        format: format.name(),
        plan: plan.clone(),
        what: format!("life {number}, {broken}"),
        story: told
            .enumerate()
            .map(|(time, event)| format!("{time:5} {}", Event::line(event)))
            .collect(),
    })
}

/// Everything of one seed.
///
/// # Errors
/// What was found, made shorter.
pub fn sweep_seed(
    format: &dyn Format,
    hands: &mut Hands,
    seed: u64,
    size: &Size,
    totals: &mut Totals,
) -> Result<(), Box<Failure>> {
    let plan = plan(format, seed, size);
    let mut rng = Rng::new(seed ^ 0x66_6175_6c74);
    let cuts = Cuts {
        one_in: size.one_in,
        subsets: size.subsets,
        seed: rng.next_u64(),
    };
    totals.sequences += 1;
    let mut tried = |plan: &Plan, cuts, totals: &mut Totals| {
        attempt(format, hands, plan, cuts, totals)
            .map_err(|failure| shorter(format, hands, failure, cuts, size.shorten))
    };
    let operations = tried(&plan, cuts, totals)?;
    let ways = [
        (libc::ENOSPC, false),
        (libc::ENOSPC, true),
        (libc::EIO, false),
        (libc::EIO, true),
    ];
    let mut faults = Vec::new();
    match size.faults {
        None => faults.extend((0..operations).flat_map(|at| {
            ways.map(|(errno, for_good)| Fault {
                at,
                errno,
                for_good,
            })
        })),
        Some(count) => faults.extend((0..count).map(|_| {
            let (errno, for_good) = ways[index(rng.below(4))];
            Fault {
                at: rng.below(operations),
                errno,
                for_good,
            }
        })),
    }
    let cuts = Cuts {
        one_in: size.fault_one_in,
        ..cuts
    };
    for fault in faults {
        let plan = Plan {
            fault: Some(fault),
            ..plan.clone()
        };
        tried(&plan, cuts, totals)?;
    }
    Ok(())
}

/// The same failure, or another one, with fewer steps.
fn shorter(
    format: &dyn Format,
    hands: &mut Hands,
    mut failure: Box<Failure>,
    cuts: Cuts,
    mut left: u32,
) -> Box<Failure> {
    let cuts = Cuts {
        one_in: cuts.one_in.min(2),
        ..cuts
    };
    let mut piece = failure.plan.steps.len() / 2;
    while piece > 0 && left > 0 {
        let mut at = 0;
        while at < failure.plan.steps.len() && left > 0 {
            left -= 1;
            let mut plan = failure.plan.clone();
            plan.steps.drain(at..(at + piece).min(plan.steps.len()));
            match attempt(format, hands, &plan, cuts, &mut Totals::default()) {
                Err(found) => failure = found,
                Ok(_) => at += piece,
            }
        }
        piece /= 2;
    }
    failure
}
