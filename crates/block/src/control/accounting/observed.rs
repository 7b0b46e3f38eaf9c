//! What is counted only as long as somebody wants it: histograms of latencies, and averages over intervals.
//!
//! A part of a backend has one of its own, behind a lock that it shares with those who ask; it is not looked at
//! as long as nothing is wanted. Those of all parts are added up when somebody asks.

use std::sync::Arc;

use super::class::Class;
use super::histogram::Histogram;
use super::interval::{Latencies, TimedAverage};

/// What there are histograms of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HistogramKind {
    /// Reads.
    Read,
    /// Writes and write-zeroes.
    Write,
    /// Appends to zones, which do not occur.
    ZoneAppend,
    /// Flushes.
    Flush,
}

/// A histogram of each kind, where one is wanted.
pub type Histograms = [Option<Histogram>; 4];

/// Averages over an interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct IntervalStats {
    /// Its length in seconds.
    pub seconds: u32,
    /// Of reads.
    pub rd: Latencies,
    /// Of writes and write-zeroes.
    pub wr: Latencies,
    /// Of flushes.
    pub flush: Latencies,
}

#[derive(Clone, Debug)]
struct Interval {
    seconds: u32,
    /// Of reads, writes, flushes.
    averages: [TimedAverage; 3],
}

/// See the [module](self).
#[derive(Clone, Debug, Default)]
pub struct Observed {
    histograms: Histograms,
    intervals: Vec<Interval>,
}

impl Observed {
    /// With averages over intervals of these lengths in seconds.
    pub fn with_intervals(lengths: &Arc<[u32]>) -> Self {
        let interval = |seconds: &u32| {
            let average = TimedAverage::new(u64::from(*seconds) * 1_000_000_000);
            Interval {
                seconds: *seconds,
                averages: [average.clone(), average.clone(), average],
            }
        };
        Self {
            histograms: Histograms::default(),
            intervals: lengths.iter().map(interval).collect(),
        }
    }

    /// Wants the same, and has counted nothing.
    pub fn emptied(&self) -> Self {
        let lengths = self.intervals.iter().map(|interval| interval.seconds);
        let mut empty = Self::with_intervals(&lengths.collect());
        for (own, like) in empty.histograms.iter_mut().zip(&self.histograms) {
            let boundaries = like.as_ref().map(|like| like.of_boundaries().clone());
            *own = boundaries.map(Histogram::new);
        }
        empty
    }

    /// Whether anything is wanted.
    pub fn is_wanted(&self) -> bool {
        !self.intervals.is_empty() || self.histograms.iter().any(Option::is_some)
    }

    /// From now on there is this histogram, or none. Returns what there was.
    pub fn set_histogram(
        &mut self,
        kind: HistogramKind,
        histogram: Option<Histogram>,
    ) -> Option<Histogram> {
        let own = self.histograms.get_mut(kind as usize)?;
        std::mem::replace(own, histogram)
    }

    /// `count` requests of `class` have taken that long each.
    pub fn took(&mut self, class: Class, latency_ns: u64, count: u64) {
        let kind = match class {
            Class::Rd => HistogramKind::Read,
            Class::Wr => HistogramKind::Write,
            Class::Flush => HistogramKind::Flush,
            Class::Unmap => return,
        };
        if let Some(Some(histogram)) = self.histograms.get_mut(kind as usize) {
            histogram.add(latency_ns, count);
        }
    }

    /// They have ended at `now`, in nanoseconds since the accounting began.
    pub fn ended(&mut self, class: Class, latency_ns: u64, count: u64, now: u64) {
        let which = match class {
            Class::Rd => 0,
            Class::Wr => 1,
            Class::Flush => 2,
            Class::Unmap => return,
        };
        for interval in &mut self.intervals {
            if let Some(average) = interval.averages.get_mut(which) {
                average.add(latency_ns, count, now);
            }
        }
    }

    /// Adds what another one has counted, which wants the same.
    pub fn merge(&mut self, other: &Self, now: u64) {
        for (own, more) in self.histograms.iter_mut().zip(&other.histograms) {
            if let (Some(own), Some(more)) = (own, more) {
                own.merge(more);
            }
        }
        for (own, more) in self.intervals.iter_mut().zip(&other.intervals) {
            for (own, more) in own.averages.iter_mut().zip(&more.averages) {
                own.merge(more, now);
            }
        }
    }

    /// What there is at `now`.
    pub fn read(mut self, now: u64) -> (Histograms, Vec<IntervalStats>) {
        let intervals = self.intervals.iter_mut().map(|interval| {
            let [rd, wr, flush] = &mut interval.averages;
            IntervalStats {
                seconds: interval.seconds,
                rd: rd.read(now),
                wr: wr.read(now),
                flush: flush.read(now),
            }
        });
        let intervals = intervals.collect();
        (self.histograms, intervals)
    }
}
