//! Floods: of lines of one kind only some are written, and the rest is counted.
//!
//! A kind is a place in the code and the thing that the line is about: a client that sends nonsense to
//! one disk hides nothing of another disk. Lines below info are wanted by somebody who looks for
//! something, and are not limited.

use std::collections::HashMap;
use std::fmt::{self, Write};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::writer::{ABOUT_THE_LOG, LOG, LeftOut};

/// How many lines of a kind may come at once.
const BURST: u32 = 10;

/// How often one more may come, in the long run.
const ONE_PER: Duration = Duration::from_secs(1);

/// How long lines are left out before it is said how many.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// Kinds that are remembered. More than that is a flood of kinds: then those are forgotten that have
/// been quiet.
const KINDS_MAX: usize = 1024;

/// What is kept of a line that was left out, in bytes.
const TEXT_BYTES_MAX: usize = 200;

/// The fields that say what a line is about.
const SUBJECTS: [&str; 5] = ["export", "device", "node", "link", "iothread"];

static LIMITER: LazyLock<Limiter> = LazyLock::new(Limiter::default);

/// Whether lines were left out since the last report.
static TO_REPORT: AtomicBool = AtomicBool::new(false);

/// What the log is to report.
pub const LEFT_OUT: LeftOut = LeftOut {
    is_any: || TO_REPORT.load(Ordering::Relaxed),
    report,
    every: REPORT_EVERY,
};

/// Says how many lines were left out.
pub fn report() {
    if !TO_REPORT.swap(false, Ordering::Relaxed) {
        return;
    }
    // The lock is not held while that is written.
    for Left { count, text } in LIMITER.take_left() {
        let (lines, were) = if count == 1 {
            ("line", "was")
        } else {
            ("lines", "were")
        };
        tracing::warn!(
            target: ABOUT_THE_LOG,
            "{count} more {lines} of this kind {were} suppressed, the last one: {text}"
        );
    }
}

/// What was left out of one kind.
#[derive(Debug, PartialEq, Eq)]
struct Left {
    count: u64,
    text: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    place: Identifier,
    subject: u64,
}

#[derive(Debug)]
struct Kind {
    /// How many lines may come now.
    allowance: u32,
    /// When `allowance` was right.
    at: Instant,
    /// How many were left out.
    left: u64,
    /// The last of them.
    text: String,
}

#[derive(Debug, Default)]
struct Limiter {
    kinds: Mutex<HashMap<Key, Kind>>,
}

impl Limiter {
    fn kinds(&self) -> MutexGuard<'_, HashMap<Key, Kind>> {
        self.kinds.lock()
    }

    /// Whether a line may be written.
    fn admit(&self, key: Key, text: &str, now: Instant) -> bool {
        let mut kinds = self.kinds();
        if kinds.len() >= KINDS_MAX && !kinds.contains_key(&key) {
            kinds.retain(|_, kind| kind.refill(now) < BURST || kind.left > 0);
            if kinds.len() >= KINDS_MAX {
                return true;
            }
        }
        let kind = kinds.entry(key).or_insert_with(|| Kind {
            allowance: BURST,
            at: now,
            left: 0,
            text: String::new(),
        });
        match kind.refill(now) {
            0 => {
                kind.left += 1;
                kind.text.clear();
                kind.text.push_str(cut(text));
                false
            }
            _ => {
                kind.allowance -= 1;
                true
            }
        }
    }

    fn take_left(&self) -> Vec<Left> {
        let mut kinds = self.kinds();
        let left = kinds.values_mut().filter(|kind| kind.left > 0);
        left.map(|kind| Left {
            count: std::mem::take(&mut kind.left),
            text: std::mem::take(&mut kind.text),
        })
        .collect()
    }
}

impl Kind {
    fn refill(&mut self, now: Instant) -> u32 {
        let passed = now.saturating_duration_since(self.at);
        let more = u32::try_from(passed.as_millis() / ONE_PER.as_millis()).unwrap_or(u32::MAX);
        if more >= BURST - self.allowance {
            self.allowance = BURST;
            self.at = now;
        } else {
            self.allowance += more;
            self.at += ONE_PER * more;
        }
        self.allowance
    }
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// What a line says, and what it is about.
#[derive(Default)]
struct Said {
    message: String,
    subject: Option<String>,
}

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            // Writing to a string does not fail.
            let _ = write!(self.message, "{value:?}");
        } else if SUBJECTS.contains(&field.name()) && self.subject.is_none() {
            self.subject = Some(format!("{value:?}"));
        }
    }
}

impl Said {
    fn text(self) -> String {
        match self.subject {
            Some(subject) => format!("{} ({subject})", self.message),
            None => self.message,
        }
    }

    /// A number for what the line is about: a field, else the first name in quotes.
    fn subject(&self) -> u64 {
        let quoted = || self.message.split('\'').nth(1);
        let subject = self.subject.as_deref().or_else(quoted);
        let mut hasher = DefaultHasher::new();
        subject.hash(&mut hasher);
        hasher.finish()
    }
}

/// A format of lines, less those that are too many.
#[derive(Debug)]
pub struct Limited<F>(pub F);

impl<F> Limited<F> {
    fn admits(event: &Event<'_>) -> bool {
        let metadata = event.metadata();
        if *metadata.level() > Level::INFO || metadata.target() == ABOUT_THE_LOG {
            return true;
        }
        let mut said = Said::default();
        event.record(&mut said);
        let key = Key {
            place: metadata.callsite(),
            subject: said.subject(),
        };
        let admitted = LIMITER.admit(key, &said.text(), Instant::now());
        if !admitted && !TO_REPORT.swap(true, Ordering::Relaxed) {
            LOG.wake();
        }
        admitted
    }
}

impl<S, N, F> FormatEvent<S, N> for Limited<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        match Self::admits(event) {
            true => self.0.format_event(context, writer, event),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Callsite;

    fn key(subject: u64) -> Key {
        struct Place;
        impl Callsite for Place {
            fn set_interest(&self, _: tracing::subscriber::Interest) {}
            fn metadata(&self) -> &tracing::Metadata<'_> {
                unreachable!("nobody asks")
            }
        }
        static PLACE: Place = Place;
        Key {
            place: Identifier(&PLACE),
            subject,
        }
    }

    /// A client that sent nonsense again and again made 19,000 lines a second.
    #[test]
    fn of_a_flood_some_are_written_and_the_rest_is_counted() {
        let limiter = Limiter::default();
        let start = Instant::now();
        let mut written = 0;
        for millisecond in 0..5000 {
            let now = start + Duration::from_millis(millisecond);
            written += u32::from(limiter.admit(key(1), "nonsense", now));
        }
        assert_eq!(written, BURST + 4);
        assert!(limiter.admit(key(2), "another disk", start));
        let left = Left {
            count: u64::from(5000 - written),
            text: "nonsense".to_owned(),
        };
        assert_eq!(limiter.take_left(), [left]);
        assert!(limiter.take_left().is_empty());
        let later = start + Duration::from_secs(3600);
        assert!((0..BURST).all(|_| limiter.admit(key(1), "", later)));
        assert!(!limiter.admit(key(1), "", later));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let limiter = Limiter::default();
        let start = Instant::now();
        for subject in 0..10_000 {
            assert!(limiter.admit(key(subject), "", start));
        }
        assert!(limiter.kinds().len() <= KINDS_MAX);
        let later = start + Duration::from_secs(60);
        limiter.admit(key(1 << 40), "", later);
        assert_eq!(limiter.kinds().len(), 1, "quiet ones are forgotten");
    }

    #[test]
    fn what_a_line_is_about() {
        let subject = |message: &str, subject: Option<&str>| {
            let message = message.to_owned();
            let subject = subject.map(str::to_owned);
            Said { message, subject }.subject()
        };
        let vda = subject("export 'vda' holds requests on node 'a'", None);
        assert_eq!(
            vda,
            subject("export 'vda' holds requests on node 'b'", None)
        );
        assert_ne!(
            vda,
            subject("export 'vdb' holds requests on node 'a'", None)
        );
        let client = subject("nonsense 'x'", Some("vda"));
        assert_eq!(client, subject("nonsense 'y'", Some("vda")));
        assert_eq!(cut(&"\u{e9}".repeat(150)).len(), TEXT_BYTES_MAX);
    }
}
