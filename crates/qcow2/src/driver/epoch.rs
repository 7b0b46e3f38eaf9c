//! When nobody can be using any more what has been unlinked.
//!
//! Reads and writes of what is allocated take no lock. They enter an epoch, look up where the bytes are, and stay in it
//! until their I/O has ended. What is unlinked in an epoch may be given to somebody else two epochs later: one begins when
//! nobody is in the one before the last any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, compiler_fence, fence};

use block::driver::lines::{self, LINES};

/// Somebody is in an epoch as long as he has a clone of one: its reference count is what is looked at.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Token(());

/// See the [module](self). Apart from what is written more often.
#[derive(Debug)]
#[repr(align(128))]
pub struct Epochs {
    now: AtomicU64,
    /// Of even epochs, and of odd ones.
    tokens: [[Arc<Token>; LINES]; 2],
}

impl Default for Epochs {
    fn default() -> Self {
        let line = || std::array::from_fn(|_| Arc::default());
        Self {
            now: AtomicU64::new(0),
            tokens: [line(), line()],
        }
    }
}

fn parity(epoch: u64) -> usize {
    usize::from(epoch % 2 == 1)
}

impl Epochs {
    /// Enters the epoch that there is. What is looked up afterwards may be used until the token is dropped.
    #[inline]
    pub fn enter(&self) -> Arc<Token> {
        let slot = lines::of_this_thread();
        loop {
            let now = self.now.load(Ordering::Acquire);
            let [even, odd] = &self.tokens;
            let line = if now.is_multiple_of(2) { even } else { odd };
            let token = line.get(slot).map(Arc::clone).unwrap_or_default();
            // Either whoever ends an epoch sees the token, or he has done so before, and that is seen here. The same
            // for who has unlinked something before he looks at the tokens.
            entered();
            if self.now.load(Ordering::Relaxed) == now {
                return token;
            }
        }
    }

    /// The epoch that there is.
    pub fn now(&self) -> u64 {
        self.now.load(Ordering::Acquire)
    }

    /// Begins the next one, if it may begin. One calls it at a time.
    fn advance(&self) -> bool {
        let now = self.now();
        fence(Ordering::SeqCst);
        let former = self.tokens.get(parity(now + 1)).into_iter().flatten();
        if former.map(Arc::strong_count).any(|count| count != 1) {
            return false;
        }
        fence(Ordering::Acquire);
        self.now.store(now + 1, Ordering::SeqCst);
        true
    }

    /// Whether everybody has ended who was in `epoch` or an earlier one. One calls it at a time.
    pub fn has_ended(&self, epoch: u64) -> bool {
        while self.now() < epoch + 2 {
            if !self.advance() {
                return false;
            }
        }
        true
    }
}

/// What follows is done after a token was cloned, for all threads. What counts it is a locked instruction on x86, behind which
/// nothing passes: there the compiler alone has to be told, and a fence of its own would cost as much as all of the lookup.
#[inline]
fn entered() {
    if cfg!(all(target_arch = "x86_64", not(miri))) {
        compiler_fence(Ordering::SeqCst);
    } else {
        fence(Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn it_has_ended_when_the_last_one_has_left() {
        let epochs = Epochs::default();
        let epoch = epochs.now();
        assert!(epochs.has_ended(epoch), "nobody is there");
        let epoch = epochs.now();
        let first = epochs.enter();
        assert!(!epochs.has_ended(epoch));
        // The next one has begun, and who comes now is in nobody's way.
        let second = epochs.enter();
        assert!(!epochs.has_ended(epoch));
        drop(first);
        assert!(epochs.has_ended(epoch));
        assert!(!epochs.has_ended(epochs.now()));
        drop(second);
        assert!(epochs.has_ended(epochs.now()));
    }

    /// What is taken away is not used by anybody who has entered before.
    #[test]
    fn nobody_is_overlooked() {
        const ROUNDS: usize = if cfg!(miri) { 20 } else { 20_000 };
        let epochs = Epochs::default();
        let linked = AtomicUsize::new(0);
        let used = [const { AtomicUsize::new(1) }; 8];
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..ROUNDS {
                        let _token = epochs.enter();
                        let place = &used[linked.load(Ordering::Acquire) % used.len()];
                        assert_eq!(place.load(Ordering::Relaxed), 1, "it has been given away");
                    }
                });
            }
            for round in 0..ROUNDS / 10 {
                linked.store(round + 1, Ordering::Release);
                let epoch = epochs.now();
                while !epochs.has_ended(epoch) {
                    std::thread::yield_now();
                }
                let former = &used[round % used.len()];
                former.store(0, Ordering::Relaxed);
                std::thread::yield_now();
                former.store(1, Ordering::Relaxed);
            }
        });
    }
}
