//! An intrusive multi-producer list: producers push one node, the one consumer takes everything.
//!
//! No node is ever popped singly, so there is no ABA problem. The order of the pushes is the order
//! of the compare-and-swaps on `head`; [`reverse`] restores it after a take.

use std::ptr::{self, NonNull};

use crate::sync::{AtomicPtr, Ordering};

/// What a push found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Push {
    /// The list was empty: the consumer may have to be woken. Whoever pushes onto a non-empty list
    /// need not wake, because the one who made it non-empty does.
    First,
    /// The list was not empty.
    More,
    /// The list is closed; the node was not taken.
    Closed,
}

pub(crate) struct Stack<N> {
    head: AtomicPtr<N>,
}

impl<N> Stack<N> {
    pub(crate) fn new() -> Stack<N> {
        Stack {
            head: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Marks a closed list; never dereferenced.
    fn closed() -> *mut N {
        ptr::without_provenance_mut(usize::MAX)
    }

    /// Hands `node` to the consumer.
    ///
    /// # Safety
    ///
    /// `link` belongs to `node`, which is in no list, and until the consumer has taken it `node`
    /// stays valid and its link is left alone (neither holds if the result is `Closed`).
    pub(crate) unsafe fn push(&self, node: NonNull<N>, link: &AtomicPtr<N>) -> Push {
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            if head == Self::closed() {
                return Push::Closed;
            }
            link.store(head, Ordering::Relaxed);
            // Release: the consumer that takes the list sees the node's contents.
            match self.head.compare_exchange_weak(
                head,
                node.as_ptr(),
                Ordering::Release,
                Ordering::Relaxed,
            ) {
                Ok(_) if head.is_null() => return Push::First,
                Ok(_) => return Push::More,
                Err(now) => head = now,
            }
        }
    }

    /// Takes everything, newest first; null if there is nothing. Only the consumer calls this, and
    /// not after [`Stack::close`].
    pub(crate) fn take(&self) -> *mut N {
        if self.is_empty() {
            return ptr::null_mut();
        }
        self.head.swap(ptr::null_mut(), Ordering::Acquire)
    }

    /// Takes everything, newest first, and refuses every later push. Only the consumer calls this.
    pub(crate) fn close(&self) -> *mut N {
        let head = self.head.swap(Self::closed(), Ordering::AcqRel);
        if head == Self::closed() {
            ptr::null_mut()
        } else {
            head
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.head.load(Ordering::Relaxed) == Self::closed()
    }

    /// Relaxed: whoever needs more than a hint orders this load itself.
    pub(crate) fn is_empty(&self) -> bool {
        self.head.load(Ordering::Relaxed).is_null()
    }
}

/// Turns a taken list (newest first) round.
///
/// # Safety
///
/// `list` was taken from a [`Stack`] by the caller, and `link` yields the link its nodes were
/// pushed with.
pub(crate) unsafe fn reverse<'a, N: 'a>(
    mut list: *mut N,
    link: impl Fn(NonNull<N>) -> &'a AtomicPtr<N>,
) -> *mut N {
    let mut reversed = ptr::null_mut();
    while let Some(node) = NonNull::new(list) {
        let next = link(node);
        list = next.load(Ordering::Relaxed);
        next.store(reversed, Ordering::Relaxed);
        reversed = node.as_ptr();
    }
    reversed
}
