//! Sequences of operations, from a seed.

use testkit::Rng;

use crate::event::{Ask, Request};
use crate::format::Format;
use crate::hand::HANDS;

/// One step of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A request, beside others.
    Request(Request),
    /// The driver writes back what it has not written yet, beside others.
    WriteBack,
    /// What is under way ends.
    Settle,
    /// With nothing under way: the length is changed to so many sectors.
    Resize(u64),
    /// With nothing under way: closed and opened again.
    Reopen,
    /// With nothing under way: the driver writes back, and the image is copied.
    Stop,
    /// The power is cut, in the midst of all; what is found then is opened again.
    Cut,
    /// The daemon is killed, in the midst of all, under a guest that lives on and a storage that does; the next one opens the image.
    Kill,
}

fn one_of<T: Copy>(rng: &mut Rng, all: &[T], otherwise: T) -> T {
    let at = usize::try_from(rng.below(all.len() as u64)).unwrap_or(0);
    all.get(at).copied().unwrap_or(otherwise)
}

/// A request somewhere in the first `sectors`, of which a few clusters are hot.
pub fn request(rng: &mut Rng, cluster: u64, sectors: u64) -> Request {
    let ask = match rng.below(16) {
        0..=6 => Ask::Write,
        7..=8 => Ask::Read,
        9..=10 => Ask::Discard,
        11..=13 => Ask::Zeroes {
            unmap: rng.below(2) == 0,
        },
        _ => Ask::Flush,
    };
    let hand = usize::try_from(rng.below(HANDS as u64)).unwrap_or(0);
    let fua = rng.below(12) == 0;
    if ask == Ask::Flush {
        return Request {
            ask,
            first: 0,
            sectors: 0,
            fua: false,
            hand,
        };
    }
    let clusters = sectors.div_ceil(cluster).max(1);
    let hot = clusters.min(4);
    let at = match rng.below(4) {
        0 => rng.below(clusters),
        _ => rng.below(hot) * (clusters / hot),
    };
    let whole = match ask {
        Ask::Read | Ask::Flush => 1,
        Ask::Write => 3,
        Ask::Zeroes { .. } => 6,
        Ask::Discard => 8,
    };
    let (first, count) = if rng.below(10) < whole {
        (at * cluster, cluster * one_of(rng, &[1, 1, 1, 2, 3], 1))
    } else {
        let first = at * cluster + rng.below(cluster);
        let longest = one_of(rng, &[1, cluster / 2 + 1, 2 * cluster], 1);
        (first, 1 + rng.below(longest))
    };
    let first = first.min(sectors.saturating_sub(1));
    Request {
        ask,
        first,
        sectors: count.clamp(1, (sectors - first).max(1)),
        fua,
        hand,
    }
}

/// A sequence of `requests`, and of what is done in between.
pub fn sequence(format: &dyn Format, sectors: u64, requests: usize, rng: &mut Rng) -> Vec<Step> {
    let mut length = sectors;
    let mut steps = Vec::new();
    while steps.len() < requests {
        let step = match (rng.below(40), format.resizes_to()) {
            (0, Some(longest)) => {
                let clusters = longest / format.cluster();
                let whole = (1 + rng.below(clusters)) * format.cluster();
                length = match rng.below(3) {
                    0 => (1 + rng.below(longest)).min(longest),
                    _ => whole,
                };
                Step::Resize(length)
            }
            (1, _) => Step::Reopen,
            (2..=3, _) => Step::Stop,
            (4, _) if rng.below(2) == 0 => Step::Cut,
            (5, _) => Step::WriteBack,
            (9..=10, _) if format.outlives_kill() => Step::Kill,
            (6..=8, _) => Step::Settle,
            _ => Step::Request(request(rng, format.cluster(), length)),
        };
        let step = match step {
            Step::Request(request) if format.read_only() && request.ask != Ask::Flush => {
                Step::Request(Request {
                    ask: Ask::Read,
                    fua: false,
                    ..request
                })
            }
            step => step,
        };
        steps.push(step);
    }
    steps
}
