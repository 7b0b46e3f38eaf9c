//! Work that may wait for the storage: on a thread of its own, so that whoever asked can wait as long as
//! he likes, or give up.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::thread;

use parking_lot::Mutex;

/// Threads that there may be at a time. They are as many as hang, of all storage together.
const THREADS_MAX: usize = 128;

static THREADS: AtomicUsize = AtomicUsize::new(0);

/// Runs `f` on a thread of its own. If this future is dropped, `f` runs to its end all the same, and what
/// it yields is dropped on a thread where nobody waits.
///
/// # Errors
/// If the system refuses a thread, too many hang already (EAGAIN), or `f` panics.
pub async fn beside<R: Send + 'static>(f: impl FnOnce() -> R + Send + 'static) -> io::Result<R> {
    let answer = Arc::new(Mutex::new(Answer::Awaited(None)));
    let teller = Teller(Arc::clone(&answer));
    spawn(move || teller.tell(f()))?;
    let asker = Asker(answer);
    poll_fn(|cx| asker.poll(cx)).await
}

/// Drops `last` where nobody waits: its drop may ask the storage, such as one that closes a file. If there
/// is no thread for it, one of those that hang does it when it goes on.
pub fn drop_beside(last: impl Send + 'static) {
    LEFT.lock().push(Box::new(last));
    // Refused: it stays there.
    let _ = spawn(|| {});
}

/// What is to be dropped by the next thread that has time.
static LEFT: Mutex<Vec<Box<dyn Send>>> = Mutex::new(Vec::new());

fn drop_left() {
    loop {
        // The newest first: what is older may hang again.
        let last = LEFT.lock().pop();
        if last.is_none() {
            return;
        }
    }
}

fn spawn(f: impl FnOnce() + Send + 'static) -> io::Result<()> {
    /// One of the threads, until it ends.
    struct Counted;

    impl Drop for Counted {
        fn drop(&mut self) {
            THREADS.fetch_sub(1, Ordering::Relaxed);
        }
    }

    let before = THREADS.fetch_add(1, Ordering::Relaxed);
    let counted = Counted;
    if before >= THREADS_MAX {
        tracing::error!("{THREADS_MAX} threads wait for storage that hangs: there are no more");
        return Err(io::Error::from_raw_os_error(libc::EAGAIN));
    }
    let thread = thread::Builder::new().name("block-beside".to_owned());
    let run = move || {
        let _counted = counted;
        f();
        drop_left();
    };
    thread.spawn(run).map(drop)
}

/// What goes from a thread to whoever waits for it.
enum Answer<R> {
    Awaited(Option<Waker>),
    Given(R),
    /// The thread has ended without, or the answer was taken.
    None,
    /// Nobody waits.
    Unwanted,
}

/// The thread's end.
struct Teller<R>(Arc<Mutex<Answer<R>>>);

impl<R> Teller<R> {
    fn tell(&self, given: R) {
        // What nobody wants is dropped here, with no lock held.
        drop(self.replace(Answer::Given(given)));
    }

    fn replace(&self, by: Answer<R>) -> Answer<R> {
        let mut answer = self.0.lock();
        let Answer::Awaited(waker) = &mut *answer else {
            return by;
        };
        let waker = waker.take();
        *answer = by;
        drop(answer);
        if let Some(waker) = waker {
            waker.wake();
        }
        Answer::None
    }
}

impl<R> Drop for Teller<R> {
    fn drop(&mut self) {
        self.replace(Answer::None);
    }
}

/// The end of whoever waits.
struct Asker<R: Send + 'static>(Arc<Mutex<Answer<R>>>);

impl<R: Send> Asker<R> {
    fn poll(&self, cx: &Context<'_>) -> Poll<io::Result<R>> {
        let mut answer = self.0.lock();
        if let Answer::Awaited(waker) = &mut *answer {
            *waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        match mem::replace(&mut *answer, Answer::None) {
            Answer::Given(given) => Poll::Ready(Ok(given)),
            _ => Poll::Ready(Err(io::Error::other(
                "a thread has ended without an answer",
            ))),
        }
    }
}

impl<R: Send> Drop for Asker<R> {
    fn drop(&mut self) {
        let late = mem::replace(&mut *self.0.lock(), Answer::Unwanted);
        if let Answer::Given(late) = late {
            drop_beside(late);
        }
    }
}

/// [`beside`], one at a time: storage that hangs takes one thread, however often it is asked.
#[derive(Debug, Default)]
pub struct OneBeside {
    queue: Arc<Queue>,
}

impl OneBeside {
    /// Runs `f` when all that came before has ended. If this future is dropped before that, `f` is not run
    /// at all; later it is as in [`beside`].
    ///
    /// # Errors
    /// As [`beside`].
    pub async fn run<R: Send + 'static>(
        &self,
        f: impl FnOnce() -> R + Send + 'static,
    ) -> io::Result<R> {
        let place = Queue::join(&self.queue);
        poll_fn(|cx| place.poll(cx)).await;
        let work = move || {
            // It goes when `f` has ended, by a panic too.
            let _place = place;
            f()
        };
        beside(work).await
    }
}

/// Who runs, and then those whose turn comes later.
#[derive(Debug, Default)]
struct Queue(Mutex<Places>);

#[derive(Debug, Default)]
struct Places {
    taken: VecDeque<(u64, Option<Waker>)>,
    next_id: u64,
}

impl Queue {
    fn join(queue: &Arc<Self>) -> Place {
        let mut places = queue.0.lock();
        let id = places.next_id;
        places.next_id += 1;
        places.taken.push_back((id, None));
        Place {
            queue: Arc::clone(queue),
            id,
        }
    }
}

/// A place in a queue, until it is dropped.
#[derive(Debug)]
struct Place {
    queue: Arc<Queue>,
    id: u64,
}

impl Place {
    /// Ready when it is the first one.
    fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        let mut places = self.queue.0.lock();
        for (at, (id, waker)) in places.taken.iter_mut().enumerate() {
            if *id != self.id {
                continue;
            }
            if at == 0 {
                return Poll::Ready(());
            }
            *waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = self.queue.0.lock();
        places.taken.retain(|(id, _)| *id != self.id);
        let next = places.taken.front_mut();
        let waker = next.and_then(|(_, waker)| waker.take());
        drop(places);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::Pin;
    use std::sync::atomic::AtomicBool;
    use std::sync::mpsc;

    fn is_pending<R>(future: Pin<&mut impl Future<Output = R>>) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        future.poll(&mut cx).is_pending()
    }

    #[test]
    fn one_hangs_and_no_other_takes_a_thread() {
        let one = OneBeside::default();
        let (go_on, hung) = mpsc::channel::<()>();
        let begun = Arc::new(AtomicUsize::new(0));
        let count = |begun: &Arc<AtomicUsize>| {
            let begun = Arc::clone(begun);
            move || begun.fetch_add(1, Ordering::SeqCst)
        };
        let first = count(&begun);
        let mut hanging = Box::pin(one.run(move || {
            let _ = hung.recv();
            first()
        }));
        assert!(is_pending(hanging.as_mut()));
        // Given up, and it hangs on.
        drop(hanging);
        for _ in 0..100 {
            let mut given_up = Box::pin(one.run(count(&begun)));
            assert!(is_pending(given_up.as_mut()));
        }
        let mut last = Box::pin(one.run(count(&begun)));
        assert!(is_pending(last.as_mut()));
        assert_eq!(begun.load(Ordering::SeqCst), 0);
        go_on.send(()).expect("it hangs");
        // Of those that were given up nothing has been run.
        assert_eq!(pollster::block_on(last).expect("runs"), 1);
        assert_eq!(begun.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn whoever_panics_lets_the_next_one_go_on() {
        let one = OneBeside::default();
        let panics = || -> u8 { panic!("on purpose") };
        pollster::block_on(one.run(panics)).expect_err("it has no answer");
        assert_eq!(pollster::block_on(one.run(|| 7)).expect("runs"), 7);
    }

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    #[test]
    fn what_nobody_waits_for_is_dropped_where_it_was_made() {
        struct Late(mpsc::Sender<thread::ThreadId>);
        impl Drop for Late {
            fn drop(&mut self) {
                let _ = self.0.send(thread::current().id());
            }
        }
        for arrived in [false, true] {
            let (dropped, heard) = mpsc::channel();
            let (go_on, hung) = mpsc::channel::<()>();
            let woken = Arc::new(Woken::default());
            let mut given_up = Box::pin(beside(move || {
                let _ = hung.recv();
                Late(dropped)
            }));
            let waker = Waker::from(Arc::clone(&woken));
            let mut cx = Context::from_waker(&waker);
            assert!(given_up.as_mut().poll(&mut cx).is_pending());
            if arrived {
                go_on.send(()).expect("it hangs");
                while !woken.0.load(Ordering::SeqCst) {
                    thread::yield_now();
                }
                drop(given_up);
            } else {
                drop(given_up);
                go_on.send(()).expect("it hangs");
            }
            assert_ne!(heard.recv().expect("dropped"), thread::current().id());
        }
    }
}
