//! How long something takes.

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use serde::Serialize;
use std::time::Instant;

use crate::client::float;

/// A latency.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Latency {
    /// What.
    pub name: String,
    /// Half of all are shorter.
    pub p50_us: f64,
    /// One in a hundred is longer.
    pub p99_us: f64,
    /// How many there were.
    pub count: u64,
}

/// An empty one.
///
/// # Errors
/// Never for these bounds.
pub fn histogram() -> Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).context("histogram")
}

/// Notes the time since then.
pub fn record(histogram: &mut Histogram<u64>, since: Instant) {
    histogram.saturating_record(u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX));
}

/// What a histogram of nanoseconds says.
pub fn latency(name: &str, histogram: &Histogram<u64>) -> Latency {
    let us = |quantile| float(histogram.value_at_quantile(quantile)) / 1e3;
    Latency {
        name: name.to_owned(),
        p50_us: us(0.5),
        p99_us: us(0.99),
        count: histogram.len(),
    }
}
