//! What has come of a check.

use super::finding::{Finding, Severity};

/// What a check may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of memory for counting references; 6 bytes for each cluster that is used.
    pub memory: u64,
    /// How many findings are kept. All are counted.
    pub findings: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory: 1 << 30,
            findings: 1000,
        }
    }
}

/// How the disk's clusters are laid out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Clusters that the disk has.
    pub total: u64,
    /// How many of them are stored.
    pub allocated: u64,
    /// How many are not behind the one before.
    pub fragmented: u64,
    /// How many are compressed.
    pub compressed: u64,
}

/// What has come of a check.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The first findings, as many as are kept.
    pub findings: Vec<Finding>,
    /// How many corruptions there are.
    pub corruptions: u64,
    /// How many leaked clusters there are.
    pub leaks: u64,
    /// What could not be looked at.
    pub errors: u64,
    /// There are tables that could not be followed: what seems leaked may be in use.
    pub hidden: bool,
    /// How the disk is laid out.
    pub layout: Layout,
    /// The byte behind the last cluster that is used, by references or by refcounts.
    pub image_end: u64,
    keep: usize,
}

impl Report {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            keep: limits.findings,
            ..Self::default()
        }
    }

    /// Nothing was found.
    pub const fn is_clean(&self) -> bool {
        self.corruptions == 0 && self.leaks == 0 && self.errors == 0
    }

    pub(super) fn add(&mut self, finding: Finding) {
        let count = match finding.severity {
            Severity::Corruption => &mut self.corruptions,
            Severity::Leak => &mut self.leaks,
            Severity::Error => &mut self.errors,
        };
        *count = count.saturating_add(1);
        if self.findings.len() < self.keep {
            self.findings.push(finding);
        }
    }
}
