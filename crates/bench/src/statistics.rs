//! Medians and ratios.

use serde::Serialize;
use std::collections::BTreeMap;

use crate::client::Figures;

/// One figure over all rounds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Summary {
    /// Half of the rounds are below it.
    pub median: f64,
    /// Lowest.
    pub min: f64,
    /// Highest.
    pub max: f64,
}

impl Summary {
    /// Of some values; `None` if there are none.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Some(Self { median, min, max })
    }
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    /// Requests per second.
    Iops,
    /// 10^6 bytes per second.
    MbS,
    /// Median latency.
    P50Us,
    /// Latency that one request in a hundred exceeds.
    P99Us,
    /// CPU time of the server per request.
    CpuUs,
    /// Context switches of the server per request.
    Switches,
}

impl Metric {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Iops,
        Self::MbS,
        Self::P50Us,
        Self::P99Us,
        Self::CpuUs,
        Self::Switches,
    ];

    /// Its name with its unit.
    pub fn title(self) -> &'static str {
        match self {
            Self::Iops => "IOPS",
            Self::MbS => "MB/s",
            Self::P50Us => "p50 us",
            Self::P99Us => "p99 us",
            Self::CpuUs => "CPU us/IO",
            Self::Switches => "switches/IO",
        }
    }

    fn of(self, figures: &Figures) -> Option<f64> {
        match self {
            Self::Iops => Some(figures.iops),
            Self::MbS => Some(figures.mb_s),
            Self::P50Us => Some(figures.p50_us),
            Self::P99Us => Some(figures.p99_us),
            Self::CpuUs => figures.cpu_us_per_io,
            Self::Switches => figures.switches_per_io,
        }
    }
}

/// The figures of all rounds of one load on one server.
pub type Summaries = BTreeMap<Metric, Summary>;

/// Summarises rounds.
pub fn summarise(rounds: &[Figures]) -> Summaries {
    let summary = |metric: Metric| {
        let values: Vec<f64> = rounds.iter().filter_map(|f| metric.of(f)).collect();
        Summary::of(&values).map(|summary| (metric, summary))
    };
    Metric::ALL.into_iter().filter_map(summary).collect()
}

/// A figure with about three digits.
pub fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 1e6 => format!("{:.2}M", value / 1e6),
        v if v >= 1e4 => format!("{:.1}k", value / 1e3),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        v if v >= 0.001 || v == 0.0 => format!("{value:.3}"),
        _ => format!("{value:.5}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_odd_and_even_counts() {
        assert_eq!(Summary::of(&[]), None);
        let odd = Summary::of(&[5.0, 1.0, 3.0]).unwrap();
        assert_eq!((odd.median, odd.min, odd.max), (3.0, 1.0, 5.0));
        assert_eq!(Summary::of(&[4.0, 2.0]).unwrap().median, 3.0);
    }

    #[test]
    fn figures_are_short() {
        for (value, text) in [
            (1_740_000.0, "1.74M"),
            (93_900.0, "93.9k"),
            (5896.0, "5896"),
            (88.0, "88.0"),
            (3.79, "3.79"),
            (0.57, "0.570"),
            (0.0, "0.000"),
        ] {
            assert_eq!(short(value), text);
        }
    }
}
