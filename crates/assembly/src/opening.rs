//! How long opening a node may take, and what is kept meanwhile: names.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::timeout;

use crate::lock_wait::LOCK_WAIT;
use crate::setup_error::SetupError;

/// How long a node may take to be opened while the daemon serves: whoever asked waits for an answer.
///
/// At the start there is no limit of ours: whoever started the daemon has one (`TimeoutStartSec` of its
/// unit), a signal ends it, and storage that comes late is worth waiting for, as a VM waits for us.
pub const OPEN_TIME_MAX: Duration = Duration::from_secs(30);

/// How long a snapshot may take until it is given up, with what is in flight before it: whoever asks for one wants to
/// know within the 10 s in which a monitor answers whether there is one.
pub const SNAPSHOT_TIME_MAX: Duration = Duration::from_secs(8);

/// How long what is added may wait for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeLimits {
    /// For the storage to answer; none: for ever.
    pub open: Option<Duration>,
    /// For a lock that another process has.
    pub lock: Duration,
}

impl TimeLimits {
    /// At the start a former daemon may just have died, and a VM waits for us.
    pub const START: Self = Self {
        open: None,
        lock: LOCK_WAIT,
    };
    /// While the daemon serves, whoever asks wants an answer.
    pub const SERVING: Self = Self {
        open: Some(OPEN_TIME_MAX),
        lock: Duration::ZERO,
    };
}

/// After this long the log says what is waited for.
pub const QUIET_TIME_MAX: Duration = Duration::from_secs(3);

/// How long one definition may take to be opened, with all that it defines.
#[derive(Debug)]
pub struct Patience {
    limit: Option<Duration>,
    begin: tokio::time::Instant,
}

impl Patience {
    /// It begins now; none: for ever.
    pub fn new(limit: Option<Duration>) -> Self {
        Self {
            limit,
            begin: tokio::time::Instant::now(),
        }
    }

    /// What is left of the limit.
    pub fn left(&self) -> Option<Duration> {
        let left = |limit: Duration| limit.saturating_sub(self.begin.elapsed());
        self.limit.map(left)
    }

    /// The limit.
    pub const fn limit(&self) -> Option<Duration> {
        self.limit
    }

    /// Waits for `opened`: node `name`, which is to be made of `file`. After `quiet` the log says so.
    ///
    /// # Errors
    /// Its own; that the time is over, when it is dropped.
    pub async fn wait<T>(
        &self,
        quiet: Duration,
        name: &str,
        file: &str,
        opened: impl Future<Output = Result<T, SetupError>>,
    ) -> Result<T, SetupError> {
        let left = self.left();
        let mut opened = Box::pin(opened);
        let quiet = left.map_or(quiet, |left| left.min(quiet));
        if let Ok(result) = timeout(quiet, &mut opened).await {
            return result;
        }
        let over = |limit: Duration| {
            SetupError::new(format!(
                "Could not open node '{name}': '{file}' does not answer, and the limit of {} s is over",
                limit.as_secs_f32()
            ))
        };
        let (Some(limit), Some(left)) = (self.limit, left) else {
            tracing::warn!("node '{name}': '{file}' does not answer, still waiting for it to open");
            return opened.await;
        };
        if left > quiet {
            tracing::warn!(
                "node '{name}': '{file}' does not answer, waiting up to {} s for it to open",
                limit.as_secs()
            );
        }
        let result = timeout(left.saturating_sub(quiet), opened).await;
        result.unwrap_or_else(|_| Err(over(limit)))
    }
}

/// The names of what is being made: nobody else can have one of them.
#[derive(Debug, Default)]
pub struct Names(Arc<Mutex<BTreeSet<String>>>);

impl Names {
    /// None so far.
    pub fn reserve(&self) -> Reserved {
        Reserved {
            all: Arc::clone(&self.0),
            own: Vec::new(),
        }
    }
}

/// Names that are kept, until this is dropped.
#[derive(Debug)]
pub struct Reserved {
    all: Arc<Mutex<BTreeSet<String>>>,
    own: Vec<String>,
}

impl Reserved {
    /// One more. False: it is taken.
    pub fn add(&mut self, name: &str) -> bool {
        let free = self.all.lock().insert(name.to_owned());
        if free {
            self.own.push(name.to_owned());
        }
        free
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let mut all = self.all.lock();
        for name in &self.own {
            all.remove(name);
        }
    }
}
