//! Storage that hangs, on an iothread without io_uring. Needs root and FUSE.

mod common;

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;
    use std::time::{Duration, Instant};

    use block::Node;
    use iothread::{Config, Engine, IoThread, time};
    use standfast_drivers::{FileDriver, FileOptions};
    use testkit::place::PATIENCE;
    use testkit::{FuseFile, FuseOp};

    use super::common::{Op, node, pattern};

    const BYTES: usize = 1 << 20;

    fn file_node(path: &std::path::Path, direct: bool) -> Arc<Node> {
        let options = FileOptions {
            filename: path.to_str().expect("ASCII").to_owned(),
            cache_direct: direct,
            ..FileOptions::default()
        };
        node(FileDriver::open_file(options).expect("it opens"))
    }

    fn start() -> IoThread {
        let config = Config {
            engine: Some(Engine::Threads),
            ..Config::default()
        };
        IoThread::spawn(config).expect("an iothread")
    }

    fn until(what: &str, mut condition: impl FnMut() -> bool) {
        let begin = Instant::now();
        while !condition() {
            assert!(begin.elapsed() < PATIENCE, "never: {what}");
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Three nodes whose 200 requests each hang leave one that is served; what they have in workers is
    /// bounded, and all of it ends when the storage answers.
    #[test]
    fn nodes_that_hang_keep_no_other_from_being_served() {
        let fuses: Vec<_> = (0..3)
            .map(|_| FuseFile::new(BYTES).expect("root, and /dev/fuse"))
            .collect();
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("image");
        let file = std::fs::File::create(&path).expect("a file");
        file.set_len(BYTES as u64).expect("sparse");
        let healthy = file_node(&path, false);
        let hanging: Vec<_> = (fuses.iter())
            .map(|fuse| file_node(&fuse.path(), true))
            .collect();
        for fuse in &fuses {
            fuse.hang(FuseOp::Write, true);
        }

        let iothread = start();
        let handle = iothread.handle();
        let (ended, all) = std::sync::mpsc::channel();
        for (number, node) in hanging.iter().enumerate() {
            for request in 0..200_u64 {
                let (node, ended) = (Arc::clone(node), ended.clone());
                let spawned = handle.spawn(move || async move {
                    let data = pattern(request, 4096);
                    let result = Op::write(request * 4096, data).run(&node).await;
                    ended.send((number, result)).expect("it is waited for");
                });
                spawned.expect("it runs");
            }
        }
        for fuse in &fuses {
            until("they hang", || fuse.count(FuseOp::Write) > 0);
        }
        thread::sleep(Duration::from_millis(100));
        let begun: u64 = fuses.iter().map(|fuse| fuse.count(FuseOp::Write)).sum();
        assert!(begun < 64, "{begun} of them are in calls");
        assert!(handle.stats().workers <= 64, "{:?}", handle.stats());

        let served = Arc::clone(&healthy);
        let slowest = handle.run_blocking(move || async move {
            let mut slowest = Duration::ZERO;
            for request in 0..200_u64 {
                let begin = Instant::now();
                let mut op = Op::write(request * 4096, pattern(request, 4096));
                op.run(&served).await.expect("it is served");
                slowest = slowest.max(begin.elapsed());
                time::sleep(Duration::from_micros(100)).await;
            }
            slowest
        });
        assert!(slowest.expect("it runs") < Duration::from_secs(5));
        assert!(all.try_recv().is_err(), "the others hang");

        for fuse in &fuses {
            fuse.hang(FuseOp::Write, false);
        }
        for _ in 0..600 {
            let (_, result) = all.recv_timeout(PATIENCE).expect("they end");
            result.expect("it is written");
        }
        for fuse in &fuses {
            let content = fuse.content();
            for request in 0..200 {
                let at = request * 4096;
                assert_eq!(
                    content[at..at + 4096],
                    pattern(request as u64, 4096)[..],
                    "{request}"
                );
            }
        }
    }

    /// Eight openings of one server that did not answer had all 64 workers, and a disk on other storage waited
    /// for it. Another opening of that server is none of the others.
    #[test]
    fn a_server_that_hangs_leaves_others_something_however_many_use_it() {
        let fuse = FuseFile::new(BYTES).expect("root, and /dev/fuse");
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("image");
        let file = std::fs::File::create(&path).expect("a file");
        file.set_len(BYTES as u64).expect("sparse");
        let healthy = file_node(&path, false);
        let hanging: Vec<_> = (0..20).map(|_| file_node(&fuse.path(), true)).collect();
        fuse.hang(FuseOp::Read, true);
        let before = fuse.count(FuseOp::Read);

        let iothread = start();
        let handle = iothread.handle();
        let (ended, all) = std::sync::mpsc::channel();
        for request in 0..30_u64 {
            for node in &hanging {
                let (node, ended) = (Arc::clone(node), ended.clone());
                let spawned = handle.spawn(move || async move {
                    let result = Op::read(request * 4096, 4096).run(&node).await;
                    ended.send(result).expect("it is waited for");
                });
                spawned.expect("it runs");
            }
        }
        let begun = || fuse.count(FuseOp::Read) - before;
        let begin = Instant::now();
        while begun() < 32 && begin.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(2));
        }
        thread::sleep(Duration::from_millis(100));
        let in_calls = begun();

        let served = Arc::clone(&healthy);
        let (done, wait) = std::sync::mpsc::channel();
        let spawned = handle.spawn(move || async move {
            for request in 0..200_u64 {
                let mut op = Op::write(request * 4096, pattern(request, 4096));
                op.run(&served).await.expect("it is served");
            }
            done.send(()).expect("it is waited for");
        });
        spawned.expect("it runs");
        let in_time = wait.recv_timeout(Duration::from_secs(5));
        let none_ended = all.try_recv().is_err();
        // Before anything is asserted: what hangs could not be ended otherwise.
        fuse.hang(FuseOp::Read, false);
        for _ in 0..600 {
            let result = all.recv_timeout(PATIENCE).expect("they end");
            result.expect("it is read");
        }
        in_time.expect("it is served meanwhile");
        // All of them began at once: half, of which each has some.
        assert_eq!(in_calls, 32);
        assert!(none_ended, "the others hang");
    }

    /// The end of an iothread waits for the calls of its own workers only: another one ends at once.
    #[test]
    fn the_end_of_another_iothread_does_not_wait() {
        let fuse = FuseFile::new(BYTES).expect("root, and /dev/fuse");
        let hanging = file_node(&fuse.path(), true);
        fuse.hang(FuseOp::Read, true);
        // Opening it has read there.
        let before = fuse.count(FuseOp::Read);
        let (first, second) = (start(), start());
        let on_first = Arc::clone(&hanging);
        let spawned = first.handle().spawn(move || async move {
            let _ = Op::read(0, 4096).run(&on_first).await;
        });
        spawned.expect("it runs");
        until("it hangs", || fuse.count(FuseOp::Read) > before);
        let begin = Instant::now();
        second.shutdown();
        assert!(begin.elapsed() < Duration::from_secs(5));
        let (ended, wait) = std::sync::mpsc::channel();
        let end = thread::spawn(move || {
            first.shutdown();
            ended.send(()).expect("it is waited for");
        });
        let early = wait.recv_timeout(Duration::from_millis(200));
        assert!(early.is_err(), "a worker still uses the buffer");
        fuse.hang(FuseOp::Read, false);
        wait.recv_timeout(PATIENCE).expect("it ends");
        end.join().expect("it has ended");
    }

    /// A worker that tried again when its call was interrupted did so for ever: storage may say that.
    #[test]
    fn a_storage_that_says_it_was_interrupted_is_an_error() {
        let fuse = FuseFile::new(BYTES).expect("root, and /dev/fuse");
        let disk = file_node(&fuse.path(), true);
        fuse.fail(FuseOp::Read, libc::EINTR);
        let (iothread, (ended, wait)) = (start(), std::sync::mpsc::channel());
        let spawned = iothread.handle().spawn(move || async move {
            let result = Op::read(0, 4096).run(&disk).await;
            ended.send(result).expect("it is waited for");
        });
        spawned.expect("it runs");
        let result = wait.recv_timeout(PATIENCE);
        fuse.fail(FuseOp::Read, 0);
        let error = result.expect("it ends").expect_err("it fails");
        assert_eq!(error.errno(), libc::EINTR);
    }
}
