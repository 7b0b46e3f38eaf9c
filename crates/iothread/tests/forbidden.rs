//! Where io_uring is forbidden an iothread does without, and says why.
#![cfg(not(loom))]

mod common;

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        os::fd::AsFd,
        process::{Command, Output},
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
            time::sleep(std::time::Duration::from_micros(1500)).await;
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
        refuse(call, call, errno);
        let iothread = start(Engine::Threads, 0, 1);
        works(&iothread);
        run(&iothread, || async {
            for _ in 0..5 {
                let began = std::time::Instant::now();
                time::sleep(std::time::Duration::from_micros(1300)).await;
                assert!(began.elapsed() >= std::time::Duration::from_micros(1300));
            }
        });
    }
}
