//! Failure stories of image formats that were told in public, as sequences that every format can be put through: each is
//! played in many orders and cut everywhere, and its operations fail one after the other.

use crate::event::{Ask, Request};
use crate::format::Format;
use crate::hand::Hands;
use crate::judge::Cuts;
use crate::sequence::Step;
use crate::storage::Fault;
use crate::sweep::{Failure, Plan, Size, Totals, attempt, plan};

/// A story.
#[derive(Clone, Copy, Debug)]
pub struct Story {
    /// What went wrong.
    pub name: &'static str,
    /// What is done, on clusters of so many sectors.
    pub steps: fn(u64) -> Vec<Step>,
}

/// Clusters of the disk.
const CLUSTERS: u64 = 24;
/// Both iothreads.
const ONE: usize = 0;
const OTHER: usize = 1;

const UNMAP: Ask = Ask::Zeroes { unmap: true };
const KEEP: Ask = Ask::Zeroes { unmap: false };
const FLUSH: Step = on(ONE, Ask::Flush, 0, 0);

const fn on(hand: usize, ask: Ask, first: u64, sectors: u64) -> Step {
    Step::Request(Request {
        ask,
        first,
        sectors,
        fua: false,
        hand,
    })
}

/// All is over, and flushed, before the next begins.
fn durable(mut steps: Vec<Step>) -> Vec<Step> {
    steps.extend([Step::Settle, FLUSH, Step::Settle]);
    steps
}

fn then(mut before: Vec<Step>, after: &[Step]) -> Vec<Step> {
    before.extend_from_slice(after);
    before
}

/// The stories.
pub const ALL: &[Story] = &[
    Story {
        name: "a punch-hole that comes after the cluster has been given to somebody else",
        steps: |c| {
            let written = durable(vec![on(ONE, Ask::Write, 0, c)]);
            let discarded = durable(then(written, &[on(ONE, Ask::Discard, 0, c)]));
            let freed = durable(discarded);
            let again = [
                on(ONE, Ask::Write, 2 * c, c),
                on(OTHER, Ask::Write, 4 * c, c),
                on(OTHER, Ask::Flush, 0, 0),
                on(ONE, Ask::Read, 2 * c, c),
                on(OTHER, Ask::Read, 4 * c, c),
            ];
            durable(then(freed, &again))
        },
    },
    Story {
        name: "a discard and a write of one cluster on two queues while a third allocates",
        steps: |c| {
            let written = durable(vec![on(ONE, Ask::Write, 0, c)]);
            let at_once = [
                on(ONE, Ask::Discard, 0, c),
                on(OTHER, Ask::Write, 1, c - 1),
                on(ONE, Ask::Write, 3 * c, c),
                on(OTHER, Ask::Read, 0, c),
                FLUSH,
                on(OTHER, Ask::Write, 5 * c, c),
            ];
            durable(then(written, &at_once))
        },
    },
    Story {
        name: "a write and a zeroing of different sectors of one preallocated zero cluster at once",
        steps: |c| {
            let written = durable(vec![on(ONE, Ask::Write, c, c)]);
            let zeroed = durable(then(written, &[on(ONE, KEEP, c, c)]));
            let at_once = [
                on(ONE, Ask::Write, c, c / 2),
                on(OTHER, UNMAP, c + c / 2, c - c / 2),
                on(OTHER, Ask::Read, c, c),
                on(OTHER, UNMAP, c, c),
                on(ONE, Ask::Write, c + c / 2, 1),
            ];
            durable(then(zeroed, &at_once))
        },
    },
    Story {
        name: "flushed zeroes that come back as the old content",
        steps: |c| {
            let written = durable(vec![on(ONE, Ask::Write, 0, 3 * c)]);
            let zeroed = durable(then(
                written,
                &[on(ONE, KEEP, 0, c), on(OTHER, UNMAP, c, c)],
            ));
            let first = [
                on(ONE, Ask::Write, 1, 1),
                on(OTHER, Ask::Write, c + 1, 1),
                Step::Settle,
                FLUSH,
                on(OTHER, Ask::Write, 2 * c, 1),
            ];
            then(zeroed, &first)
        },
    },
    Story {
        name: "the rest of a cluster is zeroed, and with it a neighbour's",
        steps: |c| {
            let written = durable(vec![
                on(ONE, Ask::Write, 0, 1),
                on(OTHER, Ask::Write, 2 * c - 1, 1),
            ]);
            let at_once = [
                on(ONE, Ask::Write, 2 * c + 1, 1),
                on(OTHER, Ask::Write, 3 * c, c),
                on(ONE, Ask::Write, 4 * c + 1, c),
                on(OTHER, Ask::Read, 0, 6 * c),
                FLUSH,
            ];
            durable(then(written, &at_once))
        },
    },
    Story {
        name: "a discarded cluster is used again before its entry is durable",
        steps: |c| {
            let written = durable(vec![on(ONE, Ask::Write, 0, 2 * c)]);
            let again = [
                on(ONE, Ask::Discard, 0, c),
                on(OTHER, UNMAP, c, c),
                Step::Settle,
                on(ONE, Ask::Write, 8 * c, c),
                on(OTHER, Ask::Write, 12 * c, c),
                Step::Settle,
            ];
            then(written, &again)
        },
    },
    Story {
        name: "a table is published before it is counted, and then there is no space",
        steps: |c| {
            let far = (0..8)
                .map(|at| on(ONE, Ask::Write, at * 3 * c, c))
                .collect();
            let near = (0..8).map(|at| on(OTHER, Ask::Write, at * 3 * c + c, 2));
            let near: Vec<_> = near.collect();
            durable(then(durable(far), &near))
        },
    },
    Story {
        name: "a failed move of a table gives one cluster to two",
        steps: |c| {
            let written = durable(vec![
                on(ONE, Ask::Write, 0, c),
                on(OTHER, Ask::Write, 23 * c, c),
            ]);
            let moved = [
                Step::Resize(40 * c),
                on(ONE, Ask::Write, 30 * c, c),
                on(OTHER, Ask::Write, 12 * c, c),
                FLUSH,
                on(ONE, Ask::Write, 38 * c, c),
            ];
            durable(then(written, &moved))
        },
    },
    Story {
        name: "a longer disk shows what was behind its former end",
        steps: |c| {
            let written = durable(vec![on(ONE, Ask::Write, 4 * c, 2 * c)]);
            let shorter = durable(then(written, &[Step::Resize(4 * c + 1)]));
            let longer = then(shorter, &[Step::Resize(8 * c)]);
            durable(then(longer, &[on(OTHER, Ask::Read, 4 * c, 4 * c)]))
        },
    },
    Story {
        name: "a cluster is given to somebody else while it is being read",
        steps: |c| {
            let written = durable(vec![on(ONE, Ask::Write, 0, c)]);
            let at_once = [
                on(ONE, Ask::Read, 0, c),
                on(OTHER, Ask::Read, 0, c),
                on(ONE, Ask::Discard, 0, c),
                on(OTHER, Ask::Read, 0, c),
                FLUSH,
                FLUSH,
                FLUSH,
                on(OTHER, Ask::Write, 2 * c, c),
                on(ONE, Ask::Write, 5 * c, c),
                on(ONE, Ask::Write, 8 * c, c),
            ];
            durable(then(written, &at_once))
        },
    },
    Story {
        name: "metadata is not written when the machine is paused",
        steps: |c| {
            vec![
                on(ONE, Ask::Write, 0, c),
                on(OTHER, Ask::Write, 7 * c, 1),
                on(ONE, UNMAP, 9 * c, c),
                Step::Stop,
                on(OTHER, Ask::Discard, 0, c),
                on(ONE, Ask::Write, 9 * c, 2),
                Step::Stop,
                Step::Reopen,
                on(ONE, Ask::Read, 0, 12 * c),
            ]
        },
    },
];

/// So many times a write is tried for which there is no room.
const RETRIES: usize = 1000;

impl Story {
    /// Tells it in the orders of so many seeds; with `faults` each of its operations fails in one of them.
    ///
    /// # Errors
    /// What was found.
    pub fn tell(
        &self,
        format: &dyn Format,
        seeds: u64,
        faults: bool,
    ) -> Result<Totals, Box<Failure>> {
        let mut hands = Hands::here();
        let mut totals = Totals::default();
        let cluster = format.cluster();
        let mut steps = (self.steps)(cluster);
        if format.resizes_to().is_none_or(|most| most < 40 * cluster) {
            steps.retain(|step| !matches!(step, Step::Resize(_)));
        }
        let size = Size {
            steps: 0,
            sectors: CLUSTERS * cluster,
            ..Size::WHOLE
        };
        for seed in 0..seeds {
            let plan = Plan {
                steps: steps.clone(),
                ..plan(format, seed, &size)
            };
            let cuts = Cuts {
                one_in: 2,
                subsets: 3,
                seed,
            };
            totals.sequences += 1;
            let operations = attempt(format, &mut hands, &plan, cuts, &mut totals)?;
            let operations = if faults { operations } else { 0 };
            for at in (0..operations).filter(|at| at % seeds == seed) {
                let errno = [libc::ENOSPC, libc::EIO][usize::from(seed % 3 == 0)];
                let for_good = at % 2 == 0;
                let plan = Plan {
                    fault: Some(Fault {
                        at,
                        errno,
                        for_good,
                    }),
                    ..plan.clone()
                };
                let cuts = Cuts {
                    one_in: 12,
                    subsets: 3,
                    ..cuts
                };
                attempt(format, &mut hands, &plan, cuts, &mut totals)?;
            }
        }
        Ok(totals)
    }
}

/// A write is held for want of space and tried again very often: that leaks nothing, and goes through when there is room.
///
/// # Errors
/// What was found.
pub fn retried_often(format: &dyn Format) -> Result<Totals, Box<Failure>> {
    let cluster = format.cluster();
    let size = Size {
        steps: 0,
        sectors: CLUSTERS * cluster,
        ..Size::WHOLE
    };
    let mut totals = Totals::default();
    for at in 0..8 {
        let again = on(ONE, Ask::Write, 5 * cluster, cluster + 1);
        let mut steps = vec![on(ONE, Ask::Write, 0, cluster), FLUSH, Step::Settle];
        for _ in 0..RETRIES / 8 {
            steps.extend([again, Step::Settle]);
        }
        let plan = Plan {
            steps,
            depth: 1,
            mends_after: u64::MAX,
            fault: Some(Fault {
                at: 4 + at,
                errno: [libc::ENOSPC, libc::EIO][usize::from(at % 2 == 0)],
                for_good: true,
            }),
            ..plan(format, at, &size)
        };
        let cuts = Cuts {
            one_in: 100,
            subsets: 2,
            seed: at,
        };
        attempt(format, &mut Hands::here(), &plan, cuts, &mut totals)?;
    }
    Ok(totals)
}
