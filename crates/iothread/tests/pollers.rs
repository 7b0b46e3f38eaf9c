//! Pollers: what is asked before the thread blocks.
#![cfg(not(loom))]

mod common;

#[cfg(test)]
mod tests {
    use std::{
        cell::{Cell, RefCell},
        rc::Rc,
        sync::{
            Arc,
            atomic::{AtomicBool, AtomicU64, Ordering, fence},
            mpsc,
        },
        task::Waker,
        time::{Duration, Instant},
    };

    use standfast_iothread::{Engine, PollParams, Poller, add_poller, ops, spawn_local, time};

    use crate::common::*;

    on_both_engines! {
        no_kick_is_lost,
        work_found_while_enabling_notifications_is_done,
        pollers_come_and_go,
        polling_can_be_changed_while_running,
    }

    /// What a virtqueue is to the iothread: an index that another thread moves, and a notification
    /// that it sends only when asked to.
    struct Queue {
        avail: AtomicU64,
        notify: AtomicBool,
        kick: std::os::fd::OwnedFd,
    }

    impl Queue {
        /// The driver's side.
        fn add(&self, kicks: &AtomicU64) {
            self.avail.fetch_add(1, Ordering::Release);
            fence(Ordering::SeqCst);
            if self.notify.load(Ordering::Relaxed) {
                kicks.fetch_add(1, Ordering::Relaxed);
                signal(&self.kick);
            }
        }
    }

    struct QueuePoller {
        queue: Arc<Queue>,
        used: Cell<u64>,
        task: RefCell<Option<Waker>>,
    }

    impl QueuePoller {
        fn has_work(&self) -> bool {
            self.queue.avail.load(Ordering::Acquire) != self.used.get()
        }
    }

    impl Poller for QueuePoller {
        fn poll(&self) -> bool {
            let found = self.has_work();
            if found && let Some(task) = self.task.take() {
                task.wake();
            }
            found
        }

        fn disable_notify(&self) {
            self.queue.notify.store(false, Ordering::Relaxed);
        }

        fn enable_notify(&self) -> bool {
            self.queue.notify.store(true, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            self.has_work()
        }
    }

    /// Kicks are suppressed and asked for again at every wait; a single one lost hangs the queue.
    /// With and without polling, and with pauses of all lengths around the polling window.
    fn no_kick_is_lost(engine: Engine) {
        for poll_max_ns in [0, 32_768, 2_000_000] {
            let iothread = start(engine, poll_max_ns, 64);
            let queue = Arc::new(Queue {
                avail: AtomicU64::new(0),
                notify: AtomicBool::new(true),
                kick: eventfd(true),
            });
            let (reply, replies) = mpsc::channel();
            let for_thread = queue.clone();
            iothread
                .handle()
                .spawn(move || async move {
                    let kick = for_thread.kick.try_clone().unwrap();
                    let poller = Rc::new(QueuePoller {
                        queue: for_thread,
                        used: Cell::new(0),
                        task: RefCell::new(None),
                    });
                    let _guard = add_poller(poller.clone());
                    let for_kicks = poller.clone();
                    spawn_local(async move {
                        let mut kick = ops::EventFd::new(kick);
                        loop {
                            kick.wait().await.unwrap();
                            for_kicks.poll();
                        }
                    })
                    .detach();
                    loop {
                        std::future::poll_fn(|cx| {
                            if poller.has_work() {
                                return std::task::Poll::Ready(());
                            }
                            poller.task.replace(Some(cx.waker().clone()));
                            std::task::Poll::Pending
                        })
                        .await;
                        while poller.has_work() {
                            poller.used.set(poller.used.get() + 1);
                            if reply.send(poller.used.get()).is_err() {
                                return;
                            }
                        }
                    }
                })
                .unwrap();
            let kicks = AtomicU64::new(0);
            for round in 1..=3000u64 {
                queue.add(&kicks);
                assert_eq!(replies.recv_timeout(HANG), Ok(round), "poll {poll_max_ns}");
                let pause = Instant::now() + Duration::from_micros(round % 60);
                while Instant::now() < pause {
                    std::hint::spin_loop();
                }
            }
            let stats = iothread.handle().stats();
            if poll_max_ns == 0 {
                assert_eq!((stats.poll_window_ns, stats.polls_successful), (0, 0));
                assert!(stats.blocks > 0);
            } else if poll_max_ns == 2_000_000 {
                assert!(stats.polls_successful > 0, "{stats:?}");
                assert!(kicks.into_inner() < 3000, "polling saves kicks");
            }
        }
    }

    /// Work that arrives while notifications are being enabled, which nobody notifies about.
    struct LateWork {
        work: Cell<bool>,
        task: RefCell<Option<Waker>>,
    }

    impl Poller for LateWork {
        fn poll(&self) -> bool {
            let found = self.work.take();
            if found && let Some(task) = self.task.take() {
                task.wake();
            }
            found
        }

        fn disable_notify(&self) {}

        fn enable_notify(&self) -> bool {
            self.work.set(self.task.borrow().is_some());
            self.work.get()
        }
    }

    fn work_found_while_enabling_notifications_is_done(engine: Engine) {
        for poll_max_ns in [0, 32_768] {
            run(&start(engine, poll_max_ns, 8), || async {
                let late = Rc::new(LateWork {
                    work: Cell::new(false),
                    task: RefCell::new(None),
                });
                let _guard = add_poller(late.clone());
                for _ in 0..10 {
                    let mut waiting = false;
                    std::future::poll_fn(|cx| {
                        if std::mem::replace(&mut waiting, true) && late.task.borrow().is_none() {
                            return std::task::Poll::Ready(());
                        }
                        late.task.replace(Some(cx.waker().clone()));
                        std::task::Poll::Pending
                    })
                    .await;
                }
            });
        }
    }

    /// A poller is asked as long as its guard lives, also if guards come and go meanwhile.
    fn pollers_come_and_go(engine: Engine) {
        struct Count(Cell<u32>);
        impl Poller for Count {
            fn poll(&self) -> bool {
                false
            }
            fn disable_notify(&self) {}
            fn enable_notify(&self) -> bool {
                self.0.set(self.0.get() + 1);
                false
            }
        }
        run(&start(engine, 0, 8), || async {
            let pollers: Vec<_> = (0..3).map(|_| Rc::new(Count(Cell::new(0)))).collect();
            let mut guards: Vec<_> = pollers.iter().map(|p| add_poller(p.clone())).collect();
            // A thread that was not run for so long does not block for the rest of it.
            while pollers.iter().any(|poller| poller.0.get() == 0) {
                time::sleep(Duration::from_millis(1)).await;
            }
            drop(guards.remove(0));
            let before: Vec<_> = pollers.iter().map(|poller| poller.0.get()).collect();
            while (1..3).any(|index| pollers[index].0.get() == before[index]) {
                time::sleep(Duration::from_millis(1)).await;
            }
            assert_eq!(pollers[0].0.get(), before[0]);
            assert_eq!(Rc::strong_count(&pollers[0]), 1);
        });
    }

    fn polling_can_be_changed_while_running(engine: Engine) {
        let iothread = start(engine, 0, 64);
        let handle = iothread.handle();
        handle.set_poll_max_ns(50_000_000);
        handle.set_poll_params(PollParams {
            grow: 3,
            ..handle.poll_params()
        });
        let expected = PollParams {
            max_ns: 50_000_000,
            grow: 3,
            shrink: 0,
        };
        assert_eq!(handle.poll_params(), expected);
        within_time({
            let handle = handle.clone();
            move || {
                while handle.stats().polls_successful == 0 {
                    handle.run_blocking(|| async {}).unwrap();
                }
            }
        });
        handle.set_poll_max_ns(0);
        within_time(move || {
            while handle.stats().poll_window_ns != 0 {
                handle.run_blocking(|| async {}).unwrap();
            }
        });
    }
}
