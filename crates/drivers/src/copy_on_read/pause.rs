//! After a copy that failed: for a moment nothing is copied, so that storage that is full is not asked for each read.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use block::BlockError;

/// How long nothing is copied.
const PAUSE: Duration = Duration::from_secs(1);

static BEGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Pause {
    /// Until when, in milliseconds since `BEGIN`.
    until: AtomicU64,
    /// The last copy has failed.
    failed: AtomicBool,
}

fn now() -> u64 {
    u64::try_from(BEGIN.elapsed().as_millis()).unwrap_or(u64::MAX)
}

impl Pause {
    /// Whether nothing is copied now.
    pub fn is_on(&self) -> bool {
        self.failed.load(Ordering::Relaxed) && now() < self.until.load(Ordering::Relaxed)
    }

    /// A copy has failed. The log says so once until one has succeeded.
    pub fn failed(&self, name: &str, error: &BlockError) {
        let pause = u64::try_from(PAUSE.as_millis()).unwrap_or(u64::MAX);
        self.until
            .store(now().saturating_add(pause), Ordering::Relaxed);
        if !self.failed.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "node '{name}': what was read from behind it could not be copied: {error}. Reads go on; it is tried again \
                 once a second"
            );
        }
    }

    /// One has succeeded.
    pub fn succeeded(&self) {
        if self.failed.swap(false, Ordering::Relaxed) {
            self.until.store(0, Ordering::Relaxed);
        }
    }
}
