//! The workers: how many there are, who gets them, and what a call that hangs does to others.
#![cfg(not(loom))]

mod common;

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{PipeWriter, Write},
        num::NonZeroUsize,
        os::fd::AsFd,
        pin::Pin,
        rc::Rc,
        time::{Duration, Instant},
    };

    use standfast_iothread::{Config, Engine, Handle, IoThread, ops, spawn_local, time};

    use crate::common::*;

    /// A call that hangs in a worker, as one to storage does: a read of a pipe that nobody writes.
    struct Hung {
        op: Pin<Box<dyn Future<Output = std::io::Result<u32>>>>,
        writer: Option<PipeWriter>,
    }

    impl Hung {
        /// Begins one on `lane`.
        async fn begin(lane: &Rc<ops::Lane>) -> Hung {
            let (reader, writer) = std::io::pipe().unwrap();
            let lane = Rc::clone(lane);
            let mut op: Pin<Box<dyn Future<Output = _>>> = Box::pin(async move {
                let mut byte = [0u8];
                let iov = [iovec(&mut byte)];
                // SAFETY: the buffer outlives the await.
                let op = unsafe { ops::readv(reader.as_fd(), &iov, u64::MAX) };
                op.on(&lane).await
            });
            assert!(poll_once(op.as_mut()).await.is_none());
            let writer = Some(writer);
            Hung { op, writer }
        }

        /// The storage answers.
        async fn end(mut self) {
            self.writer.take().unwrap().write_all(b"x").unwrap();
            assert_eq!(self.op.await.unwrap(), 1);
        }
    }

    async fn hang(lane: &Rc<ops::Lane>, count: usize) -> Vec<Hung> {
        let mut hung = Vec::new();
        for _ in 0..count {
            hung.push(Hung::begin(lane).await);
        }
        hung
    }

    /// A lane that goes by workers on either engine.
    fn lane() -> Rc<ops::Lane> {
        Rc::new(ops::Lane::by_workers())
    }

    fn start_pool(engine: Engine, min: u32, max: u32) -> IoThread {
        start_with(Config {
            thread_pool_min: min,
            thread_pool_max: max,
            ..config(engine)
        })
    }

    /// Waits until the pool has had time to do what it is to do, and then for so many workers.
    async fn workers(handle: &Handle, wanted: u32) {
        let deadline = Instant::now() + HANG;
        while handle.stats().workers != wanted {
            assert!(Instant::now() < deadline, "{:?}", handle.stats());
            time::sleep(Duration::from_millis(1)).await;
        }
        time::sleep(Duration::from_millis(30)).await;
        assert_eq!(handle.stats().workers, wanted);
    }

    /// Whether a read on `lane` is served within `patience`.
    async fn is_served_within(patience: Duration, file: &File, lane: &ops::Lane) -> bool {
        let mut bytes = [0u8; 8];
        let iov = [iovec(&mut bytes)];
        // SAFETY: the buffer outlives the operation.
        let mut op = Box::pin(unsafe { ops::readv(file.as_fd(), &iov, 0) }.on(lane));
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if let Some(read) = poll_once(op.as_mut()).await {
                return read.unwrap() == 8;
            }
            time::sleep(Duration::from_millis(1)).await;
        }
        false
    }

    async fn is_served(file: &File, lane: &ops::Lane) -> bool {
        is_served_within(HANG, file, lane).await
    }

    /// Whether a read on `lane` waits as long as this looks.
    async fn waits(file: &File, lane: &ops::Lane) -> bool {
        !is_served_within(Duration::from_millis(300), file, lane).await
    }

    fn some_file() -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 4096]).unwrap();
        file
    }

    on_both_engines! {
        grows_on_demand_and_is_bounded,
        shrinks_after_a_while,
        has_another_size_when_it_is_told,
        a_lane_that_hangs_takes_half_at_most,
        three_lanes_that_hang_leave_a_fourth_served,
        a_lane_may_have_a_cap_of_its_own,
        what_waits_in_a_lane_is_served_in_order,
        what_waits_is_dropped_at_once,
        the_end_of_the_thread_waits_for_calls_and_for_nothing_else,
        a_fsync_and_a_fallocate_go_by_workers,
        thousands_of_calls_by_workers,
    }

    fn grows_on_demand_and_is_bounded(engine: Engine) {
        let iothread = start_pool(engine, 0, 5);
        let handle = iothread.handle();
        run(&iothread, move || async move {
            let first = u32::from(engine == Engine::Threads);
            assert_eq!(handle.stats().workers, first, "threads begins with one");
            // Lanes of one call each: none of them is the limit.
            let mut hung = Vec::new();
            for count in 1..=5 {
                hung.extend(hang(&lane(), 1).await);
                workers(&handle, count).await;
            }
            hung.extend(hang(&lane(), 3).await);
            workers(&handle, 5).await;
            for hung in hung {
                hung.end().await;
            }
            workers(&handle, 5).await;
        });
    }

    /// Down to one, although none is to stay.
    fn shrinks_after_a_while(engine: Engine) {
        let iothread = start_pool(engine, 0, 8);
        let handle = iothread.handle();
        run(&iothread, move || async move {
            let began = Instant::now();
            let hung = hang(&lane(), 4).await;
            workers(&handle, 4).await;
            for hung in hung {
                hung.end().await;
            }
            // One that is used now and then is always the same one.
            let (file, lane) = (some_file(), lane());
            while handle.stats().workers > 1 {
                assert!(began.elapsed() < HANG);
                assert!(is_served(&file, &lane).await);
                time::sleep(Duration::from_millis(20)).await;
            }
            assert!(began.elapsed() >= Duration::from_secs(10));
            time::sleep(Duration::from_secs(11)).await;
            assert_eq!(handle.stats().workers, 1);
            assert!(is_served(&file, &lane).await);
        });
    }

    /// Busy ones that are too many end after their call; those that are to stay are there at once.
    fn has_another_size_when_it_is_told(engine: Engine) {
        let iothread = start_pool(engine, 0, 4);
        let handle = iothread.handle();
        run(&iothread, move || async move {
            let mut hung = Vec::new();
            for _ in 0..6 {
                hung.extend(hang(&lane(), 1).await);
            }
            workers(&handle, 4).await;
            handle.set_pool_size(0, 6).unwrap();
            workers(&handle, 6).await;
            handle.set_pool_size(0, 2).unwrap();
            for hung in hung.drain(2..) {
                hung.end().await;
            }
            workers(&handle, 2).await;
            let (file, other) = (some_file(), lane());
            assert!(waits(&file, &other).await, "two are all there are");
            for hung in hung {
                hung.end().await;
            }
            assert!(is_served(&file, &other).await);
            handle.set_pool_size(5, 5).unwrap();
            workers(&handle, 5).await;
            handle.set_pool_size(0, 1).unwrap();
            workers(&handle, 1).await;
            assert!(is_served(&file, &other).await);
        });
    }

    fn a_lane_that_hangs_takes_half_at_most(engine: Engine) {
        let iothread = start_pool(engine, 0, 8);
        let handle = iothread.handle();
        run(&iothread, move || async move {
            let (file, hanging, other) = (some_file(), lane(), lane());
            let hung = hang(&hanging, 200).await;
            workers(&handle, 4).await;
            for _ in 0..100 {
                assert!(is_served(&file, &other).await);
            }
            assert!(waits(&file, &hanging).await);
            let workers = handle.stats().workers;
            assert!(
                workers <= 5,
                "the lane has four, all others need one: {workers}"
            );
            for hung in hung {
                hung.end().await;
            }
            assert!(is_served(&file, &hanging).await);
        });
    }

    fn three_lanes_that_hang_leave_a_fourth_served(engine: Engine) {
        let iothread = start_with(config(engine));
        let handle = iothread.handle();
        run(&iothread, move || async move {
            let (file, other) = (some_file(), lane());
            let lanes = [lane(), lane(), lane()];
            let mut hung = Vec::new();
            for _ in 0..200 {
                for lane in &lanes {
                    hung.push(Hung::begin(lane).await);
                }
            }
            time::sleep(Duration::from_millis(100)).await;
            for _ in 0..100 {
                assert!(is_served(&file, &other).await);
            }
            assert!(handle.stats().workers <= 64, "{:?}", handle.stats());
            // Operations of no lane are one of their own.
            let mut bytes = [0u8; 8];
            let iov = [iovec(&mut bytes)];
            // SAFETY: the buffer outlives the await.
            let read = unsafe { ops::readv(file.as_fd(), &iov, 0) }.await;
            assert_eq!(read.unwrap(), 8);
            for hung in hung {
                hung.end().await;
            }
        });
    }

    fn a_lane_may_have_a_cap_of_its_own(engine: Engine) {
        let iothread = start_pool(engine, 0, 64);
        let handle = iothread.handle();
        run(&iothread, move || async move {
            let lane = ops::Lane::by_workers().with_workers_max(NonZeroUsize::new(3).unwrap());
            let hung = hang(&Rc::new(lane), 10).await;
            workers(&handle, 3).await;
            for hung in hung {
                hung.end().await;
            }
        });
    }

    fn what_waits_in_a_lane_is_served_in_order(engine: Engine) {
        let iothread = start_pool(engine, 0, 2);
        run(&iothread, || async {
            let lane = lane();
            let hung = Hung::begin(&lane).await;
            let (mut reader, writer) = std::io::pipe().unwrap();
            let writer = Rc::new(writer);
            let tasks: Vec<_> = (0..50u8)
                .map(|number| {
                    let (writer, lane) = (writer.clone(), lane.clone());
                    spawn_local(async move {
                        let mut byte = [number];
                        let iov = [iovec(&mut byte)];
                        // SAFETY: the buffer outlives the await.
                        let op = unsafe { ops::writev(writer.as_fd(), &iov, u64::MAX, 0) };
                        assert_eq!(op.on(&lane).await.unwrap(), 1);
                    })
                })
                .collect();
            time::sleep(Duration::from_millis(20)).await;
            assert!(tasks.iter().all(|task| !task.is_finished()));
            hung.end().await;
            for task in tasks {
                task.await;
            }
            drop(writer);
            let mut all = Vec::new();
            std::io::Read::read_to_end(&mut reader, &mut all).unwrap();
            assert_eq!(all, (0..50).collect::<Vec<u8>>());
        });
    }

    fn what_waits_is_dropped_at_once(engine: Engine) {
        let iothread = start_pool(engine, 0, 2);
        run(&iothread, || async {
            let (file, lane) = (some_file(), lane());
            let first = Hung::begin(&lane).await;
            let waiting = hang(&lane, 20).await;
            let began = Instant::now();
            drop(waiting);
            assert!(began.elapsed() < Duration::from_secs(5));
            first.end().await;
            assert!(is_served(&file, &lane).await);
        });
    }

    /// Calls that hang are waited for, as by a ring, whose kernel has their buffers; what waits behind
    /// them is not begun any more.
    fn the_end_of_the_thread_waits_for_calls_and_for_nothing_else(engine: Engine) {
        let iothread = start_pool(engine, 0, 2);
        let (started, wait_started) = std::sync::mpsc::channel();
        iothread
            .handle()
            .spawn(move || async move {
                let lane = lane();
                let mut hung = hang(&lane, 10).await;
                // The pipes of those that wait stay empty.
                let writer = hung[0].writer.take().unwrap();
                time::sleep(Duration::from_millis(50)).await;
                started.send(writer).unwrap();
                std::future::pending::<()>().await;
                drop(hung);
            })
            .unwrap();
        let mut writer = wait_started.recv_timeout(HANG).unwrap();
        let (ended, wait_ended) = std::sync::mpsc::channel();
        let end = std::thread::spawn(move || {
            iothread.shutdown();
            ended.send(()).unwrap();
        });
        assert!(wait_ended.recv_timeout(Duration::from_millis(200)).is_err());
        writer.write_all(b"x").unwrap();
        wait_ended.recv_timeout(HANG).unwrap();
        end.join().unwrap();
    }

    fn a_fsync_and_a_fallocate_go_by_workers(engine: Engine) {
        let iothread = start_pool(engine, 0, 4);
        let handle = iothread.handle();
        run(&iothread, move || async move {
            let (file, lane) = (some_file(), lane());
            let op = ops::fallocate(file.as_fd(), 0, 0, 65536).on(&lane);
            assert_eq!(op.await.unwrap(), 0);
            assert_eq!(file.metadata().unwrap().len(), 65536);
            for datasync in [true, false] {
                let op = ops::fsync(file.as_fd(), datasync).on(&lane);
                assert_eq!(op.await.unwrap(), 0);
            }
            let op = ops::fallocate(file.as_fd(), 0x4000_0000, 0, 65536).on(&lane);
            let error = op.await.unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP));
            assert!(handle.stats().workers > 0);
        });
    }

    /// Memory that is not there is the system call's error, as with a ring; and so are flags that a file
    /// does not know.
    #[test]
    fn errors_are_those_of_a_ring() {
        let mut all = Vec::new();
        for lane in [ops::Lane::new(), ops::Lane::by_workers()] {
            let errors = run(&default_iothread(Engine::IoUring), move || async move {
                let file = some_file();
                let nowhere = std::ptr::without_provenance_mut(4096);
                // SAFETY: the kernel refuses memory that is not mapped.
                let read = unsafe { ops::read(file.as_fd(), nowhere, 8, 0) };
                let fault = read.on(&lane).await.unwrap_err().raw_os_error();
                let mut bytes = [0u8; 8];
                let base = bytes.as_mut_ptr();
                // SAFETY: the buffer outlives the await.
                let write = unsafe { ops::write(file.as_fd(), base, 8, 0, 0x4000_0000) };
                let flags = write.on(&lane).await.unwrap_err().raw_os_error();
                // SAFETY: the buffer outlives the await.
                let end = unsafe { ops::read(file.as_fd(), base, 8, 4092) };
                let short = end.on(&lane).await.unwrap();
                (fault, flags, short)
            });
            all.push(errors);
        }
        let expected = (Some(libc::EFAULT), Some(libc::EOPNOTSUPP), 4);
        assert_eq!(all, [expected, expected]);
    }

    fn thousands_of_calls_by_workers(engine: Engine) {
        const TASKS: usize = 300;
        let mut file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..TASKS * 8).map(|i| (i % 251).to_le_bytes()[0]).collect();
        file.write_all(&content).unwrap();
        run(&start(engine, 32_768, 4), || async move {
            let file = Rc::new(file);
            let lanes = [lane(), lane(), lane()];
            let tasks: Vec<_> = (0..TASKS)
                .map(|index| {
                    let (file, lane) = (file.clone(), lanes[index % 3].clone());
                    spawn_local(async move {
                        let mut buffer = [0u8; 8];
                        for _ in 0..50 {
                            buffer = [0; 8];
                            let iov = [iovec(&mut buffer)];
                            let offset = 8 * index as u64;
                            // SAFETY: the buffer outlives the await.
                            let read = unsafe { ops::readv(file.as_fd(), &iov, offset) };
                            assert_eq!(read.on(&lane).await.unwrap(), 8);
                        }
                        buffer
                    })
                })
                .collect();
            for (index, task) in tasks.into_iter().enumerate() {
                assert_eq!(task.await[..], content[8 * index..8 * index + 8]);
            }
        });
    }

    /// One iothread with a ring has both: what goes by workers hangs, and the ring serves on.
    #[test]
    fn both_on_one_iothread() {
        let iothread = default_iothread(Engine::IoUring);
        let handle = iothread.handle();
        run(&iothread, move || async move {
            let file = some_file();
            let by_ring = ops::Lane::new();
            assert!(is_served(&file, &by_ring).await);
            assert_eq!(handle.stats().workers, 0, "made when it is needed");
            let by_workers = lane();
            let hung = hang(&by_workers, 100).await;
            workers(&handle, 32).await;
            for _ in 0..100 {
                assert!(is_served(&file, &by_ring).await);
            }
            for hung in hung {
                hung.end().await;
            }
            assert!(is_served(&file, &by_workers).await);
        });
    }
}
