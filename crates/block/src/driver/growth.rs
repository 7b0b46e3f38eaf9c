//! The word that nodes have become longer by what was written to them ([`crate::Grow`]): from the iothreads
//! where that happens to whoever tells those that see the lengths.
//!
//! However often it happens, one word is under way at most. It does not say which node it was: who hears
//! it looks at the lengths that there are then.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

/// See the [module](self).
pub struct Growth {
    /// The word is under way.
    said: AtomicBool,
    say: Box<dyn Fn() + Send + Sync>,
}

impl Growth {
    /// `say` brings the word to whoever calls [`Self::heard`] then. It is called on iothreads and must not
    /// wait.
    pub fn new(say: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            said: AtomicBool::new(false),
            say: Box::new(say),
        }
    }

    /// A node is longer than it was, and says so when it is asked.
    pub fn happened(&self) {
        // Both sides swap, so that each sees what the one before it has done: either the word was heard
        // before this, and another one is said, or whoever hears it later sees the length that is there now.
        if !self.said.swap(true, Ordering::AcqRel) {
            (self.say)();
        }
    }

    /// The word has come. Lengths are looked at after this, because what happens meanwhile is said anew.
    pub fn heard(&self) {
        self.said.swap(false, Ordering::AcqRel);
    }
}

impl fmt::Debug for Growth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Growth")
            .field("said", &self.said)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;
    use std::sync::mpsc;

    #[test]
    fn one_word_at_a_time() {
        let (sender, words) = mpsc::channel();
        let growth = Growth::new(move || sender.send(()).expect("somebody listens"));
        for _ in 0..3 {
            growth.happened();
            growth.happened();
            assert_eq!(words.try_iter().count(), 1);
            growth.heard();
            assert_eq!(words.try_iter().count(), 0);
        }
    }

    /// Whatever two threads do at once, who hears the last word sees the last length.
    #[test]
    fn no_length_is_missed() {
        const STEPS: u64 = if cfg!(miri) { 4 } else { 20_000 };
        let length = Arc::<AtomicU64>::default();
        let (sender, words) = mpsc::channel();
        let growth = Arc::new(Growth::new(move || {
            sender.send(()).expect("somebody listens");
        }));
        let grower = |_| {
            let (growth, length) = (Arc::clone(&growth), Arc::clone(&length));
            std::thread::spawn(move || {
                for _ in 0..STEPS {
                    length.fetch_add(1, Ordering::Relaxed);
                    growth.happened();
                }
            })
        };
        let growers: Vec<_> = (0..2).map(grower).collect();
        let (mut told, mut count) = (0, 0);
        while told < 2 * STEPS {
            let limit = std::time::Duration::from_secs(60);
            words.recv_timeout(limit).expect("a length is missed");
            growth.heard();
            told = length.load(Ordering::Relaxed);
            count += 1;
        }
        for grower in growers {
            grower.join().expect("it ends");
        }
        assert!(count <= 2 * STEPS, "{count} words");
    }
}
