//! Where io_uring is forbidden an iothread does without, and says why.
#![cfg(not(loom))]

mod common;

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        os::fd::AsFd,
        process::{Command, Output},
        time::{Duration, Instant},
    };

    use standfast_iothread::{Config, Engine, IoThread, StartError, Unavailable, ops, probe, time};

    use crate::common::*;

    const CHILD: &str = "STANDFAST_IOTHREAD_FORBIDDEN_CHILD";

    /// Has a child of this program run one of these tests, which then is that child.
    fn in_child(test: &str, what: &str) -> Output {
        Command::new(std::env::current_exe().unwrap())
            .args([&format!("tests::{test}"), "--exact", "--nocapture"])
            .env(CHILD, what)
            .output()
            .unwrap()
    }

    fn passes(output: &Output) {
        let text = [&output.stdout[..], &output.stderr[..]].concat();
        let text = String::from_utf8_lossy(&text);
        assert!(output.status.success(), "{text}");
        assert!(text.contains("1 passed"), "{text}");
    }

    /// From now on the system calls `first..=last` fail with `errno` in this process. Only a child does
    /// that to itself: it cannot be undone.
    fn refuse(first: u32, last: u32, errno: i32) {
        /// `BPF_LD | BPF_W | BPF_ABS`, `BPF_JMP | BPF_JGE | BPF_K`, and so on.
        const LOAD_NUMBER: u16 = 0x20;
        const AT_LEAST: u16 = 0x35;
        const GREATER: u16 = 0x25;
        const RETURN: u16 = 0x06;
        let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
        let mut steps = [
            step(LOAD_NUMBER, 0, 0, 0),
            step(AT_LEAST, 0, 2, first),
            step(GREATER, 1, 0, last),
            step(
                RETURN,
                0,
                0,
                libc::SECCOMP_RET_ERRNO | errno.cast_unsigned(),
            ),
            step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
        ];
        let program = libc::sock_fprog {
            len: u16::try_from(steps.len()).unwrap(),
            filter: steps.as_mut_ptr(),
        };
        // SAFETY: changes what this process may do, and nothing else.
        let done = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
        assert_eq!(done, 0);
        // SAFETY: the program outlives the call, which copies it. All threads get it.
        let done = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                libc::SECCOMP_FILTER_FLAG_TSYNC,
                &raw const program,
            )
        };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    }

    fn number(call: libc::c_long) -> u32 {
        u32::try_from(call).unwrap()
    }

    /// Requests, timers, kicks and messages go on without a ring.
    fn works(iothread: &IoThread) {
        run(iothread, || async {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&[7; 4096]).unwrap();
            let mut bytes = [0u8; 8];
            let iov = [iovec(&mut bytes)];
            // SAFETY: the buffer outlives the await.
            let read = unsafe { ops::readv(file.as_fd(), &iov, 0) }.await;
            assert_eq!((read.unwrap(), bytes), (8, [7; 8]));
            time::sleep(Duration::from_micros(1500)).await;
            let event = eventfd(true);
            signal(&event);
            let mut kick = ops::EventFd::new(event);
            assert_eq!(kick.wait().await.unwrap(), 1);
        });
    }

    #[test]
    fn by_a_seccomp_filter() {
        let cases = [
            ("all", libc::EPERM, Unavailable::Forbidden),
            ("all", libc::ENOSYS, Unavailable::NotSupported),
            // As by a kernel before 6.1, and where locked memory is short.
            ("all", libc::EINVAL, Unavailable::TooOld),
            ("all", libc::ENOMEM, Unavailable::Memory { entries: 256 }),
            // Made, and then of no use.
            ("enter", libc::EPERM, Unavailable::Forbidden),
            ("register", libc::EPERM, Unavailable::Forbidden),
        ];
        let Ok(child_is) = std::env::var(CHILD) else {
            assert_eq!(probe(), Ok(()), "to be had without a filter");
            for (index, _) in cases.iter().enumerate() {
                passes(&in_child("by_a_seccomp_filter", &index.to_string()));
            }
            return;
        };
        let (what, errno, why) = cases[child_is.parse::<usize>().unwrap()];
        let (first, last) = match what {
            "enter" => (libc::SYS_io_uring_enter, libc::SYS_io_uring_enter),
            "register" => (libc::SYS_io_uring_register, libc::SYS_io_uring_register),
            _ => (libc::SYS_io_uring_setup, libc::SYS_io_uring_register),
        };
        refuse(number(first), number(last), errno);
        assert_eq!(probe(), Err(why));
        let iothread = start_with(Config::default());
        let handle = iothread.handle();
        assert_eq!(
            (handle.engine(), handle.fallback()),
            (Engine::Threads, Some(why))
        );
        works(&iothread);
        // Asked for by name there is nothing else.
        let by_name = Config {
            engine: Some(Engine::IoUring),
            ..Config::default()
        };
        let error = IoThread::spawn(by_name).unwrap_err();
        assert!(matches!(error, StartError::Unavailable(no) if no == why));
        assert!(error.to_string().starts_with("io_uring is not available ("));
        // And who has asked for threads has not lost anything.
        let iothread = start_with(config(Engine::Threads));
        assert_eq!(iothread.handle().fallback(), None);
    }

    /// Timers of less than a millisecond need `epoll_pwait2`, which older filters do not know.
    #[test]
    fn a_filter_that_knows_only_the_older_epoll() {
        if std::env::var(CHILD).is_err() {
            for errno in [libc::EPERM, libc::ENOSYS] {
                let test = "a_filter_that_knows_only_the_older_epoll";
                passes(&in_child(test, &errno.to_string()));
            }
            return;
        }
        let errno = std::env::var(CHILD).unwrap().parse().unwrap();
        let call = number(libc::SYS_epoll_pwait2);
        const SLEEP: Duration = Duration::from_micros(200);
        const MS: Duration = Duration::from_millis(1);
        let iothread = start(Engine::Threads, 0, 1);
        let exact = run(&iothread, || shortest_sleep(SLEEP));
        assert!((SLEEP..MS).contains(&exact), "{exact:?}");
        refuse(call, call, errno);
        let coarse = run(&iothread, || shortest_sleep(SLEEP));
        assert!(coarse >= MS, "by the older call: {coarse:?}");
        works(&iothread);
        // One that has never known the newer call, and then nothing to wait for but what is further away
        // than the older one can tell.
        let iothread = start(Engine::Threads, 0, 1);
        let far = || time::sleep(Duration::from_hours(24 * 60));
        iothread.handle().spawn(far).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        works(&iothread);
        std::thread::sleep(Duration::from_millis(50));
        works(&iothread);
    }

    /// From now on this process has no more threads than `max`, if that is less than it may have at all.
    fn limit_threads(max: libc::rlim_t) {
        let mut limit = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // SAFETY: fills the struct.
        assert_eq!(0, unsafe {
            libc::getrlimit(libc::RLIMIT_NPROC, &raw mut limit)
        });
        limit.rlim_cur = max.min(limit.rlim_max);
        // SAFETY: reads the struct.
        assert_eq!(0, unsafe {
            libc::setrlimit(libc::RLIMIT_NPROC, &raw const limit)
        });
    }

    /// Makes this process that of a user which has no other, and to whom limits apply. Needs root.
    fn be_nobody() {
        let user = 1_000_000_000 + std::process::id();
        // SAFETY: changes who this process is, and nothing else.
        let done = unsafe { libc::setresuid(user, user, user) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    }

    /// Has a read under way on a lane that goes by workers: pending as long as this looks, without an error,
    /// and served soon after threads are to be had, although nothing else is asked of the iothread.
    async fn waits_for_a_worker() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 4096]).unwrap();
        let lane = ops::Lane::by_workers();
        let mut bytes = [0u8; 8];
        let iov = [iovec(&mut bytes)];
        // SAFETY: the buffer outlives the operation.
        let mut op = Box::pin(unsafe { ops::readv(file.as_fd(), &iov, 0) }.on(&lane));
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(2500) {
            let result = poll_once(op.as_mut()).await;
            assert!(result.is_none(), "no worker: {result:?}");
            time::sleep(Duration::from_millis(10)).await;
        }
        limit_threads(libc::RLIM_INFINITY);
        let result = loop {
            match poll_once(op.as_mut()).await {
                Some(result) => break result,
                None => assert!(began.elapsed() < HANG, "it hangs"),
            }
            time::sleep(Duration::from_millis(10)).await;
        };
        assert_eq!(result.unwrap(), 8);
    }

    /// Where no thread can be started I/O waits until one can: an error would be the guest's.
    #[test]
    fn no_thread_to_be_had() {
        let engine = match std::env::var(CHILD).as_deref() {
            Err(_) => {
                for engine in ["io_uring", "threads"] {
                    passes(&in_child("no_thread_to_be_had", engine));
                }
                return;
            }
            Ok("io_uring") => Engine::IoUring,
            Ok(_) => Engine::Threads,
        };
        be_nobody();
        let iothread = default_iothread(engine);
        let handle = iothread.handle();
        let threads = std::fs::read_dir("/proc/self/task").unwrap().count();
        // Room for the iothread itself, which engine threads would be of no use without a worker.
        limit_threads(threads as libc::rlim_t + 1);
        let error = IoThread::spawn(config(Engine::Threads)).unwrap_err();
        assert!(matches!(error, StartError::Thread(_)), "{error}");
        limit_threads(1);
        let hung = (engine == Engine::Threads).then(|| std::io::pipe().unwrap());
        let done = iothread.handle().run_blocking(move || async move {
            let Some((reader, mut writer)) = hung else {
                assert_eq!(handle.stats().workers, 0);
                return waits_for_a_worker().await;
            };
            // The only worker is in a call that hangs.
            let mut byte = [0u8];
            let iov = [iovec(&mut byte)];
            let lane = ops::Lane::by_workers();
            // SAFETY: the buffer outlives the operation.
            let op = unsafe { ops::readv(reader.as_fd(), &iov, u64::MAX) };
            let mut op = Box::pin(op.on(&lane));
            assert!(poll_once(op.as_mut()).await.is_none());
            waits_for_a_worker().await;
            assert_eq!(handle.stats().workers, 2);
            writer.write_all(b"x").unwrap();
            assert_eq!(op.await.unwrap(), 1);
        });
        done.unwrap();
    }
}
