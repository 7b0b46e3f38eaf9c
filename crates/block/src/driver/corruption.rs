//! The word that an image turns out to be corrupt (`BLOCK_IMAGE_CORRUPTED`): from the driver that finds it to
//! whoever tells it.
//!
//! As with QEMU, of all there is to be found the first is told, and once more if it is fatal: from then on the image is
//! not written any more. What is found before anybody hears is kept until then.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CorruptionReport {
    /// What is wrong, for people.
    pub msg: String,
    /// Where in the file, in bytes, if that says something.
    pub offset: Option<u64>,
    /// How many bytes.
    pub bytes: Option<u64>,
    /// The image is not written any more.
    pub fatal: bool,
}

type Say = Arc<dyn Fn(CorruptionReport) + Send + Sync>;

/// What a driver has found of its image; it hands it out as [`crate::Capabilities::corruption`].
#[derive(Default)]
pub struct Corruption {
    fatal: AtomicBool,
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    any: bool,
    fatal: bool,
    /// Two at most.
    kept: Vec<CorruptionReport>,
    say: Option<Say>,
}

impl Corruption {
    /// Something was found. Called on any thread; waits for nothing. Whether it is told: not, if something as bad was
    /// before.
    #[cold]
    pub fn report(&self, report: CorruptionReport) -> bool {
        let mut told = self.told.lock();
        let is_known = told.fatal || (told.any && !report.fatal);
        if is_known {
            return false;
        }
        told.any = true;
        if report.fatal {
            told.fatal = true;
            self.fatal.store(true, Ordering::Release);
        }
        match told.say.clone() {
            Some(say) => {
                drop(told);
                say(report);
            }
            None => told.kept.push(report),
        }
        true
    }

    /// Whether something fatal was found.
    #[inline]
    pub fn is_fatal(&self) -> bool {
        self.fatal.load(Ordering::Acquire)
    }

    /// From now on `say` is told, of what was found before, too. It is called on iothreads and must not wait.
    pub fn listen(&self, say: impl Fn(CorruptionReport) + Send + Sync + 'static) {
        let say: Say = Arc::new(say);
        let mut told = self.told.lock();
        told.say = Some(Arc::clone(&say));
        let kept = std::mem::take(&mut told.kept);
        drop(told);
        kept.into_iter().for_each(|report| say(report));
    }
}

impl fmt::Debug for Corruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Corruption")
            .field("fatal", &self.fatal)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn found(msg: &str, fatal: bool) -> CorruptionReport {
        CorruptionReport {
            msg: msg.to_owned(),
            offset: None,
            bytes: None,
            fatal,
        }
    }

    #[test]
    fn the_first_is_told_and_the_first_that_is_fatal() {
        for listens_at in 0..=5 {
            let corruption = Corruption::default();
            let (sender, told) = mpsc::channel();
            let mut sender = Some(sender);
            let mut listen = |step| {
                if step == listens_at
                    && let Some(sender) = sender.take()
                {
                    corruption.listen(move |report| {
                        sender.send(report.msg).expect("somebody listens");
                    });
                }
            };
            let steps = [
                (found("a", false), true),
                (found("b", false), false),
                (found("c", true), true),
                (found("d", true), false),
                (found("e", false), false),
            ];
            for (step, (report, is_told)) in steps.into_iter().enumerate() {
                listen(step);
                assert_eq!(corruption.is_fatal(), step > 2, "{step}");
                assert_eq!(corruption.report(report), is_told, "{step}");
            }
            listen(5);
            let told: Vec<_> = told.try_iter().collect();
            assert_eq!(told, ["a", "c"], "{listens_at}");
        }
    }

    #[test]
    fn nothing_comes_behind_what_is_fatal() {
        let corruption = Corruption::default();
        assert!(!corruption.is_fatal());
        assert!(corruption.report(found("a", true)));
        assert!(!corruption.report(found("b", false)));
        assert!(corruption.is_fatal());
    }
}
