//! Operations against real files and descriptors.
#![cfg(not(loom))]

mod common;

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Seek, SeekFrom, Write},
        os::fd::{AsFd, OwnedFd},
        rc::Rc,
        sync::Arc,
        time::{Duration, Instant},
    };

    use standfast_iothread::{Engine, ops, spawn_local, time, yield_now};

    use crate::common::*;

    on_both_engines! {
        writes_syncs_and_reads_back,
        a_single_buffer_honours_rw_flags,
        fallocate_grows_and_punches,
        an_error_keeps_its_errno,
        thousands_of_operations_through_a_tiny_ring,
        completions_overflow_the_queue,
        the_first_of_many_do_not_wait_for_the_last,
        dropping_in_flight_releases_the_buffer_and_the_descriptor,
        dropping_before_submission_and_from_the_backlog,
        an_operation_may_change_its_waker,
        kicks_arrive_on_both_kinds_of_eventfd,
        readiness_reports_what_is_there_at_the_start,
        readiness_reports_errors,
        readiness_of_a_file_that_is_always_ready,
        one_notification_is_under_way_at_most,
        a_full_counter_is_not_waited_for,
        a_settled_notification_has_gone_out,
    }

    /// Four at a time instead of 4, 8, 16, 32: all within one round.
    #[test]
    fn a_batch_is_no_larger_than_asked_for() {
        let iothread = default_iothread(Engine::IoUring);
        let handle = iothread.handle();
        run(&iothread, move || async move {
            let file = tempfile::tempfile().unwrap();
            for (most, enters) in [(0, 4), (4, 15), (0, 4)] {
                handle.set_aio_max_batch(most);
                yield_now().await;
                let before = handle.stats().enters;
                let mut ops = Vec::new();
                for _ in 0..60 {
                    let mut op = Box::pin(ops::fsync(file.as_fd(), true));
                    assert!(poll_once(op.as_mut()).await.is_none());
                    ops.push(op);
                }
                assert_eq!(handle.stats().enters - before, enters, "at most {most}");
                for op in ops {
                    assert_eq!(op.await.unwrap(), 0);
                }
            }
        });
    }

    fn writes_syncs_and_reads_back(engine: Engine) {
        let file = tempfile::tempfile().unwrap();
        run(&default_iothread(engine), || async move {
            let (mut a, mut b) = (vec![1u8; 4096], vec![2u8; 512]);
            let iov = [iovec(&mut a), iovec(&mut b)];
            // SAFETY: the buffers outlive the await.
            let written = unsafe { ops::writev(file.as_fd(), &iov, 1000, 0) }.await;
            assert_eq!(written.unwrap(), 4608);
            assert_eq!(ops::fsync(file.as_fd(), true).await.unwrap(), 0);
            assert_eq!(ops::fsync(file.as_fd(), false).await.unwrap(), 0);
            let mut all = vec![9u8; 6000];
            let iov = [iovec(&mut all)];
            // SAFETY: the buffer outlives the await.
            let read = unsafe { ops::readv(file.as_fd(), &iov, 0) }.await;
            assert_eq!(read.unwrap(), 5608);
            assert!(all[..1000].iter().all(|&byte| byte == 0));
            assert!(all[1000..5096].iter().all(|&byte| byte == 1));
            assert!(all[5096..5608].iter().all(|&byte| byte == 2));
            assert!(all[5608..].iter().all(|&byte| byte == 9));
        });
    }

    fn a_single_buffer_honours_rw_flags(engine: Engine) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123").unwrap();
        let mut file = run(&default_iothread(engine), || async move {
            let mut tail = *b"45";
            let iov = [iovec(&mut tail)];
            // SAFETY: the buffer outlives the await.
            let op = unsafe { ops::writev(file.as_fd(), &iov, 0, libc::RWF_APPEND) };
            assert_eq!(op.await.unwrap(), 2);
            file
        });
        file.seek(SeekFrom::Start(0)).unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "012345");
    }

    fn fallocate_grows_and_punches(engine: Engine) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 16384]).unwrap();
        let mut file = run(&default_iothread(engine), || async move {
            ops::fallocate(file.as_fd(), 0, 0, 65536).await.unwrap();
            let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            ops::fallocate(file.as_fd(), punch, 4096, 4096)
                .await
                .unwrap();
            file
        });
        assert_eq!(file.metadata().unwrap().len(), 65536);
        let mut data = Vec::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_end(&mut data).unwrap();
        assert!(data[..4096].iter().all(|&byte| byte == 7));
        assert!(data[4096..8192].iter().all(|&byte| byte == 0));
        assert!(data[8192..16384].iter().all(|&byte| byte == 7));
    }

    fn an_error_keeps_its_errno(engine: Engine) {
        run(&default_iothread(engine), || async {
            let directory = std::fs::File::open("/").unwrap();
            let mut buffer = [0u8; 16];
            let iov = [iovec(&mut buffer)];
            // SAFETY: the buffer outlives the await.
            let error = unsafe { ops::readv(directory.as_fd(), &iov, 0) }
                .await
                .unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EISDIR));
            let iov = vec![iovec(&mut buffer); 2000];
            // SAFETY: the kernel refuses a vector this long.
            let error = unsafe { ops::readv(directory.as_fd(), &iov, 0) }
                .await
                .unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        });
    }

    /// The backlog behind a full submission queue loses nothing, and completions that overflow the
    /// completion queue are all seen.
    fn thousands_of_operations_through_a_tiny_ring(engine: Engine) {
        const OPS: usize = 5000;
        let mut file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..OPS * 8).map(|i| (i % 251).to_le_bytes()[0]).collect();
        file.write_all(&content).unwrap();
        let iothread = start(engine, 0, 1);
        run(&iothread, || async move {
            let file = Rc::new(file);
            let tasks: Vec<_> = (0..OPS)
                .map(|index| {
                    let file = file.clone();
                    spawn_local(async move {
                        let mut buffer = [0u8; 8];
                        let iov = [iovec(&mut buffer)];
                        let offset = 8 * index as u64;
                        // SAFETY: the buffer outlives the await.
                        let read = unsafe { ops::readv(file.as_fd(), &iov, offset) }.await;
                        assert_eq!(read.unwrap(), 8);
                        buffer
                    })
                })
                .collect();
            for (index, task) in tasks.into_iter().enumerate() {
                assert_eq!(task.await[..], content[8 * index..8 * index + 8]);
            }
        });
    }

    /// As above with polls, which end much later than they are submitted, all at once.
    fn completions_overflow_the_queue(engine: Engine) {
        const OPS: usize = 3000;
        // Without a ring each poll has a descriptor of its own.
        let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        limit.current = limit.maximum;
        rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
        let event = eventfd(true);
        run(&start(engine, 0, 1), || async move {
            let event = Rc::new(event);
            let tasks: Vec<_> = (0..OPS)
                .map(|_| {
                    let event = event.clone();
                    spawn_local(
                        async move { ops::poll_add(event.as_fd(), libc::POLLIN).await.unwrap() },
                    )
                })
                .collect();
            time::sleep(Duration::from_millis(50)).await;
            assert!(tasks.iter().all(|task| !task.is_finished()));
            signal(&event);
            for task in tasks {
                assert_eq!(task.await, 1);
            }
        });
    }

    /// All of a round went to the kernel at its end: a disk that had ended everything at once stood
    /// still until the last of 32 requests was prepared, a tenth of the time.
    fn the_first_of_many_do_not_wait_for_the_last(engine: Engine) {
        let file = tempfile::tempfile().unwrap();
        let iothread = start(engine, 0, 256);
        let handle = iothread.handle();
        run(&iothread, move || async move {
            yield_now().await;
            let before = handle.stats();
            let mut bytes = vec![vec![7u8; 512]; 64];
            let iovs: Vec<_> = bytes.iter_mut().map(|bytes| [iovec(bytes)]).collect();
            let mut ops: Vec<_> = (0..)
                .zip(&iovs)
                // SAFETY: the buffers outlive the operations.
                .map(|(i, iov)| Box::pin(unsafe { ops::writev(file.as_fd(), iov, i * 512, 0) }))
                .collect();
            for op in &mut ops {
                assert!(poll_once(op.as_mut()).await.is_none());
            }
            let deadline = Instant::now() + Duration::from_secs(20);
            while file.metadata().unwrap().len() < 512 {
                assert!(Instant::now() < deadline, "nothing has been written");
            }
            // 4, 8, 16, 32; the rest at the end of the round, which has not come yet. Workers do not
            // wait at all.
            let enters = match engine {
                Engine::IoUring => 4,
                Engine::Threads => 0,
            };
            let after = handle.stats();
            assert_eq!(
                (after.enters - before.enters, after.rounds - before.rounds),
                (enters, 0)
            );
            for op in ops {
                assert_eq!(op.await.unwrap(), 512);
            }
            let len = file.metadata().unwrap().len();
            assert_eq!(len, 64 * 512);
        });
    }

    /// A ring takes the read back. A worker is waited for until it has come back from it.
    fn dropping_in_flight_releases_the_buffer_and_the_descriptor(engine: Engine) {
        run(&default_iothread(engine), move || async move {
            let (reader, mut writer) = std::io::pipe().unwrap();
            let mut buffer = vec![0u8; 16];
            {
                let iov = [iovec(&mut buffer)];
                // SAFETY: the operation is dropped before the buffer.
                let mut op = Box::pin(unsafe { ops::readv(reader.as_fd(), &iov, u64::MAX) });
                assert!(poll_once(op.as_mut()).await.is_none());
                // Handed to the kernel, where it waits for the pipe.
                time::sleep(Duration::from_millis(50)).await;
                let (began, pause) = (Instant::now(), Duration::from_millis(50));
                if engine == Engine::Threads {
                    let mut writer = writer.try_clone().unwrap();
                    std::thread::spawn(move || {
                        std::thread::sleep(pause);
                        writer.write_all(b"soon").unwrap();
                    });
                }
                drop(op);
                if engine == Engine::Threads {
                    assert!(began.elapsed() >= pause);
                    assert_eq!(&buffer[..4], b"soon");
                }
            }
            // A read still in flight would take this, given the time.
            writer.write_all(b"late").unwrap();
            time::sleep(Duration::from_millis(5)).await;
            let iov = [iovec(&mut buffer)];
            // SAFETY: the buffer outlives the await.
            let read = unsafe { ops::readv(reader.as_fd(), &iov, u64::MAX) }.await;
            assert_eq!(read.unwrap(), 4);
            assert_eq!(&buffer[..4], b"late");
        });
    }

    fn dropping_before_submission_and_from_the_backlog(engine: Engine) {
        run(&start(engine, 0, 1), || async {
            let event = eventfd(true);
            let mut ops: Vec<_> = (0..20)
                .map(|_| Box::pin(ops::poll_add(event.as_fd(), libc::POLLIN)))
                .collect();
            drop(ops.pop());
            for op in &mut ops {
                assert!(poll_once(op.as_mut()).await.is_none());
            }
            drop(ops);
            signal(&event);
            let events = ops::poll_add(event.as_fd(), libc::POLLIN).await;
            assert_eq!(events.unwrap(), 1);
        });
    }

    fn an_operation_may_change_its_waker(engine: Engine) {
        run(&default_iothread(engine), || async {
            let event = Rc::new(eventfd(true));
            let for_task = event.clone();
            // Polled by this task first, then by the other.
            let mut op =
                Box::pin(
                    async move { ops::poll_add(for_task.as_fd(), libc::POLLIN).await.unwrap() },
                );
            assert!(poll_once(op.as_mut()).await.is_none());
            let task = spawn_local(op);
            yield_now().await;
            signal(&event);
            assert_eq!(task.await, 1);
        });
    }

    fn kicks_arrive_on_both_kinds_of_eventfd(engine: Engine) {
        for nonblock in [true, false] {
            let iothread = default_iothread(engine);
            let kick = eventfd(nonblock);
            let guest_side = kick.try_clone().unwrap();
            let call = Arc::new(eventfd(true));
            let call_copy = call.try_clone().unwrap();
            iothread
                .handle()
                .spawn(move || async move {
                    let mut kick = ops::EventFd::new(kick);
                    let call = ops::Notifier::new(call_copy);
                    loop {
                        assert!(kick.wait().await.unwrap() > 0);
                        call.notify();
                    }
                })
                .unwrap();
            for round in 0..200 {
                if round % 20 == 0 {
                    // Long enough for the thread to block.
                    std::thread::sleep(Duration::from_millis(2));
                }
                signal(&guest_side);
                wait_readable(&call);
                let mut counter = [0; 8];
                rustix::io::read(&call, &mut counter).unwrap();
                assert_eq!(u64::from_ne_bytes(counter), 1);
            }
        }
    }

    fn readiness_reports_what_is_there_at_the_start(engine: Engine) {
        run(&default_iothread(engine), || async {
            let event = eventfd(true);
            signal(&event);
            let mut readiness = ops::Readiness::new(event, libc::POLLIN);
            assert_eq!(readiness.ready().await.unwrap(), 1);
            // Not again without a change.
            let wait = readiness.ready();
            let mut wait = std::pin::pin!(wait);
            assert!(poll_once(wait.as_mut()).await.is_none());
            time::sleep(Duration::from_millis(5)).await;
            assert!(poll_once(wait.as_mut()).await.is_none());
        });
    }

    fn readiness_reports_errors(engine: Engine) {
        run(&default_iothread(engine), || async {
            // Regular files are always ready; an O_PATH descriptor cannot be polled at all.
            let path = rustix::fs::open("/", rustix::fs::OFlags::PATH, rustix::fs::Mode::empty());
            let mut readiness = ops::Readiness::new(path.unwrap(), libc::POLLIN);
            for _ in 0..2 {
                let error = readiness.ready().await.unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::EBADF));
            }
        });
    }

    /// A regular file is always ready to be read and written. What else is asked for never comes, which is
    /// said instead of waited for, or tried for ever.
    fn readiness_of_a_file_that_is_always_ready(engine: Engine) {
        run(&default_iothread(engine), || async {
            let file = tempfile::tempfile().unwrap();
            let mut readiness = ops::Readiness::new(file.try_clone().unwrap(), libc::POLLIN);
            assert_eq!(readiness.ready().await.unwrap(), 1);
            let mut readiness = ops::Readiness::new(file, libc::POLLPRI);
            for _ in 0..2 {
                let error = readiness.ready().await.unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
            }
        });
    }

    fn counter(fd: &OwnedFd) -> u64 {
        let mut counter = [0; 8];
        match rustix::io::read(fd, &mut counter) {
            Ok(_) => u64::from_ne_bytes(counter),
            Err(_) => 0,
        }
    }

    /// One that waits for room in its counter does so once, however often it is asked: each call of
    /// a guest that never reads its interrupts had an operation of its own, for ever.
    fn one_notification_is_under_way_at_most(engine: Engine) {
        const FULL: u64 = u64::MAX - 1;
        for nonblock in [true, false] {
            let call = eventfd(nonblock);
            let guest_side = call.try_clone().unwrap();
            rustix::io::write(&guest_side, &FULL.to_ne_bytes()).unwrap();
            let iothread = default_iothread(engine);
            run(&iothread, move || async move {
                let call = ops::Notifier::new(call);
                for _ in 0..10_000 {
                    call.notify();
                    yield_now().await;
                }
                // Room again: what was asked for last is not lost.
                if !nonblock {
                    assert_eq!(counter(&guest_side), FULL);
                    let began = Instant::now();
                    let mut seen = 0;
                    while seen < 2 {
                        assert!(began.elapsed() < HANG, "{seen}");
                        time::sleep(Duration::from_millis(1)).await;
                        if wait_writable_now(&guest_side) {
                            seen += counter_without_blocking(&guest_side);
                        }
                    }
                    time::sleep(Duration::from_millis(20)).await;
                    assert_eq!(counter_without_blocking(&guest_side), 0);
                    assert_eq!(seen, 2);
                }
            });
        }
    }

    /// Neither the end of a notifier nor a wait for it hangs on somebody who does not read.
    fn a_full_counter_is_not_waited_for(engine: Engine) {
        const FULL: u64 = u64::MAX - 1;
        for nonblock in [true, false] {
            let call = eventfd(nonblock);
            let guest_side = call.try_clone().unwrap();
            rustix::io::write(&guest_side, &FULL.to_ne_bytes()).unwrap();
            let watch = guest_side.try_clone().unwrap();
            run(&default_iothread(engine), move || async move {
                let notifier = ops::Notifier::new(call);
                notifier.notify();
                notifier.settle().await;
                notifier.notify();
                time::sleep(Duration::from_millis(5)).await;
                drop(notifier);
                // Nothing comes after that.
                assert_eq!(counter(&guest_side), FULL);
                time::sleep(Duration::from_millis(20)).await;
            });
            assert_eq!(counter_without_blocking(&watch), 0);
        }
    }

    /// Whoever waits for it finds it done.
    fn a_settled_notification_has_gone_out(engine: Engine) {
        for nonblock in [true, false] {
            let call = eventfd(nonblock);
            let guest_side = call.try_clone().unwrap();
            run(&default_iothread(engine), move || async move {
                let call = ops::Notifier::new(call);
                for _ in 0..20 {
                    call.notify();
                    call.settle().await;
                    assert_eq!(counter_without_blocking(&guest_side), 1);
                }
            });
        }
    }

    fn is_ready(fd: &OwnedFd, events: rustix::event::PollFlags) -> bool {
        let mut fds = [rustix::event::PollFd::new(fd, events)];
        let now = rustix::event::Timespec::default();
        rustix::event::poll(&mut fds, Some(&now)).unwrap() == 1
    }

    fn wait_writable_now(fd: &OwnedFd) -> bool {
        is_ready(fd, rustix::event::PollFlags::OUT)
    }

    fn counter_without_blocking(fd: &OwnedFd) -> u64 {
        match is_ready(fd, rustix::event::PollFlags::IN) {
            true => counter(fd),
            false => 0,
        }
    }

    fn wait_readable(fd: &OwnedFd) {
        let mut fds = [rustix::event::PollFd::new(fd, rustix::event::PollFlags::IN)];
        let timeout = rustix::event::Timespec {
            tv_sec: 30,
            tv_nsec: 0,
        };
        assert_eq!(rustix::event::poll(&mut fds, Some(&timeout)).unwrap(), 1);
    }
}
