//! The account of a quota: what is allocated, and who may allocate more. No I/O, no lock.
//!
//! A granule is accounted if it *is* allocated, or if a write that is under way may be allocating
//! it. A write reserves what it needs before it begins; what nobody has written in the end is given
//! back. Whatever is uncertain counts as allocated: the account may be too high, never too low.

use std::ops::Range;

use super::bitmap::Bitmap;

/// Bytes per granule, the unit in which space is accounted.
pub const GRANULARITY: u64 = 4096;

/// A request that the account knows to be under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(u64);

/// A write does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "quota reached: {allocated} of {limit} bytes are allocated, and the request needs {needed} more"
)]
pub struct NoSpace {
    /// Bytes allowed.
    pub limit: u64,
    /// Bytes allocated.
    pub allocated: u64,
    /// Bytes that the request would have allocated.
    pub needed: u64,
}

/// The account. Ranges are in granules.
#[derive(Debug, Default)]
pub struct Account {
    /// Bytes.
    limit: u64,
    /// Granules accounted: the size of `accounted`.
    used: u64,
    accounted: Bitmap,
    /// Of these, what only writes under way account for.
    pending: Bitmap,
    writes: Vec<(Ticket, Range<u64>)>,
    discards: Vec<Discard>,
    next_ticket: u64,
}

#[derive(Debug)]
struct Discard {
    ticket: Ticket,
    range: Range<u64>,
    /// What writes have touched since it began, or had been touching.
    touched: Vec<Range<u64>>,
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> Range<u64> {
    a.start.max(b.start)..a.end.min(b.end)
}

/// Calls `f` with each part of `range` that is in none of `holes`.
fn for_rest(range: &Range<u64>, mut holes: Vec<Range<u64>>, mut f: impl FnMut(Range<u64>)) {
    holes.sort_unstable_by_key(|hole| hole.start);
    let mut at = range.start;
    for hole in holes {
        let hole = overlap(&hole, range);
        if hole.is_empty() {
            continue;
        }
        if at < hole.start {
            f(at..hole.start);
        }
        at = at.max(hole.end);
    }
    if at < range.end {
        f(at..range.end);
    }
}

impl Account {
    /// An empty account for `granules` granules.
    pub fn new(limit: u64, granules: u64) -> Self {
        let mut account = Self {
            limit,
            ..Self::default()
        };
        account.resize(granules);
        account
    }

    /// Bytes allowed.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes accounted; more than the limit if that was lowered.
    pub fn allocated(&self) -> u64 {
        self.used.saturating_mul(GRANULARITY)
    }

    /// Changes the limit.
    pub fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
    }

    /// Changes the number of granules; nothing may be under way.
    pub fn resize(&mut self, granules: u64) {
        self.used -= self.accounted.resize(granules);
        self.pending.resize(granules);
    }

    /// Notes that a range is allocated, whatever the limit says.
    pub fn note_allocated(&mut self, range: Range<u64>) {
        self.used += self.accounted.set(range.clone());
        self.pending.clear(range);
    }

    /// Reserves what a write needs.
    pub fn begin_write(&mut self, range: Range<u64>) -> Result<Ticket, NoSpace> {
        let missing = (range.end - range.start) - self.accounted.count(range.clone());
        let after = self.used.saturating_add(missing);
        if missing > 0 && after.saturating_mul(GRANULARITY) > self.limit {
            return Err(NoSpace {
                limit: self.limit,
                allocated: self.allocated(),
                needed: missing * GRANULARITY,
            });
        }
        if missing > 0 {
            let pending = &mut self.pending;
            self.accounted.for_runs(range.clone(), false, |run| {
                pending.set(run);
            });
            self.accounted.set(range.clone());
            self.used = after;
        }
        for discard in &mut self.discards {
            let touched = overlap(&discard.range, &range);
            if !touched.is_empty() {
                discard.touched.push(touched);
            }
        }
        let ticket = self.ticket();
        self.writes.push((ticket, range));
        Ok(ticket)
    }

    /// A write has ended. One that has failed gives back what it reserved and nobody else is
    /// writing, or has written, meanwhile.
    pub fn end_write(&mut self, ticket: Ticket, success: bool) {
        let Some(index) = self.writes.iter().position(|(other, _)| *other == ticket) else {
            return;
        };
        let (_, range) = self.writes.swap_remove(index);
        if success {
            self.pending.clear(range);
            return;
        }
        if self.pending.count(range.clone()) == 0 {
            return;
        }
        let others = self.writes.iter().map(|(_, other)| other.clone()).collect();
        let Self {
            used,
            accounted,
            pending,
            ..
        } = self;
        for_rest(&range, others, |rest| {
            pending.for_runs(rest.clone(), true, |run| {
                *used -= accounted.clear(run);
            });
            pending.clear(rest);
        });
    }

    /// A deallocation of whole granules begins.
    pub fn begin_discard(&mut self, range: Range<u64>) -> Ticket {
        let touched = self
            .writes
            .iter()
            .map(|(_, write)| overlap(&range, write))
            .filter(|touched| !touched.is_empty())
            .collect();
        let ticket = self.ticket();
        self.discards.push(Discard {
            ticket,
            range,
            touched,
        });
        ticket
    }

    /// A deallocation has ended. If it is known to have worked, what no write has touched meanwhile
    /// is given back.
    pub fn end_discard(&mut self, ticket: Ticket, success: bool) {
        let Some(index) = self
            .discards
            .iter()
            .position(|discard| discard.ticket == ticket)
        else {
            return;
        };
        let discard = self.discards.swap_remove(index);
        if success {
            let Self {
                used, accounted, ..
            } = self;
            for_rest(&discard.range, discard.touched, |rest| {
                *used -= accounted.clear(rest);
            });
        }
    }

    fn ticket(&mut self) -> Ticket {
        self.next_ticket += 1;
        Ticket(self.next_ticket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const GRANULES: u64 = 40;

    fn bytes(granules: u64) -> u64 {
        granules * GRANULARITY
    }

    #[test]
    fn a_request_fits_wholly_or_not_at_all() {
        let mut account = Account::new(bytes(4), GRANULES);
        let first = account.begin_write(0..3).expect("fits");
        assert_eq!(
            account.begin_write(2..5),
            Err(NoSpace {
                limit: bytes(4),
                allocated: bytes(3),
                needed: bytes(2)
            })
        );
        let second = account.begin_write(2..4).expect("fits exactly");
        account.end_write(first, true);
        account.end_write(second, false);
        assert_eq!(account.allocated(), bytes(3));
        account.set_limit(0);
        let third = account.begin_write(0..3).expect("allocates nothing");
        account.end_write(third, false);
        assert_eq!(account.allocated(), bytes(3), "it was there before");
        assert!(account.begin_write(3..4).is_err());
    }

    #[test]
    fn odd_limits_round_down() {
        let mut account = Account::new(bytes(2) - 1, GRANULES);
        account.begin_write(0..1).expect("fits");
        assert!(account.begin_write(1..2).is_err());
    }

    #[test]
    fn shrinking_forgets_what_is_gone() {
        let mut account = Account::new(u64::MAX, 10_000);
        account.note_allocated(0..10_000);
        account.resize(4_097);
        assert_eq!(account.allocated(), bytes(4_097));
        account.resize(20_000);
        assert_eq!(account.allocated(), bytes(4_097));
    }

    #[derive(Clone, Debug)]
    enum Step {
        BeginWrite(Range<u64>),
        BeginDiscard(Range<u64>),
        /// Ends the n-th request that is under way.
        End(usize, bool),
        SetLimit(u64),
    }

    fn range() -> impl Strategy<Value = Range<u64>> {
        (0..GRANULES, 1..=8u64).prop_map(|(start, length)| start..(start + length).min(GRANULES))
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => range().prop_map(Step::BeginWrite),
            2 => range().prop_map(Step::BeginDiscard),
            5 => (any::<usize>(), any::<bool>()).prop_map(|(n, ok)| Step::End(n, ok)),
            1 => (0..=GRANULES).prop_map(Step::SetLimit),
        ]
    }

    /// The rule itself, granule by granule: accounted is what some write has committed, or what one
    /// under way touches; a discard uncommits what no write has touched since it began.
    #[derive(Default)]
    struct Model {
        committed: BTreeSet<u64>,
        writes: Vec<(Ticket, Range<u64>)>,
        discards: Vec<(Ticket, BTreeSet<u64>)>,
    }

    impl Model {
        fn accounted(&self) -> BTreeSet<u64> {
            let mut all = self.committed.clone();
            all.extend(self.writes.iter().flat_map(|(_, range)| range.clone()));
            all
        }
    }

    proptest! {
        #[test]
        fn accounts_as_the_model(limit in 0..=GRANULES, granules in 0..=GRANULES, steps in prop::collection::vec(step(), 0..60)) {
            // What is written beyond the end makes the node longer.
            let mut account = Account::new(bytes(limit), granules);
            let mut limit = limit;
            let mut model = Model::default();
            for step in steps {
                match step {
                    Step::BeginWrite(range) => {
                        let mut after = model.accounted();
                        let before = after.len();
                        after.extend(range.clone());
                        let fits = after.len() == before || after.len() as u64 <= limit;
                        let ticket = account.begin_write(range.clone());
                        prop_assert_eq!(ticket.is_ok(), fits);
                        if let Ok(ticket) = ticket {
                            for (_, untouched) in &mut model.discards {
                                untouched.retain(|granule| !range.contains(granule));
                            }
                            model.writes.push((ticket, range));
                        }
                    }
                    Step::BeginDiscard(range) => {
                        let untouched = range
                            .clone()
                            .filter(|granule| !model.writes.iter().any(|(_, w)| w.contains(granule)))
                            .collect();
                        model.discards.push((account.begin_discard(range), untouched));
                    }
                    Step::End(n, success) => {
                        let all = model.writes.len() + model.discards.len();
                        if all == 0 {
                            continue;
                        }
                        let n = n % all;
                        if n < model.writes.len() {
                            let (ticket, range) = model.writes.remove(n);
                            account.end_write(ticket, success);
                            if success {
                                model.committed.extend(range);
                            }
                        } else {
                            let (ticket, untouched) = model.discards.remove(n - model.writes.len());
                            account.end_discard(ticket, success);
                            if success {
                                model.committed.retain(|granule| !untouched.contains(granule));
                            }
                        }
                    }
                    Step::SetLimit(granules) => {
                        limit = granules;
                        account.set_limit(bytes(granules));
                    }
                }
                prop_assert_eq!(account.allocated(), bytes(model.accounted().len() as u64));
            }
        }
    }
}
