//! Cache lines of threads. What many count at once is counted in a line for each of them: one that all write to would go from
//! CPU to CPU with every request.

use std::any::Any;
use std::cell::Cell;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// So many threads do not write to each other's lines.
pub const LINES: usize = 16;

/// The line of the calling thread, below [`LINES`].
#[inline]
pub fn of_this_thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static MINE: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    MINE.with(|mine| {
        if mine.get() == usize::MAX {
            mine.set(NEXT.fetch_add(1, Ordering::Relaxed) % LINES);
        }
        mine.get()
    })
}

/// Something that requests of all threads keep while they run. Counted in itself, they would wait for each other's cache line
/// twice for each request.
pub struct Lent<T> {
    what: Arc<T>,
    keepers: [Arc<Keeper<T>>; LINES],
}

/// Has it as long as somebody has this; its count has a cache line of its own.
#[repr(align(128))]
struct Keeper<T>(#[expect(dead_code, reason = "held for its drop")] Arc<T>);

impl<T: Send + Sync + 'static> Lent<T> {
    /// To be lent.
    pub fn new(what: Arc<T>) -> Self {
        Self {
            keepers: std::array::from_fn(|_| Arc::new(Keeper(Arc::clone(&what)))),
            what,
        }
    }

    /// It.
    #[inline]
    pub fn get(&self) -> &Arc<T> {
        &self.what
    }

    /// Keeps it, whatever becomes of this.
    #[inline]
    pub fn keeper(&self) -> Arc<dyn Any + Send + Sync> {
        match self.keepers.get(of_this_thread()) {
            Some(keeper) => Arc::<Keeper<T>>::clone(keeper),
            None => Arc::<T>::clone(&self.what),
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for Lent<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.what.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lent_stays_as_long_as_somebody_keeps_it() {
        let what = Arc::new(7);
        let lent = Lent::new(Arc::clone(&what));
        let keepers = [lent.keeper(), lent.keeper()];
        assert_eq!(*lent.get().as_ref(), 7);
        drop(lent);
        let [first, last] = keepers;
        drop(first);
        assert_eq!(Arc::strong_count(&what), 2, "one keeper");
        drop(last);
        assert_eq!(Arc::strong_count(&what), 1);
    }

    #[test]
    fn a_thread_keeps_its_line_and_shares_it_with_few() {
        let threads: Vec<_> = (0..LINES)
            .map(|_| std::thread::spawn(|| [of_this_thread(), of_this_thread()]))
            .collect();
        let lines = threads
            .into_iter()
            .map(|thread| thread.join().expect("it ends"));
        let lines: Vec<_> = lines.collect();
        assert!(
            lines
                .iter()
                .all(|[first, second]| first == second && *first < LINES)
        );
        // Other tests take lines, too.
        let mut different: Vec<_> = lines.iter().map(|[line, _]| line).collect();
        different.sort_unstable();
        different.dedup();
        assert!(different.len() > LINES / 4, "{different:?}");
    }
}
