//! `throttle`: how much is done, by whom, and what becomes of those who wait. Nothing here is measured closely:
//! never more than allowed, and whoever may go goes.

mod common;

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::time::{Duration, Instant};

    use block::fault::InjectError;
    use block::{ErrorKind, Io, Node, NodeInfo, Operation};
    use standfast_drivers::throttle::{Rate, ThrottleLimits};
    use standfast_drivers::{
        Blkdebug, BlkdebugOptions, NullCo, NullOptions, Throttle, ThrottleGroup, ThrottleOptions,
    };

    use super::common::{Bench, Op, pattern};

    const PATIENCE: Duration = Duration::from_secs(20);

    fn rate(average: u64) -> Rate {
        Rate {
            average,
            ..Rate::default()
        }
    }

    fn iops(average: u64) -> ThrottleLimits {
        ThrottleLimits {
            iops_total: rate(average),
            ..ThrottleLimits::default()
        }
    }

    fn group(limits: ThrottleLimits) -> Arc<ThrottleGroup> {
        ThrottleGroup::new("group0", limits).expect("it makes sense")
    }

    fn over(group: &Arc<ThrottleGroup>, file: Arc<Node>) -> Arc<Node> {
        let throttle = Throttle::new(ThrottleOptions {
            node_name: "disk0".into(),
            file,
            group: Arc::clone(group),
            discard: true,
            info: NodeInfo::default(),
        });
        Node::new("disk0", Box::new(throttle))
    }

    fn member(group: &Arc<ThrottleGroup>) -> Arc<Node> {
        let null = Node::new("null0", Box::new(NullCo::new(NullOptions::default())));
        over(group, null)
    }

    /// Reads as fast as it may, so many at a time, until it is told to end.
    struct Greedy {
        bench: Bench,
        done: Arc<AtomicU64>,
        end: Arc<AtomicBool>,
        tasks: Vec<std::thread::JoinHandle<()>>,
    }

    impl Greedy {
        fn on(node: &Arc<Node>, depth: usize) -> Self {
            let bench = Bench::new();
            let (done, end) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
            let task = |_| {
                let (node, handle) = (Arc::clone(node), bench.handle());
                let (done, end) = (Arc::clone(&done), Arc::clone(&end));
                std::thread::spawn(move || {
                    let run = move || async move {
                        while !end.load(Ordering::Relaxed) {
                            Op::read(0, 512).run(&node).await.expect("inside");
                            done.fetch_add(1, Ordering::Relaxed);
                        }
                    };
                    handle.run_blocking(run).expect("the iothread runs");
                })
            };
            Self {
                tasks: (0..depth).map(task).collect(),
                bench,
                done,
                end,
            }
        }

        fn done(&self) -> u64 {
            self.done.load(Ordering::Relaxed)
        }

        fn end(self) -> u64 {
            self.end.store(true, Ordering::Relaxed);
            for task in self.tasks {
                task.join().expect("it ends");
            }
            drop(self.bench);
            self.done.load(Ordering::Relaxed)
        }
    }

    fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition() {
            assert!(Instant::now() < deadline, "timed out waiting until {what}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Two members on two iothreads, one of which always has more waiting than the other.
    #[test]
    fn never_faster_than_allowed_and_each_member_has_its_turn() {
        const RATE: u64 = 400;
        let begin = Instant::now();
        let group = group(iops(RATE));
        let (few, many) = (member(&group), member(&group));
        let many = Greedy::on(&many, 24);
        let few = Greedy::on(&few, 2);
        std::thread::sleep(Duration::from_millis(1500));
        // Those that have just begun.
        let done = few.done() + many.done();
        let allowed = begin.elapsed().as_secs_f64() * 400.0 + 41.0;
        assert!((done as f64) <= allowed, "{done} of {allowed}");
        assert!(done > 41, "nobody goes on");
        // Whoever has many waiting has no more turns for that, but for those at the beginning.
        let (few, many) = (few.end(), many.end());
        assert!(few * 3 + 41 > many, "{few} {many}");
    }

    /// Once the first one in the line alone minded the time, and when its iothread was stuck nobody in the
    /// group went on; nor did a disk's other iothread.
    #[test]
    fn nobody_waits_for_an_iothread_that_is_stuck() {
        for is_same_disk in [false, true] {
            let group = group(iops(100));
            let first = member(&group);
            let other = match is_same_disk {
                false => member(&group),
                true => Arc::clone(&first),
            };
            let stuck = Greedy::on(&first, 6);
            eventually("all of it waits", || stuck.done() > 20);
            let (go_on, blocked) = std::sync::mpsc::channel::<()>();
            let is_stuck = Arc::<AtomicBool>::default();
            let told = Arc::clone(&is_stuck);
            let hangs = stuck.bench.handle().spawn(move || async move {
                told.store(true, Ordering::Relaxed);
                let _ = blocked.recv();
            });
            hangs.expect("it runs");
            eventually("it is stuck", || is_stuck.load(Ordering::Relaxed));
            let before = stuck.done();
            let others = Greedy::on(&other, 4);
            eventually("others go on", || others.done() > 40);
            assert_eq!(stuck.done(), before, "it is stuck");
            drop(go_on);
            eventually("it goes on", || stuck.done() > before + 20);
            others.end();
            stuck.end();
        }
    }

    #[test]
    fn other_limits_count_at_once() {
        let slow = ThrottleLimits {
            bps_write: rate(1),
            ..ThrottleLimits::default()
        };
        let group = group(slow);
        let disk = member(&group);
        let bench = Bench::new();
        bench
            .run(&disk, Op::write(0, pattern(1, 4096)))
            .expect("the first one");
        // It would take more than an hour each.
        let (handle, ended) = (bench.handle(), Arc::<AtomicU64>::default());
        let waiting: Vec<_> = (0..20)
            .map(|at| {
                let (disk, handle, ended) = (Arc::clone(&disk), handle.clone(), Arc::clone(&ended));
                std::thread::spawn(move || {
                    let run = move || async move {
                        let op = match at % 3 {
                            0 => Op::discard(0, 4096),
                            1 => Op::zeroes(0, 4096, true),
                            _ => Op::write(0, pattern(1, 4096)),
                        };
                        op.clone().run(&disk).await
                    };
                    let done = handle.run_blocking(run).expect("it runs");
                    ended.fetch_add(1, Ordering::Relaxed);
                    done.expect("inside");
                })
            })
            .collect();
        for _ in 0..3 {
            bench.run(&disk, Op::read(0, 4096)).expect("not limited");
            bench.run(&disk, Op::flush()).expect("not limited");
        }
        assert_eq!(ended.load(Ordering::Relaxed), 0);
        assert!(group.set_limits(iops(0).with_size()).is_err());
        group.set_limits(slow).expect("as before");
        // One may go, with the fresh budget.
        eventually("one goes", || ended.load(Ordering::Relaxed) == 1);
        group.set_limits(ThrottleLimits::default()).expect("none");
        for waiting in waiting {
            waiting.join().expect("it goes");
        }
        assert_eq!(group.limits(), ThrottleLimits::default());
    }

    trait WithSize {
        fn with_size(self) -> Self;
    }

    impl WithSize for ThrottleLimits {
        fn with_size(self) -> Self {
            Self {
                iops_size: 4096,
                ..self
            }
        }
    }

    /// Whoever stops waiting leaves nothing: not its place, and not what it had just been allowed.
    #[test]
    fn who_leaves_gives_his_turn_to_the_next() {
        let group = group(iops(10));
        let (first, other) = (member(&group), member(&group));
        let bench = Bench::new();
        let run = move || async move {
            let read =
                |node: &'static Node| Box::pin(node.submit(Io::read(0, block::Buffers::EMPTY)));
            let (first, other): (&'static Node, &'static Node) =
                (Box::leak(Box::new(first)), Box::leak(Box::new(other)));
            let mut ready = 0;
            let mut waiting = Vec::new();
            for _ in 0..6 {
                let mut future = first.submit(Io::read(0, block::Buffers::EMPTY));
                match future.take_ready() {
                    Some(result) => {
                        result.expect("inside");
                        ready += 1;
                    }
                    None => waiting.push(Box::pin(future)),
                }
            }
            assert_eq!(
                (ready, waiting.len()),
                (2, 4),
                "a tenth of a second, and one more"
            );
            let mut last = read(other);
            // It would be its turn second, and in a while.
            let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
            for future in &mut waiting {
                assert!(future.as_mut().poll(&mut cx).is_pending());
            }
            assert!(last.as_mut().poll(&mut cx).is_pending());
            drop(waiting);
            last.await.expect("it is the only one");
        };
        let begin = Instant::now();
        bench.handle().run_blocking(run).expect("it runs");
        assert!(begin.elapsed() < PATIENCE);
        // What was allowed and not begun counts as not done.
        group
            .set_limits(ThrottleLimits {
                bps_total: rate(1),
                ..ThrottleLimits::default()
            })
            .expect("slow");
        let disk = member(&group);
        let run = move || async move {
            let disk: &'static Node = Box::leak(Box::new(disk));
            let mut data = vec![0; 4096];
            let mut memory = block::Joined::new();
            memory.push_own(&mut data);
            let write = Io::write(0, memory.buffers());
            assert!(disk.submit(write).take_ready().is_some());
            let waiting = disk.submit(write);
            assert!(!waiting.is_ready());
            group
                .set_limits(ThrottleLimits {
                    bps_total: rate(100),
                    ..ThrottleLimits::default()
                })
                .expect("fresh");
            // It may go now, and was never polled.
            drop(waiting);
            assert!(
                disk.submit(write).take_ready().is_some(),
                "the budget is whole"
            );
        };
        bench.handle().run_blocking(run).expect("it runs");
    }

    #[test]
    fn a_failure_below_is_told_as_it_is() {
        let group = group(iops(200));
        let null = Node::new("null0", Box::new(NullCo::new(NullOptions::default())));
        let debug = Blkdebug::new(BlkdebugOptions {
            node_name: "debug0".into(),
            image: null,
            inject_error: vec![InjectError {
                errno: libc::ENOSPC,
                ..InjectError::default()
            }],
            set_state: Vec::new(),
            align: None,
        });
        let debug = Node::new("debug0", Box::new(debug.expect("opens")));
        let disk = over(&group, debug);
        let bench = Bench::new();
        let ops = (0..40)
            .map(|at| Op::write(at * 512, pattern(at, 512)))
            .collect();
        for (at, result) in bench.run_all(&disk, ops).into_iter().enumerate() {
            let error = result.expect_err("injected");
            assert_eq!(error.kind(), ErrorKind::NoSpace);
            let place = format!("node 'debug0' at {}+512: write: injected", at * 512);
            assert!(error.to_string().starts_with(&place), "{error}");
        }
        assert_eq!(disk.check(Operation::Read, 0, 512), Ok(()));
    }

    /// All of it once more, without io_uring.
    #[test]
    fn again_on_threads() {
        testkit::engine::again_on_threads();
    }
}
