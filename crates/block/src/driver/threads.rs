//! What a driver has on each iothread: when it begins and ends there, and where it is kept.

use std::any::Any;
use std::cell::RefCell;
use std::fmt;
use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::driver::node::Node;

thread_local! {
    /// The nodes that this thread uses, and how many times.
    static USED: RefCell<Vec<(Arc<Node>, usize)>> = const { RefCell::new(Vec::new()) };
    /// What drivers keep here, by the place of the [`ThreadState`] that keeps it.
    static KEPT: RefCell<Vec<Option<Kept>>> = const { RefCell::new(Vec::new()) };
}

/// This thread uses a node and all below it: as long as one such thing exists here, their drivers are
/// attached ([`crate::driver::capabilities::PerThread`]), from the bottom up. They are detached from the
/// top down.
#[derive(Debug)]
pub struct Attachment {
    /// Every node after those below it.
    nodes: Vec<Arc<Node>>,
    /// It stays on its thread.
    _local: PhantomData<*const ()>,
}

impl Attachment {
    /// From now on this thread may send requests to `root`.
    pub fn new(root: &Arc<Node>) -> Self {
        let mut this = Self {
            nodes: Vec::new(),
            _local: PhantomData,
        };
        this.update(root);
        this
    }

    /// Other nodes may be below `root` now. What is there no more has nothing in flight from here: whoever
    /// has changed it has drained this thread.
    pub fn update(&mut self, root: &Arc<Node>) {
        let before = std::mem::replace(&mut self.nodes, root.bottom_up());
        let is_in = |all: &[Arc<Node>], node: &Arc<Node>| all.iter().any(|n| Arc::ptr_eq(n, node));
        for node in self.nodes.iter().filter(|node| !is_in(&before, node)) {
            enter(node);
        }
        for node in before.iter().rev().filter(|node| !is_in(&self.nodes, node)) {
            leave(node);
        }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        for node in self.nodes.iter().rev() {
            leave(node);
        }
    }
}

fn enter(node: &Arc<Node>) {
    let first = USED.with_borrow_mut(|used| {
        if let Some((_, times)) = used.iter_mut().find(|(known, _)| Arc::ptr_eq(known, node)) {
            *times += 1;
            return false;
        }
        used.push((Arc::clone(node), 1));
        true
    });
    // Nothing is borrowed while a driver is called.
    if first && let Some(driver) = node.driver().capabilities().per_thread {
        driver.attach();
    }
}

fn leave(node: &Arc<Node>) {
    // A thread that ends has dropped its tasks, and what they had, before.
    let last = USED.try_with(|used| {
        let mut used = used.borrow_mut();
        let at = used
            .iter()
            .position(|(known, _)| Arc::ptr_eq(known, node))?;
        used[at].1 -= 1;
        (used[at].1 == 0).then(|| used.swap_remove(at))
    });
    if let Ok(Some((node, _))) = last
        && let Some(driver) = node.driver().capabilities().per_thread
    {
        driver.detach();
    }
}

/// What one driver keeps on one thread.
struct Kept {
    /// Whose: places are used again.
    owner: u64,
    value: Rc<dyn Any>,
}

/// Places that are free, and how many there are.
static PLACES: Mutex<(Vec<usize>, usize)> = Mutex::new((Vec::new(), 0));
static OWNERS: AtomicU64 = AtomicU64::new(1);

/// A value of `T` on each iothread that a driver is attached on, found without a lock or an atomic. The
/// driver has one of these for each kind of value, puts it in when it is attached and takes it out when it
/// is detached.
pub struct ThreadState<T> {
    owner: u64,
    place: usize,
    /// Values stay on their threads: whoever has this has none of them.
    _value: PhantomData<fn() -> T>,
}

impl<T: 'static> ThreadState<T> {
    /// Without a value on any thread. Allocates; for control threads.
    pub fn new() -> Self {
        let mut places = PLACES.lock();
        let place = places.0.pop().unwrap_or_else(|| {
            places.1 += 1;
            places.1 - 1
        });
        Self {
            owner: OWNERS.fetch_add(1, Ordering::Relaxed),
            place,
            _value: PhantomData,
        }
    }

    /// `value` is the one of the calling thread from now on. Returns the one before.
    pub fn put(&self, value: T) -> Option<Rc<T>> {
        let kept = Kept {
            owner: self.owner,
            value: Rc::new(value),
        };
        let before = KEPT.with_borrow_mut(|all| {
            if all.len() <= self.place {
                all.resize_with(self.place + 1, || None);
            }
            all[self.place].replace(kept)
        });
        // Dropped out here: it may use others.
        self.own(before)
    }

    /// The one of the calling thread.
    #[inline]
    pub fn get(&self) -> Option<Rc<T>> {
        let value = KEPT.with_borrow(|all| {
            let kept = all.get(self.place)?.as_ref()?;
            (kept.owner == self.owner).then(|| Rc::clone(&kept.value))
        });
        value?.downcast().ok()
    }

    /// The calling thread has none any more. Who still has it keeps it.
    pub fn take(&self) -> Option<Rc<T>> {
        let before = KEPT.with_borrow_mut(|all| {
            let kept = all.get_mut(self.place)?;
            kept.take_if(|kept| kept.owner == self.owner)
        });
        self.own(before)
    }

    fn own(&self, kept: Option<Kept>) -> Option<Rc<T>> {
        let kept = kept.filter(|kept| kept.owner == self.owner)?;
        kept.value.downcast().ok()
    }
}

impl<T: 'static> Default for ThreadState<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Drop for ThreadState<T> {
    fn drop(&mut self) {
        // A value that was left on a thread is dropped there, by whoever has the place next.
        PLACES.lock().0.push(self.place);
    }
}

impl<T> fmt::Debug for ThreadState<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThreadState").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::cell::Cell;

    #[test]
    fn each_thread_has_its_own() {
        let state = Arc::new(ThreadState::new());
        assert_eq!(state.get(), None);
        assert_eq!(state.put(Cell::new(1)), None);
        let there = Arc::clone(&state);
        let other = std::thread::spawn(move || {
            assert_eq!(there.get(), None);
            there.put(Cell::new(7));
            there.get().unwrap().set(8);
            there.take().unwrap().get()
        });
        assert_eq!(other.join().unwrap(), 8);
        assert_eq!(state.get().unwrap().get(), 1);
        let kept = state.get().unwrap();
        assert_eq!(state.take(), Some(Rc::clone(&kept)));
        assert!(state.take().is_none() && state.get().is_none() && kept.get() == 1);
    }

    /// A driver that has ended without being detached, and one that has its place after it.
    #[test]
    fn a_place_that_is_used_again_is_empty() {
        let states: Vec<_> = (0..64).map(|_| ThreadState::new()).collect();
        for (number, state) in states.iter().enumerate() {
            state.put(number);
        }
        drop(states);
        let states: Vec<_> = (0..64).map(|_| ThreadState::<String>::new()).collect();
        for state in &states {
            assert!(state.get().is_none() && state.take().is_none());
            assert_eq!(state.put("new".to_owned()), None);
            assert_eq!(**state.get().unwrap(), *"new");
        }
        states.iter().for_each(|state| drop(state.take()));
    }

    #[test]
    fn a_value_may_use_another_when_it_is_dropped() {
        struct Last(Rc<Cell<bool>>, Arc<ThreadState<u8>>);
        impl Drop for Last {
            fn drop(&mut self) {
                self.0.set(self.1.get().is_some());
            }
        }
        let (seen, other) = (Rc::new(Cell::new(false)), Arc::new(ThreadState::new()));
        other.put(1);
        let state = ThreadState::new();
        state.put(Last(Rc::clone(&seen), Arc::clone(&other)));
        drop(state.put(Last(Rc::clone(&seen), Arc::clone(&other))));
        assert!(seen.replace(false));
        drop(state.take());
        assert!(seen.get());
        other.take();
    }
}
