//! Whose operations are whose.

use std::{
    num::NonZeroUsize,
    sync::atomic::{AtomicU64, Ordering},
};

/// Names a lane in the pools.
pub(crate) type LaneId = u64;

/// The lane of operations that name none.
pub(crate) const NO_LANE: LaneId = 0;

/// How much of a pool a lane may have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Share {
    /// Fewer workers than any lane may have.
    pub(crate) workers_max: Option<NonZeroUsize>,
    /// The storage that it shares with other lanes.
    pub(crate) storage: Option<u64>,
}

/// The operations of one node, on all iothreads: [`Op::on`](crate::ops::Op::on) puts one on its lane.
///
/// Workers of a pool are shared out by lane, so that storage which hangs keeps no other from being served:
/// at most half of a pool's workers are in the calls of one lane, and beyond its first never more than are
/// left for all others. Seven lanes that hang take all of 64 workers: 32, 16, 8, 4, 2, 1 and 1. Lanes of one storage
/// ([`Lane::with_storage`]) leave others a quarter of the workers, however many of them hang. What exceeds that waits in
/// the lane, first in, first out. A ring does not look at lanes.
#[derive(Debug)]
pub struct Lane {
    id: LaneId,
    by_workers: bool,
    share: Share,
}

impl Lane {
    /// A lane whose operations go by the iothread's engine.
    #[must_use]
    pub fn new() -> Lane {
        static NEXT_ID: AtomicU64 = AtomicU64::new(NO_LANE + 1);
        Lane {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            by_workers: false,
            share: Share::default(),
        }
    }

    /// A lane whose operations go by workers, whatever the iothread's engine: for files that block the
    /// thread which hands an operation to a ring.
    #[must_use]
    pub fn by_workers() -> Lane {
        Lane {
            by_workers: true,
            ..Lane::new()
        }
    }

    /// At most `workers` of each iothread are in calls of this lane; more than its pool allows for one
    /// lane counts as that.
    #[must_use]
    pub fn with_workers_max(mut self, workers: NonZeroUsize) -> Lane {
        self.share.workers_max = Some(workers);
        self
    }

    /// Lanes with the same number hang together: it is the number of a device or a file system.
    #[must_use]
    pub fn with_storage(mut self, number: u64) -> Lane {
        self.share.storage = Some(number);
        self
    }

    /// Whether its operations go by workers on every iothread.
    #[must_use]
    pub fn is_by_workers(&self) -> bool {
        self.by_workers
    }

    pub(crate) fn id(&self) -> LaneId {
        self.id
    }

    pub(crate) fn share(&self) -> Share {
        self.share
    }
}

impl Default for Lane {
    fn default() -> Lane {
        Lane::new()
    }
}
