//! All cases, several at a time.

use crate::case::Case;
use crate::compare::{Difference, common, differences};
use crate::play::play;
use crate::program::Program;
use anyhow::{Result, bail};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// What is compared with what.
#[derive(Debug)]
pub struct Programs {
    /// `standfastd`.
    pub ours: Program,
    /// Those whose answers are right, the first one before all.
    pub peers: Vec<Program>,
    /// Whether each case is played to all of them, and not only what differs from the first.
    pub is_thorough: bool,
}

/// What came of a case.
#[derive(Debug)]
pub struct Outcome {
    /// Its name.
    pub case: String,
    /// What differs from all peers; an error if it could not be played.
    pub differences: Result<Vec<Difference>>,
    /// How many parts the peers say differently among themselves, where that was looked at.
    pub between_peers: usize,
    /// How long it took.
    pub time: Duration,
}

/// Plays cases, `threads` at a time; the outcomes are in the order of the cases.
pub fn run(cases: &[Case], programs: &Programs, threads: usize) -> Vec<Outcome> {
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = one(case, programs);
                    if let Ok(mut outcomes) = outcomes.lock() {
                        outcomes.push(outcome);
                    }
                }
            });
        }
    });
    let mut outcomes = outcomes.into_inner().unwrap_or_default();
    outcomes.sort_by(|a, b| a.case.cmp(&b.case));
    outcomes
}

fn one(case: &Case, programs: &Programs) -> Outcome {
    let start = Instant::now();
    let mut between_peers = 0;
    let differences = compared(case, programs, &mut between_peers);
    Outcome {
        case: case.name.clone(),
        differences,
        between_peers,
        time: start.elapsed(),
    }
}

fn compared(
    case: &Case,
    programs: &Programs,
    between_peers: &mut usize,
) -> Result<Vec<Difference>> {
    let mut peers = programs
        .peers
        .iter()
        .filter(|program| program.is(case.peer));
    let Some(first) = peers.next() else {
        bail!("there is no peer for this case");
    };
    let ours = play(case, &programs.ours)?;
    let first = play(case, first)?;
    let mut found = differences(&ours, &first);
    for other in peers {
        if found.is_empty() && !programs.is_thorough {
            break;
        }
        let other = play(case, other)?;
        found = common(found, &differences(&ours, &other));
        *between_peers += differences(&first, &other).len();
    }
    Ok(found)
}
