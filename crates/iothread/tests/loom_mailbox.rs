//! Every interleaving of small mailbox scenarios, by the model checker loom. Run it with
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test -p standfast-iothread --release --test loom_mailbox
//! ```
//!
//! (with a target directory of its own, because the flag rebuilds everything). Without that flag
//! this file is empty.
//!
//! Bugs planted in the mailbox that these tests were seen to find: no second look at the list after
//! registering the waker (deadlock), the push or the clearing of `queued` with `Relaxed` ordering
//! (data races), no last look after the senders are gone (a value lost).
#![cfg(loom)]

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        sync::Arc,
        task::{Context, Poll, Wake, Waker},
    };

    use loom::{sync::Notify, thread};
    use standfast_iothread::mailbox::{self, Entry};

    struct Unpark(Notify);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.notify();
        }
    }

    /// An executor that loom sees through: a lost wake is a deadlock, which it reports.
    fn block_on<F: Future>(future: F) -> F::Output {
        let mut future = pin!(future);
        let unpark = Arc::new(Unpark(Notify::new()));
        let waker = Waker::from(unpark.clone());
        loop {
            match future.as_mut().poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(result) => return result,
                Poll::Pending => unpark.0.wait(),
            }
        }
    }

    /// Explores all interleavings with at most so many preemptions, which keeps it to seconds.
    fn check(preemptions: usize, scenario: impl Fn() + Send + Sync + 'static) {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(preemptions);
        model.check(scenario);
    }

    /// The consumer falls asleep while the producer posts: no wake is lost.
    #[test]
    fn a_post_wakes_the_receiver() {
        check(3, || {
            let (sender, mut receiver) = mailbox::channel();
            let producer = thread::spawn(move || {
                let entry = Entry::new();
                sender.post(&entry, 1).unwrap();
                // Dropped while it may be queued.
                drop(entry);
                sender
            });
            assert_eq!(block_on(receiver.recv()), Some(1));
            drop(producer.join().unwrap());
            assert_eq!(receiver.try_recv(), None);
        });
    }

    /// Two producers: everything arrives, in the order of each, and then the end.
    #[test]
    fn two_producers_keep_their_order() {
        check(2, || {
            let (sender, mut receiver) = mailbox::channel();
            let other = sender.clone();
            let first = thread::spawn(move || {
                sender.send(10).unwrap();
                sender.send(11).unwrap();
            });
            let second = thread::spawn(move || {
                let entry = Entry::new();
                other.post(&entry, 20).unwrap();
            });
            let mut received = Vec::new();
            while let Some(value) = block_on(receiver.recv()) {
                received.push(value);
            }
            first.join().unwrap();
            second.join().unwrap();
            let position = |value| received.iter().position(|&other| other == value).unwrap();
            assert!(position(10) < position(11));
            assert_eq!(received.len(), 3);
            assert!(received.contains(&20));
        });
    }

    /// An entry is posted again as soon as it is free: the node changes hands without a race.
    #[test]
    fn an_entry_is_reused() {
        check(3, || {
            let (sender, mut receiver) = mailbox::channel();
            let producer = thread::spawn(move || {
                let entry = Entry::new();
                sender.post(&entry, 1).unwrap();
                // Refused or posted, depending on the receiver.
                sender.post(&entry, 2).is_ok()
            });
            assert_eq!(block_on(receiver.recv()), Some(1));
            let second = block_on(receiver.recv());
            let posted = producer.join().unwrap();
            assert_eq!(second, posted.then_some(2));
        });
    }

    /// The receiver goes away while a producer posts: the value is dropped or comes back, once.
    #[test]
    fn closing_loses_no_value() {
        check(3, || {
            let value = loom::sync::Arc::new(());
            let (sender, mut receiver) = mailbox::channel();
            let posted = value.clone();
            let producer = thread::spawn(move || {
                let entry = Entry::new();
                if sender.post(&entry, posted).is_err() {
                    assert!(sender.is_closed());
                    assert!(!entry.is_queued());
                }
            });
            drop(receiver.try_recv());
            drop(receiver);
            producer.join().unwrap();
            assert_eq!(loom::sync::Arc::strong_count(&value), 1);
        });
    }
}
