//! Tasks, timers, hooks, wakes across threads, and the end of a thread.
#![cfg(not(loom))]

mod common;

#[cfg(test)]
mod tests {
    use std::{
        cell::{Cell, RefCell},
        os::fd::AsFd,
        rc::Rc,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
            mpsc,
        },
        task::Waker,
        time::{Duration, Instant},
    };

    use standfast_iothread::{
        Closed, Config, Deferred, Engine, IoThread, StartError, defer, mailbox, ops, spawn_local,
        time, yield_now,
    };

    use crate::common::*;

    on_both_engines! {
        runs_on_a_thread_of_its_own_with_its_name,
        tasks_take_turns_and_give_results,
        dropping_the_handle_cancels_and_detaching_does_not,
        timers_fire_in_order_and_never_early,
        short_sleeps_are_short,
        the_round_has_one_time,
        busy_tasks_starve_nothing,
        hooks_run_once_per_batch,
        hooks_may_queue_hooks,
        no_wake_from_another_thread_is_lost,
        a_storm_of_wakes,
        shutdown_ends_what_is_pending,
        shutdown_races_with_callers,
        shutdown_ends_operations_outside_of_tasks,
        a_task_may_shut_its_own_thread_down,
        an_idle_thread_sleeps,
    }

    fn runs_on_a_thread_of_its_own_with_its_name(engine: Engine) {
        let iothread = IoThread::spawn(Config {
            name: "iothread-7".to_owned(),
            engine: Some(engine),
            ..Config::default()
        })
        .unwrap();
        let handle = iothread.handle();
        assert_eq!(handle.name(), "iothread-7");
        assert_eq!((handle.engine(), handle.fallback()), (engine, None));
        assert_ne!(handle.id(), default_iothread(engine).handle().id());
        assert!(!handle.is_current());
        let inside = handle.clone();
        let (name, current, tid) = run(&iothread, move || async move {
            let name = std::thread::current().name().map(str::to_owned);
            (
                name,
                inside.is_current(),
                rustix::thread::gettid().as_raw_nonzero().get(),
            )
        });
        assert_eq!(name.as_deref(), Some("iothread-7"));
        assert!(current);
        assert_eq!(handle.stats().thread_id, tid);
    }

    #[test]
    fn a_name_with_nul_is_refused() {
        let error = IoThread::spawn(Config {
            name: "a\0b".to_owned(),
            ..Config::default()
        })
        .unwrap_err();
        assert!(matches!(error, StartError::Name(_)), "{error}");
    }

    fn tasks_take_turns_and_give_results(engine: Engine) {
        let log = run(&default_iothread(engine), || async {
            let log = Rc::new(RefCell::new(Vec::new()));
            let tasks: Vec<_> = (0..3)
                .map(|task| {
                    let log = log.clone();
                    spawn_local(async move {
                        for step in 0..2 {
                            log.borrow_mut().push((step, task));
                            yield_now().await;
                        }
                        task * 10
                    })
                })
                .collect();
            for (index, task) in tasks.into_iter().enumerate() {
                assert_eq!(task.await, index * 10);
            }
            Rc::try_unwrap(log).unwrap().into_inner()
        });
        assert_eq!(log, [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]);
    }

    fn dropping_the_handle_cancels_and_detaching_does_not(engine: Engine) {
        run(&default_iothread(engine), || async {
            let alive = Rc::new(());
            let in_task = alive.clone();
            let task = spawn_local(async move {
                let _in_task = in_task;
                std::future::pending::<()>().await;
            });
            yield_now().await;
            assert_eq!(Rc::strong_count(&alive), 2);
            drop(task);
            yield_now().await;
            assert_eq!(Rc::strong_count(&alive), 1);

            let in_task = alive.clone();
            spawn_local(async move {
                time::sleep(Duration::from_millis(1)).await;
                drop(in_task);
            })
            .detach();
            assert_eq!(Rc::strong_count(&alive), 2);
            while Rc::strong_count(&alive) == 2 {
                time::sleep(Duration::from_millis(1)).await;
            }

            let in_task = alive.clone();
            let task = spawn_local(async move {
                let _in_task = in_task;
                std::future::pending::<()>().await;
            });
            assert_eq!(task.cancel().await, None);
            assert_eq!(Rc::strong_count(&alive), 1);
        });
    }

    fn timers_fire_in_order_and_never_early(engine: Engine) {
        run(&default_iothread(engine), || async {
            let began = Instant::now();
            let order = Rc::new(RefCell::new(Vec::new()));
            let tasks: Vec<_> = [12u64, 4, 8, 4, 0]
                .into_iter()
                .enumerate()
                .map(|(index, ms)| {
                    let order = order.clone();
                    spawn_local(async move {
                        let deadline = began + Duration::from_millis(ms);
                        time::sleep_until(deadline).await;
                        assert!(Instant::now() >= deadline);
                        order.borrow_mut().push(index);
                    })
                })
                .collect();
            // Cancelled, so it neither fires nor keeps the thread busy.
            let mut cancelled = Box::pin(time::sleep(Duration::from_millis(6)));
            assert!(poll_once(cancelled.as_mut()).await.is_none());
            drop(cancelled);
            for task in tasks {
                task.await;
            }
            assert_eq!(*order.borrow(), [4, 1, 3, 2, 0]);
            let before = Instant::now();
            time::sleep(Duration::from_millis(3)).await;
            assert!(before.elapsed() >= Duration::from_millis(3));
            let mut far = Box::pin(time::sleep(Duration::MAX));
            assert!(poll_once(far.as_mut()).await.is_none());
        });
    }

    /// Waits are not of whole milliseconds: then the shortest of many would be one, too.
    fn short_sleeps_are_short(engine: Engine) {
        const SLEEP: Duration = Duration::from_micros(200);
        let shortest = run(&start(engine, 0, 64), || shortest_sleep(SLEEP));
        assert!(
            (SLEEP..Duration::from_millis(1)).contains(&shortest),
            "{shortest:?}"
        );
    }

    fn the_round_has_one_time(engine: Engine) {
        run(&default_iothread(engine), || async {
            let first = time::now();
            std::thread::sleep(Duration::from_millis(2));
            assert_eq!(time::now(), first);
            yield_now().await;
            assert!(time::now() >= first + Duration::from_millis(2));
        });
    }

    /// Neither timers nor the ring starve under tasks that are always runnable.
    fn busy_tasks_starve_nothing(engine: Engine) {
        let event = eventfd(true);
        run(&default_iothread(engine), || async move {
            for _ in 0..1000 {
                spawn_local(async {
                    loop {
                        yield_now().await;
                    }
                })
                .detach();
            }
            time::sleep(Duration::from_millis(5)).await;
            let event = Rc::new(event);
            let for_task = event.clone();
            let poll =
                spawn_local(
                    async move { ops::poll_add(for_task.as_fd(), libc::POLLIN).await.unwrap() },
                );
            // A wake from outside gets through as well.
            let (sender, mut receiver) = mailbox::channel();
            std::thread::spawn(move || sender.send(()));
            assert_eq!(receiver.recv().await, Some(()));
            assert!(!poll.is_finished());
            signal(&event);
            assert_eq!(poll.await, 1);
        });
    }

    struct Hook {
        runs: Cell<u32>,
        queued: Cell<bool>,
    }

    impl Deferred for Hook {
        fn run(&self) {
            self.queued.set(false);
            self.runs.set(self.runs.get() + 1);
        }
    }

    fn hooks_run_once_per_batch(engine: Engine) {
        run(&default_iothread(engine), || async {
            let hook = Rc::new(Hook {
                runs: Cell::new(0),
                queued: Cell::new(false),
            });
            let tasks: Vec<_> = (0..10)
                .map(|_| {
                    let hook = hook.clone();
                    spawn_local(async move {
                        for _ in 0..3 {
                            if !hook.queued.replace(true) {
                                defer(hook.clone());
                            }
                            yield_now().await;
                        }
                    })
                })
                .collect();
            for task in tasks {
                task.await;
            }
            assert_eq!(hook.runs.get(), 3);
        });
    }

    /// A hook that is queued by a hook runs although nothing else happens.
    fn hooks_may_queue_hooks(engine: Engine) {
        struct Again(Cell<u32>, RefCell<Option<Waker>>);
        struct Shared(Rc<Again>);
        impl Deferred for Shared {
            fn run(&self) {
                self.0.0.set(self.0.0.get() - 1);
                if self.0.0.get() > 0 {
                    defer(Rc::new(Shared(self.0.clone())));
                } else if let Some(waker) = self.0.1.take() {
                    waker.wake();
                }
            }
        }
        run(&default_iothread(engine), || async {
            let again = Rc::new(Again(Cell::new(5), RefCell::new(None)));
            defer(Rc::new(Shared(again.clone())));
            std::future::poll_fn(|cx| {
                again.1.replace(Some(cx.waker().clone()));
                match again.0.get() {
                    0 => std::task::Poll::Ready(()),
                    _ => std::task::Poll::Pending,
                }
            })
            .await;
        });
    }

    /// A message to and fro, over and over, between a plain thread and iothreads that poll, do not,
    /// and poll for long: each is asleep, falling asleep or awake when the wake comes.
    fn no_wake_from_another_thread_is_lost(engine: Engine) {
        let workers: Vec<_> = [0, 32_768, 5_000_000]
            .into_iter()
            .map(|poll_max_ns| {
                std::thread::spawn(move || {
                    let iothread = start(engine, poll_max_ns, 8);
                    let (to, mut inbox) = mailbox::channel::<u32>();
                    let (back, replies) = mpsc::channel();
                    iothread
                        .handle()
                        .spawn(move || async move {
                            while let Some(value) = inbox.recv().await {
                                back.send(value).unwrap();
                            }
                        })
                        .unwrap();
                    let entry = mailbox::Entry::new();
                    for round in 0..5000 {
                        to.post(&entry, round).unwrap();
                        assert_eq!(replies.recv_timeout(HANG), Ok(round));
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.join().unwrap();
        }
    }

    /// Many threads wake many tasks at once.
    fn a_storm_of_wakes(engine: Engine) {
        const THREADS: usize = 4;
        const MESSAGES: usize = 5000;
        let iothread = default_iothread(engine);
        let (sender, mut receiver) = mailbox::channel::<usize>();
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                let handle = iothread.handle();
                let sender = sender.clone();
                std::thread::spawn(move || {
                    for message in 0..MESSAGES {
                        let sender = sender.clone();
                        handle
                            .spawn(move || async move {
                                yield_now().await;
                                sender.send(message).unwrap();
                            })
                            .unwrap();
                    }
                })
            })
            .collect();
        drop(sender);
        for thread in threads {
            thread.join().unwrap();
        }
        let sum = run(&iothread, move || async move {
            let mut sum = 0;
            while let Some(message) = receiver.recv().await {
                sum += message;
            }
            sum
        });
        assert_eq!(sum, THREADS * MESSAGES * (MESSAGES - 1) / 2);
    }

    fn shutdown_ends_what_is_pending(engine: Engine) {
        struct OnDrop(Arc<AtomicUsize>, std::thread::ThreadId);
        impl Drop for OnDrop {
            fn drop(&mut self) {
                assert_eq!(std::thread::current().id(), self.1);
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let iothread = default_iothread(engine);
        let handle = iothread.handle();
        let dropped = Arc::new(AtomicUsize::new(0));
        let (started, wait_started) = mpsc::channel();
        for _ in 0..100 {
            let (dropped, started) = (dropped.clone(), started.clone());
            handle
                .spawn(move || async move {
                    let _on_drop = OnDrop(dropped, std::thread::current().id());
                    let (reader, _writer) = std::io::pipe().unwrap();
                    let mut buffer = [0u8; 16];
                    let iov = [iovec(&mut buffer)];
                    started.send(()).unwrap();
                    // A worker cannot be taken out of a read.
                    if engine == Engine::Threads {
                        let events = ops::poll_add(reader.as_fd(), libc::POLLIN).await;
                        unreachable!("nobody writes: {events:?}");
                    }
                    // SAFETY: the buffer outlives the await.
                    let read = unsafe { ops::readv(reader.as_fd(), &iov, u64::MAX) }.await;
                    unreachable!("nobody writes: {read:?}");
                })
                .unwrap();
        }
        for _ in 0..100 {
            wait_started.recv_timeout(HANG).unwrap();
        }
        let waiting = {
            let handle = handle.clone();
            let (started, wait_started) = mpsc::channel();
            let waiting = std::thread::spawn(move || {
                handle.run_blocking(move || async move {
                    started.send(()).unwrap();
                    let mut kick = ops::EventFd::new(eventfd(true));
                    kick.wait().await.unwrap();
                })
            });
            wait_started.recv_timeout(HANG).unwrap();
            waiting
        };
        within_time(move || iothread.shutdown());
        assert_eq!(dropped.load(Ordering::Relaxed), 100);
        assert_eq!(within_time(move || waiting.join()).unwrap(), Err(Closed));
        assert_eq!(handle.spawn(|| async {}), Err(Closed));
        assert_eq!(handle.run_blocking(|| async {}), Err(Closed));
    }

    /// Whoever is being told something, spawned or answered while the thread ends gets an answer.
    fn shutdown_races_with_callers(engine: Engine) {
        within_time(move || {
            for _ in 0..100 {
                let iothread = start(engine, 0, 8);
                let callers: Vec<_> = (0..3)
                    .map(|_| {
                        let handle = iothread.handle();
                        std::thread::spawn(move || while handle.run_blocking(yield_now).is_ok() {})
                    })
                    .collect();
                std::thread::sleep(Duration::from_micros(300));
                drop(iothread);
                for caller in callers {
                    caller.join().unwrap();
                }
            }
        });
    }

    /// An operation that outlives its task, in a thread-local, is ended by the thread's end.
    fn shutdown_ends_operations_outside_of_tasks(engine: Engine) {
        thread_local! {
            static STASH: RefCell<Vec<ops::EventFd>> = const { RefCell::new(Vec::new()) };
        }
        let iothread = default_iothread(engine);
        run(&iothread, || async {
            let mut kick = ops::EventFd::new(eventfd(true));
            assert!(poll_once(std::pin::pin!(kick.wait())).await.is_none());
            STASH.with_borrow_mut(|stash| stash.push(kick));
        });
        within_time(move || iothread.shutdown());
    }

    fn a_task_may_shut_its_own_thread_down(engine: Engine) {
        let iothread = default_iothread(engine);
        let handle = iothread.handle();
        let result = within_time(move || {
            let inside = handle.clone();
            handle.run_blocking(move || async move {
                drop(iothread);
                assert!(inside.is_current());
                std::future::pending::<()>().await;
            })
        });
        assert_eq!(result, Err(Closed));
    }

    /// An idle thread is blocked: it neither polls nor wakes up by itself.
    fn an_idle_thread_sleeps(engine: Engine) {
        let iothread = start(engine, 1_000_000, 64);
        let handle = iothread.handle();
        handle.run_blocking(|| async {}).unwrap();
        // It has yet to come to rest, which takes longer on a busy machine.
        let deadline = Instant::now() + HANG;
        let mut before = None;
        while before != Some(handle.stats()) {
            assert!(Instant::now() < deadline, "it never sleeps");
            before = Some(handle.stats());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
