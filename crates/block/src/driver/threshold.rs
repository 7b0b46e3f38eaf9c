//! The write threshold of a node (`block-set-write-threshold`): a write that goes beyond it is told, once.
//!
//! What is compared is where a write ends, when it is submitted, or what a driver counts instead
//! ([`crate::Capabilities::write_threshold`]). While nothing is armed that costs one load.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::driver::io::Io;
use crate::words::request::Operation;

/// The limit that nothing is beyond.
const NEVER: u64 = u64::MAX;

/// A threshold was exceeded; it is not armed any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exceeded {
    /// By how many bytes.
    pub amount: u64,
    /// The threshold, in bytes.
    pub threshold: u64,
}

/// See the [module](self).
#[derive(Debug)]
pub struct WriteThreshold {
    /// [`NEVER`] while it is not armed. Only looked at: what counts is in `armed`.
    limit: AtomicU64,
    armed: Mutex<Option<Armed>>,
}

struct Armed {
    threshold: u64,
    say: Box<dyn FnOnce(Exceeded) + Send>,
}

impl Default for WriteThreshold {
    fn default() -> Self {
        Self {
            limit: AtomicU64::new(NEVER),
            armed: Mutex::default(),
        }
    }
}

impl WriteThreshold {
    /// From now on whatever goes beyond byte `threshold` is told to `say`, once; 0: nothing is. `say` is called
    /// on iothreads and must not wait.
    pub fn arm(&self, threshold: u64, say: impl FnOnce(Exceeded) + Send + 'static) {
        let say = Box::new(say);
        self.set((threshold > 0).then_some(Armed { threshold, say }));
    }

    /// The threshold in bytes; 0: it is not armed.
    pub fn get(&self) -> u64 {
        let armed = self.armed.lock();
        armed.as_ref().map_or(0, |armed| armed.threshold)
    }

    /// A write is submitted that ends inside the range of numbers.
    #[inline]
    pub(crate) fn submitted(&self, io: &Io<'_>) {
        if io.offset + io.bytes > self.limit.load(Ordering::Relaxed) {
            self.beyond(io);
        }
    }

    /// Byte `position` is reached.
    #[inline]
    pub fn reached(&self, position: u64) {
        if position > self.limit.load(Ordering::Relaxed) {
            self.exceeded(position);
        }
    }

    /// What is armed at `former` is armed here, and there no more.
    pub(crate) fn go_on_from(&self, former: &Self) {
        if let Some(armed) = former.set(None) {
            self.set(Some(armed));
        }
    }

    /// Discards need no room, and reads and flushes neither.
    #[cold]
    fn beyond(&self, io: &Io<'_>) {
        if matches!(io.op, Operation::Write | Operation::WriteZeroes { .. }) && io.bytes > 0 {
            self.exceeded(io.offset + io.bytes);
        }
    }

    #[cold]
    fn exceeded(&self, position: u64) {
        let mut armed = self.armed.lock();
        let told = armed.take_if(|armed| position > armed.threshold);
        let Some(Armed { threshold, say }) = told else {
            return;
        };
        self.limit.store(NEVER, Ordering::Relaxed);
        drop(armed);
        say(Exceeded {
            amount: position - threshold,
            threshold,
        });
    }

    /// Returns what was armed before.
    fn set(&self, next: Option<Armed>) -> Option<Armed> {
        let mut armed = self.armed.lock();
        let limit = next.as_ref().map_or(NEVER, |armed| armed.threshold);
        self.limit.store(limit, Ordering::Relaxed);
        std::mem::replace(&mut *armed, next)
    }
}

impl fmt::Debug for Armed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Armed").field(&self.threshold).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Buffers;
    use std::sync::mpsc;

    fn io(op: Operation, offset: u64, bytes: u64) -> Io<'static> {
        Io {
            op,
            offset,
            bytes,
            buffers: Buffers::EMPTY,
            fua: false,
            losses_accepted: 0,
        }
    }

    #[test]
    fn what_goes_beyond_is_told_once() {
        let threshold = WriteThreshold::default();
        let (sender, told) = mpsc::channel();
        let arm = |at| {
            let sender = sender.clone();
            threshold.arm(at, move |exceeded| {
                sender.send(exceeded).expect("somebody listens");
            });
        };
        let zeroes = Operation::WriteZeroes { unmap: true };
        threshold.submitted(&io(Operation::Write, 0, 1 << 40));
        arm(4096);
        for (op, offset, bytes) in [
            (Operation::Read, 4096, 512),
            (Operation::Discard, 4096, 512),
            (Operation::Flush, 8192, 0),
            (Operation::Write, 0, 4096),
            (Operation::Write, 4097, 0),
            (zeroes, 3584, 512),
        ] {
            threshold.submitted(&io(op, offset, bytes));
            assert_eq!(threshold.get(), 4096, "{op} {offset} {bytes}");
        }
        for op in [Operation::Write, zeroes] {
            arm(4096);
            threshold.submitted(&io(op, 4000, 97));
            let exceeded = Exceeded {
                amount: 1,
                threshold: 4096,
            };
            assert_eq!(told.try_recv(), Ok(exceeded));
            assert_eq!(threshold.get(), 0);
            threshold.submitted(&io(op, 0, 1 << 40));
            threshold.reached(NEVER - 1);
        }
        arm(7);
        arm(0);
        threshold.reached(NEVER - 1);
        // As with QEMU, which shows it as -1.
        arm(NEVER);
        assert_eq!(threshold.get(), NEVER);
        threshold.reached(NEVER - 1);
        assert!(told.try_recv().is_err());
    }

    #[test]
    fn another_opening_goes_on_with_it() {
        let (former, other) = (WriteThreshold::default(), WriteThreshold::default());
        let (sender, told) = mpsc::channel();
        former.arm(100, move |exceeded| {
            sender.send(exceeded.amount).expect("somebody listens");
        });
        other.go_on_from(&former);
        former.reached(200);
        assert_eq!((former.get(), other.get()), (0, 100));
        other.reached(101);
        assert_eq!(told.try_recv(), Ok(1));
        other.go_on_from(&former);
        assert_eq!(other.get(), 0);
    }
}
