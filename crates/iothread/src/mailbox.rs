//! Mailboxes: lock-free, many producers, one consumer, in one global order of posts.
//!
//! A message travels in a node. [`Sender::send`] allocates one, which suits the control path. A
//! request that must be able to report its failure at any time owns an [`Entry`] instead: posting
//! it cannot fail for want of memory, because the node is already there.
//!
//! Both ends work on any thread and any executor: an iothread's, tokio's, a plain thread's.
//!
//! ```
//! let (sender, mut receiver) = standfast_iothread::mailbox::channel();
//! let entry = standfast_iothread::mailbox::Entry::new();
//! assert_eq!(sender.post(&entry, 1), Ok(()));
//! // Still queued: the value comes back.
//! assert_eq!(sender.post(&entry, 2), Err(2));
//! assert_eq!(sender.send(3), Ok(()));
//! assert_eq!(receiver.try_recv(), Some(1));
//! assert_eq!(receiver.try_recv(), Some(3));
//! // Received, so the entry is free again.
//! assert_eq!(sender.post(&entry, 2), Ok(()));
//! ```

use std::{
    fmt,
    future::poll_fn,
    ptr::{self, NonNull},
    task::{Context, Poll, ready},
};

use crate::{
    stack::{Push, Stack, reverse},
    sync::{self, Arc, AtomicBool, AtomicPtr, AtomicUsize, AtomicWaker, Ordering, UnsafeCell},
};

/// Makes a mailbox.
pub fn channel<T: Send>() -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Shared {
        stack: Stack::new(),
        waker: AtomicWaker::new(),
        senders: AtomicUsize::new(1),
    });
    let sender = Sender {
        shared: shared.clone(),
    };
    let receiver = Receiver {
        shared,
        taken: ptr::null_mut(),
    };
    (sender, receiver)
}

struct Shared<T> {
    stack: Stack<Node<T>>,
    waker: AtomicWaker,
    senders: AtomicUsize,
}

struct Node<T> {
    next: AtomicPtr<Node<T>>,
    /// Set by the poster that wins the node, cleared by the receiver after it took the value.
    queued: AtomicBool,
    value: UnsafeCell<Option<T>>,
}

// SAFETY: `value` is accessed only by the poster between winning `queued` and pushing the node, and
// by the receiver between taking the node and clearing `queued`; values move between threads, so
// `T: Send` is what it takes.
unsafe impl<T: Send> Send for Node<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Node<T> {}

impl<T> Node<T> {
    fn new(queued: bool, value: Option<T>) -> Arc<Node<T>> {
        Arc::new(Node {
            next: AtomicPtr::new(ptr::null_mut()),
            queued: AtomicBool::new(queued),
            value: UnsafeCell::new(value),
        })
    }

    /// Swaps the value for `value`. The caller has the node to itself.
    fn replace(&self, value: Option<T>) -> Option<T> {
        self.value.with_mut(|cell| {
            // SAFETY: the caller won `queued` or took the node from the list.
            std::mem::replace(unsafe { &mut *cell }, value)
        })
    }
}

/// A preallocated node that belongs to, say, a request slot.
///
/// It carries one value at a time and is free again once the value was received. It may be posted
/// to any mailbox of its type. Dropping it while it is queued is harmless: the value still arrives.
pub struct Entry<T> {
    node: Arc<Node<T>>,
}

impl<T: Send> Entry<T> {
    /// Allocates the node.
    #[must_use]
    pub fn new() -> Entry<T> {
        Entry {
            node: Node::new(false, None),
        }
    }

    /// Whether a posted value has not been received yet.
    #[must_use]
    pub fn is_queued(&self) -> bool {
        self.node.queued.load(Ordering::Acquire)
    }
}

impl<T: Send> Default for Entry<T> {
    fn default() -> Entry<T> {
        Entry::new()
    }
}

impl<T> fmt::Debug for Entry<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("queued", &self.node.queued.load(Ordering::Relaxed))
            .finish()
    }
}

/// The posting end; clone it for every producer.
pub struct Sender<T> {
    shared: Arc<Shared<T>>,
}

impl<T: Send> Sender<T> {
    /// Posts `value` in `entry`; neither allocates nor waits.
    ///
    /// # Errors
    ///
    /// Gives `value` back if `entry` is still queued ([`Entry::is_queued`]) or the receiver is gone
    /// ([`Sender::is_closed`]).
    pub fn post(&self, entry: &Entry<T>, value: T) -> Result<(), T> {
        // Acquire: see the receiver's accesses to the node, which came before it cleared the flag.
        if entry
            .node
            .queued
            .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed)
            .is_err()
        {
            return Err(value);
        }
        let old = entry.node.replace(Some(value));
        debug_assert!(old.is_none());
        self.push(entry.node.clone())
    }

    /// Posts `value` in a newly allocated node: for the control path.
    ///
    /// # Errors
    ///
    /// Gives `value` back if the receiver is gone.
    pub fn send(&self, value: T) -> Result<(), T> {
        self.push(Node::new(true, Some(value)))
    }

    /// Whether the receiver is gone.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.stack.is_closed()
    }

    /// Queues a node that has its value and its `queued` flag set.
    fn push(&self, node: Arc<Node<T>>) -> Result<(), T> {
        let raw = Arc::into_raw(node).cast_mut();
        // SAFETY: `into_raw` is never null and keeps the node alive; winning `queued` made it ours.
        let push = unsafe {
            let node = NonNull::new_unchecked(raw);
            self.shared.stack.push(node, &(*raw).next)
        };
        match push {
            Push::First => self.shared.waker.wake(),
            Push::More => {}
            Push::Closed => {
                // SAFETY: the list did not take the reference made by `into_raw`.
                let node = unsafe { Arc::from_raw(raw) };
                let value = node.replace(None);
                node.queued.store(false, Ordering::Release);
                return match value {
                    Some(value) => Err(value),
                    None => Ok(()),
                };
            }
        }
        Ok(())
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Sender<T> {
        self.shared.senders.fetch_add(1, Ordering::Relaxed);
        Sender {
            shared: self.shared.clone(),
        }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        // Release: a receiver that sees zero also sees everything that was posted.
        if self.shared.senders.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.waker.wake();
        }
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender")
            .field("closed", &self.shared.stack.is_closed())
            .finish()
    }
}

/// The receiving end. Dropping it drops what is queued and closes the mailbox.
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
    /// Taken from the shared list and put in order, not yet received.
    taken: *mut Node<T>,
}

// SAFETY: the nodes in `taken` belong to the receiver; they and the values move with it.
unsafe impl<T: Send> Send for Receiver<T> {}
// SAFETY: a shared reference gives no access to the nodes.
unsafe impl<T: Send> Sync for Receiver<T> {}

impl<T> Receiver<T> {
    /// Receives the oldest value, if there is one.
    pub fn try_recv(&mut self) -> Option<T> {
        if self.taken.is_null() {
            self.taken = in_order(self.shared.stack.take());
        }
        pop(&mut self.taken)
    }

    /// Receives the oldest value; `None` once all senders are gone and nothing is left.
    ///
    /// Dropping the future loses nothing.
    pub async fn recv(&mut self) -> Option<T> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// [`Receiver::recv`] for hand-written futures; keeps the waker of the latest call only.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<T>> {
        if let Some(value) = self.try_recv() {
            return Poll::Ready(Some(value));
        }
        sync::register(&self.shared.waker, cx.waker());
        // Again: a post that came before the waker was stored woke nobody.
        if let Some(value) = self.try_recv() {
            return Poll::Ready(Some(value));
        }
        ready!(self.poll_senders_gone());
        // The last sender may have posted between the look above and its end.
        Poll::Ready(self.try_recv())
    }

    fn poll_senders_gone(&self) -> Poll<()> {
        if self.shared.senders.load(Ordering::Acquire) == 0 {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        while pop(&mut self.taken).is_some() {}
        let mut rest = in_order(self.shared.stack.close());
        while pop(&mut rest).is_some() {}
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").finish_non_exhaustive()
    }
}

/// Puts a list that the caller has just taken into the order of the posts.
fn in_order<T>(list: *mut Node<T>) -> *mut Node<T> {
    // SAFETY: the list was taken, so its nodes are alive and the receiver's; `next` is the link
    // they were pushed with.
    unsafe { reverse(list, |node| &node.as_ref().next) }
}

/// Receives the first value of a list that belongs to the receiver.
fn pop<T>(list: &mut *mut Node<T>) -> Option<T> {
    let raw = NonNull::new(*list)?;
    // SAFETY: the list holds the reference made by `into_raw` in `Sender::push`.
    let node = unsafe { Arc::from_raw(raw.as_ptr().cast_const()) };
    *list = node.next.load(Ordering::Relaxed);
    let value = node.replace(None);
    // Release: from here on the poster may use the node again.
    node.queued.store(false, Ordering::Release);
    value
}
