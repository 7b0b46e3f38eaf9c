//! Free clusters: looked for, taken, given back.

use std::ops::Range;

use super::{Refcounts, index};
use crate::format::refcount;

/// What a search for free clusters has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Search {
    /// These are free.
    Found(Range<u64>),
    /// This block has to be read before.
    Load(usize),
    /// This block is not there: it has to be made, in this cluster.
    Make(usize, u64),
    /// The table has no room for more blocks.
    Full,
}

/// What somebody looks for, and how far he has come.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// So many clusters, one after the other.
    pub clusters: u64,
    /// All of them, or else as many as there are where there are any.
    pub whole: bool,
    /// Where to go on: what is before it was looked at. It makes no difference that some of the blocks have left memory since.
    from: u64,
    /// Free ones have been passed over.
    pub(super) skipped: bool,
    /// It has begun from the beginning again.
    is_again: bool,
}

impl Wanted {
    /// Nobody has looked yet.
    pub const fn new(clusters: u64, whole: bool) -> Self {
        Self {
            clusters,
            whole,
            from: 0,
            skipped: false,
            is_again: false,
        }
    }

    /// From the beginning again. False: that was done already.
    pub fn again(&mut self) -> bool {
        (self.from, self.skipped) = (0, false);
        !std::mem::replace(&mut self.is_again, true)
    }
}

impl Refcounts {
    /// Looks for free clusters, which stay free. What it has to wait for is done in between, and then it goes on.
    pub fn search(&mut self, wanted: &mut Wanted) -> Search {
        let order = self.geometry.refcount_order();
        let per_block = self.geometry.refcounts_per_block();
        // All that count a run have to be there at once.
        let needed = match wanted.whole {
            true => wanted.clusters.div_ceil(per_block as u64) + 1,
            false => 0,
        };
        self.blocks_now = self.blocks_max.max(index(needed));
        let begin = self.hint.max(wanted.from);
        let mut run = begin..begin;
        loop {
            let (index, first) = self.place(run.end);
            let has_some = !run.is_empty() && !wanted.whole;
            if run.end - run.start >= wanted.clusters {
                return Search::Found(run);
            }
            let entry = self.table.get(index).copied();
            let block = match entry {
                Some(0) | None => None,
                Some(_) => self.blocks.get(&index),
            };
            let Some(block) = block else {
                if has_some {
                    return Search::Found(run);
                }
                wanted.from = run.start;
                if !wanted.skipped {
                    self.hint = self.hint.max(run.start);
                }
                return match entry {
                    None => Search::Full,
                    // A run goes on behind it, if it does not lie in its middle.
                    Some(0) if run.is_empty() => match self.place_for_block(index) {
                        Some(place) => Search::Make(index, place),
                        None => {
                            wanted.skipped = true;
                            let next = self.first_of(index + 1);
                            run = next..next;
                            continue;
                        }
                    },
                    Some(0) => Search::Make(index, run.start),
                    Some(_) => Search::Load(index),
                };
            };
            for within in first..per_block {
                if run.end - run.start >= wanted.clusters {
                    break;
                }
                let is_free = refcount::get(&block.bytes, within, order) == Some(0)
                    && (self.held.is_empty() || !self.held.contains(&run.end));
                if is_free {
                    run.end += 1;
                } else if !run.is_empty() && !wanted.whole {
                    return Search::Found(run);
                } else {
                    wanted.skipped |= !run.is_empty();
                    run = run.end + 1..run.end + 1;
                }
            }
        }
    }

    /// Counts clusters that [`Self::search`] has just found. True: nothing has ever been there.
    pub fn take(&mut self, run: &Range<u64>, wanted: &Wanted) -> bool {
        let is_fresh = run.start >= self.untouched;
        self.touch(run.end);
        for cluster in run.clone() {
            self.set(cluster, 1);
        }
        if !wanted.skipped || run.start == self.hint {
            self.hint = run.end;
        }
        is_fresh
    }

    /// Nobody uses these after all, and nobody ever has: they are free at once, but for those whose block has left memory, which are
    /// still counted.
    pub fn give_back(&mut self, run: &Range<u64>) -> Vec<u64> {
        let counted = run.clone().filter(|cluster| !self.set(*cluster, 0));
        let counted = counted.collect();
        self.hint = self.hint.min(run.start);
        counted
    }
}
