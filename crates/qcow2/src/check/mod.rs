//! A strict check of an image: every table, every rule, every reference.
//!
//! All tables that lead anywhere are followed, and each reference to a cluster is counted; then the counts are
//! compared with the stored refcounts, and the flags of what may be written in place with those. Each L2 table is
//! read once, however many lead to it, so the work is bounded by the length of the file; memory by
//! [`Limits::memory`].
//!
//! It is stricter than `qemu-img check` where the specification is: a cluster may be used for one thing only, even
//! if its refcount counts both; a zero flag in version 2; bitmaps that do not fit the disk; refcounts of clusters
//! beyond the end of the file, which are leaks. `tests/broken.rs` has the table.
//!
//! * [`check`]: does it. [`repair`](mod@repair): mends what can be mended safely.
//! * [`Finding`]: one thing that is wrong: table, entry, offset, problem.

mod copied;
mod finding;
mod mapping;
mod metadata;
mod refcounts;
pub mod repair;
mod report;
mod usage;
mod walk;

pub use self::finding::{Finding, Problem, Severity, Table};
pub use self::repair::{Fix, Fixed, RepairError, repair};
pub use self::report::{Layout, Limits, Report};
pub use self::usage::Use;
use self::walk::Walk;
use crate::image::Image;

/// Checks an image.
pub fn check(image: &Image<'_>, limits: &Limits) -> Report {
    Walk::whole(image, limits).report
}

/// Which of these clusters something in the image refers to. None: not all of its tables could be followed.
pub(crate) fn users(image: &Image<'_>, limits: &Limits, clusters: &[u64]) -> Option<Vec<u64>> {
    let walk = Walk::whole(image, limits);
    let report = &walk.report;
    if report.hidden || report.errors > 0 {
        return None;
    }
    let used = clusters.iter().copied();
    Some(
        used.filter(|cluster| walk.usage.count(*cluster) > 0)
            .collect(),
    )
}
