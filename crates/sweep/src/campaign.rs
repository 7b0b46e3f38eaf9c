//! How a test runs a sweep: a few seeds among other tests, very many in a soak, or one that was found before.

use std::time::{Duration, Instant};

use crate::format::Format;
use crate::hand::Hands;
use crate::sweep::{Failure, Size, Totals, sweep_seed};

/// A number of the environment.
fn asked(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Sweeps `format`, with seeds from 0 on, for `seconds` at most and `seeds` at most, as [`Size::SMALL`] says. With `STANDFAST_SWEEP_SEED=n`: that one
/// alone, as a whole. With `STANDFAST_SOAK=1`: until there were `STANDFAST_SWEEP_COUNT` faults and cuts (a million if it does not
/// say), from the seed `STANDFAST_SWEEP_FROM` on, each as a whole, and tells every ten seconds how far it is.
///
/// # Errors
/// What was found.
pub fn campaign(
    format: &dyn Format,
    hands: &mut Hands,
    seeds: u64,
    seconds: u64,
) -> Result<Totals, Box<Failure>> {
    campaign_of(format, hands, Size::SMALL, seeds, seconds)
}

/// The same, each seed as `small` says. The length of the disk is the format's.
///
/// # Errors
/// What was found.
pub fn campaign_of(
    format: &dyn Format,
    hands: &mut Hands,
    small: Size,
    seeds: u64,
    seconds: u64,
) -> Result<Totals, Box<Failure>> {
    let [small, whole] = [small, Size::WHOLE].map(|size| Size {
        sectors: format.sectors(),
        ..size
    });
    let mut totals = Totals::default();
    if let Some(seed) = asked("STANDFAST_SWEEP_SEED") {
        for size in [small, whole] {
            sweep_seed(format, hands, seed, &size, &mut totals)?;
        }
        return Ok(totals);
    }
    let begin = Instant::now();
    if std::env::var_os("STANDFAST_SOAK").is_none() {
        let limit = Duration::from_secs(seconds);
        for seed in 0..seeds {
            sweep_seed(format, hands, seed, &small, &mut totals)?;
            if begin.elapsed() > limit {
                break;
            }
        }
        return Ok(totals);
    }
    let count = asked("STANDFAST_SWEEP_COUNT").unwrap_or(1_000_000);
    let mut seed = asked("STANDFAST_SWEEP_FROM").unwrap_or(0);
    let mut told = begin;
    while totals.faults + totals.cuts < count {
        sweep_seed(format, hands, seed, &whole, &mut totals)?;
        seed += 1;
        if told.elapsed() > Duration::from_secs(10) {
            told = Instant::now();
            println!(
                "{}: {} faults and {} cuts in {} s; go on with STANDFAST_SWEEP_FROM={seed}",
                format.name(),
                totals.faults,
                totals.cuts,
                begin.elapsed().as_secs()
            );
        }
    }
    Ok(totals)
}
