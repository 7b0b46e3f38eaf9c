//! Mailboxes under load, on real threads. `loom_mailbox.rs` checks the interleavings.
#![cfg(not(loom))]

mod common;

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    };

    use standfast_iothread::{
        Engine,
        mailbox::{self, Entry},
    };

    use crate::common::*;

    on_both_engines! {
        keeps_one_global_order,
        ends_after_the_last_value_of_the_last_sender,
    }

    /// Per producer, and across producers that order their posts by a lock, messages arrive in the
    /// order of the posts, none lost and none twice.
    fn keeps_one_global_order(engine: Engine) {
        const PRODUCERS: usize = 4;
        const POSTS: usize = 5000;
        let (sender, mut receiver) = mailbox::channel();
        let clock = Arc::new(Mutex::new(0usize));
        let threads: Vec<_> = (0..PRODUCERS)
            .map(|producer| {
                let (sender, clock) = (sender.clone(), clock.clone());
                std::thread::spawn(move || {
                    let entries: Vec<_> = (0..8).map(|_| Entry::new()).collect();
                    for post in 0..POSTS {
                        let entry = &entries[post % entries.len()];
                        let mut message = (producer, post, 0);
                        loop {
                            let mut clock = clock.lock().unwrap();
                            message.2 = *clock;
                            match sender.post(entry, message) {
                                Ok(()) => {
                                    *clock += 1;
                                    break;
                                }
                                // Still queued; it becomes free when the receiver is served.
                                Err(value) => assert_eq!(value, message),
                            }
                            drop(clock);
                            std::thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        drop(sender);
        let received = run(&default_iothread(engine), move || async move {
            let mut next_post = [0; PRODUCERS];
            let mut received = 0;
            while let Some((producer, post, tick)) = receiver.recv().await {
                assert_eq!(post, next_post[producer]);
                next_post[producer] += 1;
                assert_eq!(tick, received);
                received += 1;
            }
            received
        });
        assert_eq!(received, PRODUCERS * POSTS);
        for thread in threads {
            thread.join().unwrap();
        }
    }

    #[test]
    fn an_entry_carries_one_value_at_a_time() {
        let (sender, mut receiver) = mailbox::channel();
        let entry = Entry::new();
        assert!(!entry.is_queued());
        assert_eq!(sender.post(&entry, "first"), Ok(()));
        assert!(entry.is_queued());
        assert_eq!(sender.post(&entry, "second"), Err("second"));
        assert_eq!(receiver.try_recv(), Some("first"));
        assert!(!entry.is_queued());
        assert_eq!(sender.post(&entry, "third"), Ok(()));
        // The node outlives its entry.
        drop(entry);
        assert_eq!(receiver.try_recv(), Some("third"));
        assert_eq!(receiver.try_recv(), None);
    }

    #[test]
    fn an_entry_serves_several_mailboxes() {
        let (first, first_receiver) = mailbox::channel();
        let (second, mut second_receiver) = mailbox::channel();
        let entry = Entry::new();
        first.post(&entry, 1).unwrap();
        assert_eq!(second.post(&entry, 2), Err(2));
        drop(first_receiver);
        assert!(!entry.is_queued());
        assert!(first.is_closed());
        assert_eq!(first.post(&entry, 3), Err(3));
        assert!(!entry.is_queued());
        assert_eq!(first.send(4), Err(4));
        second.post(&entry, 5).unwrap();
        assert_eq!(second_receiver.try_recv(), Some(5));
    }

    #[test]
    fn drops_what_nobody_received() {
        struct Counted(Arc<AtomicUsize>);
        impl Drop for Counted {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let dropped = Arc::new(AtomicUsize::new(0));
        let (sender, mut receiver) = mailbox::channel();
        for _ in 0..5 {
            assert!(sender.send(Counted(dropped.clone())).is_ok());
        }
        // Some taken off the shared list, some still on it.
        drop(receiver.try_recv());
        for _ in 0..5 {
            assert!(sender.send(Counted(dropped.clone())).is_ok());
        }
        drop(receiver);
        assert_eq!(dropped.load(Ordering::Relaxed), 10);
    }

    fn ends_after_the_last_value_of_the_last_sender(engine: Engine) {
        let (sender, mut receiver) = mailbox::channel();
        let other = sender.clone();
        sender.send(1).unwrap();
        drop(sender);
        other.send(2).unwrap();
        let received = run(&default_iothread(engine), move || async move {
            let first = receiver.recv().await;
            drop(other);
            (first, receiver.recv().await, receiver.recv().await)
        });
        assert_eq!(received, (Some(1), Some(2), None));
    }
}
