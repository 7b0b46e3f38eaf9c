//! How many requests took how long. Pure.

use std::sync::Arc;

/// Where the bins of a histogram end, in nanoseconds: ascending, and greater than 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boundaries(Arc<[u64]>);

impl Boundaries {
    /// None: the list is empty, does not ascend, or begins with 0.
    pub fn new(list: &[u64]) -> Option<Self> {
        let ascends = list.windows(2).all(|pair| pair[0] < pair[1]);
        (ascends && *list.first()? > 0).then(|| Self(list.into()))
    }

    /// The list.
    pub fn list(&self) -> &[u64] {
        &self.0
    }

    /// The bin of a latency in nanoseconds. As in QEMU a boundary belongs to the bin that it begins.
    fn bin(&self, latency_ns: u64) -> usize {
        self.0.partition_point(|boundary| *boundary <= latency_ns)
    }
}

/// Bins, and how many requests are in them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    boundaries: Boundaries,
    bins: Vec<u64>,
}

impl Histogram {
    /// An empty one.
    pub fn new(boundaries: Boundaries) -> Self {
        let bins = vec![0; boundaries.0.len() + 1];
        Self { boundaries, bins }
    }

    /// Where bins end.
    pub(super) fn of_boundaries(&self) -> &Boundaries {
        &self.boundaries
    }

    /// Where bins end, in nanoseconds.
    pub fn boundaries(&self) -> &[u64] {
        self.boundaries.list()
    }

    /// How many requests there are in each bin: one more than boundaries.
    pub fn bins(&self) -> &[u64] {
        &self.bins
    }

    /// `count` requests have taken that long.
    pub fn add(&mut self, latency_ns: u64, count: u64) {
        let bin = self.boundaries.bin(latency_ns);
        if let Some(bin) = self.bins.get_mut(bin) {
            *bin = bin.saturating_add(count);
        }
    }

    /// Adds what another one of the same boundaries has counted; one of others is left alone.
    pub fn merge(&mut self, other: &Self) {
        if self.boundaries == other.boundaries {
            for (bin, more) in self.bins.iter_mut().zip(&other.bins) {
                *bin = bin.saturating_add(*more);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boundaries_ascend_and_are_positive() {
        for (list, right) in [
            (&[][..], false),
            (&[0], false),
            (&[0, 1], false),
            (&[1], true),
            (&[1, 1], false),
            (&[2, 1], false),
            (&[1, 2, u64::MAX], true),
            (&[1, 3, 2], false),
        ] {
            assert_eq!(Boundaries::new(list).is_some(), right, "{list:?}");
        }
    }

    #[test]
    fn a_boundary_belongs_to_the_bin_that_it_begins() {
        let boundaries = Boundaries::new(&[10, 50, 100]).unwrap();
        for (latency, bin) in [
            (0, 0),
            (9, 0),
            (10, 1),
            (49, 1),
            (50, 2),
            (99, 2),
            (100, 3),
            (u64::MAX, 3),
        ] {
            let mut histogram = Histogram::new(boundaries.clone());
            histogram.add(latency, 3);
            let mut expected = [0; 4];
            expected[bin] = 3;
            assert_eq!(histogram.bins(), expected, "{latency}");
        }
    }

    #[test]
    fn what_parts_have_counted_is_added_up() {
        let of = |list: &[u64], latencies: &[u64]| {
            let mut histogram = Histogram::new(Boundaries::new(list).unwrap());
            for latency in latencies {
                histogram.add(*latency, 1);
            }
            histogram
        };
        let mut sum = of(&[10, 20], &[5, 15]);
        sum.merge(&of(&[10, 20], &[15, 25, 26]));
        assert_eq!(sum.bins(), [1, 2, 2]);
        // Set anew in between: what was counted with other boundaries is not known in these.
        sum.merge(&of(&[10, 21], &[5]));
        assert_eq!(
            (sum.bins(), sum.boundaries()),
            (&[1, 2, 2][..], &[10, 20][..])
        );
    }
}
