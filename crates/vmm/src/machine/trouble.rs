//! Something that may go wrong again and again, and when it is tried again.

use std::time::Duration;

/// The first wait after a failure; doubled with each further one.
const RETRY_MIN: Duration = Duration::from_millis(100);
/// The longest wait after a failure.
pub const RETRY_MAX: Duration = Duration::from_secs(5);

/// Nothing is wrong, to begin with.
#[derive(Clone, Debug, Default)]
pub struct Trouble {
    now: Option<Wrong>,
    /// The wait after the last failure; zero if the next one is the first again.
    delay: Duration,
}

#[derive(Clone, Debug)]
struct Wrong {
    text: String,
    since: Duration,
    until: Duration,
}

impl Trouble {
    /// It has failed, once more if it had before.
    pub fn begin(&mut self, text: String, now: Duration) {
        self.delay = (self.delay * 2).clamp(RETRY_MIN, RETRY_MAX);
        self.now = Some(Wrong {
            text,
            since: now,
            until: now + self.delay,
        });
    }

    /// Nothing is wrong any more. The next failure still counts as one more.
    pub fn end(&mut self) {
        self.now = None;
    }

    /// The next failure counts as the first.
    pub fn forgive(&mut self) {
        self.delay = Duration::ZERO;
    }

    /// It is tried again as soon as after a first failure.
    pub fn hurry(&mut self) {
        if let Some(wrong) = &mut self.now {
            wrong.until = wrong.until.min(wrong.since + RETRY_MIN);
        }
    }

    /// What is wrong.
    pub fn text(&self) -> Option<&String> {
        self.now.as_ref().map(|wrong| &wrong.text)
    }

    /// When it is tried again, if something is wrong.
    pub fn until(&self) -> Option<Duration> {
        self.now.as_ref().map(|wrong| wrong.until)
    }

    /// Whether it is too early to try again.
    pub fn waits(&self, now: Duration) -> bool {
        self.until().is_some_and(|until| now < until)
    }
}
