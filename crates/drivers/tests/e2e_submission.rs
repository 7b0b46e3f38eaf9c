//! Storage that blocks whoever hands it a request must not stop the iothread: such file systems go by workers.
//! Needs root and FUSE.

mod common;

#[cfg(test)]
mod tests {
    use std::fmt::Write;
    use std::sync::Arc;
    use std::thread;
    use std::time::{Duration, Instant};

    use block::Node;
    use iothread::{Config, Engine, IoThread};
    use standfast_drivers::file::Aio;
    use standfast_drivers::{FileDriver, FileOptions};
    use testkit::place::PATIENCE;
    use testkit::{FuseFile, FuseOp};

    use super::common::{Op, node, pattern};

    const BYTES: usize = 1 << 20;

    /// How a file is opened, and what it is asked.
    #[derive(Clone, Copy, Debug)]
    struct Case {
        /// O_DIRECT.
        direct: bool,
        /// The server lets the page cache have it.
        cached: bool,
        op: FuseOp,
    }

    fn cases() -> Vec<Case> {
        let mut cases = Vec::new();
        for direct in [false, true] {
            for cached in [false, true] {
                for op in [
                    FuseOp::Read,
                    FuseOp::Write,
                    FuseOp::Fsync,
                    FuseOp::Fallocate,
                ] {
                    cases.push(Case { direct, cached, op });
                }
            }
        }
        cases
    }

    fn open(fuse: &FuseFile, case: Case, aio: Option<Aio>) -> Arc<Node> {
        let driver = FileDriver::open_file(FileOptions {
            filename: fuse.path().to_str().expect("ASCII").to_owned(),
            cache_direct: case.direct,
            aio,
            ..FileOptions::default()
        });
        node(driver.expect("it opens"))
    }

    fn start() -> IoThread {
        let config = Config {
            engine: Some(Engine::IoUring),
            ..Config::default()
        };
        IoThread::spawn(config).expect("io_uring")
    }

    fn until(what: &str, mut condition: impl FnMut() -> bool) {
        let begin = Instant::now();
        while !condition() {
            assert!(begin.elapsed() < PATIENCE, "never: {what}");
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Whether an iothread does something else, within `limit`, while a request hangs; none: no request came
    /// to the server.
    fn goes_on(case: Case, aio: Option<Aio>, limit: Duration) -> Option<bool> {
        let fuse = FuseFile::new(BYTES).expect("root, and /dev/fuse");
        fuse.cache(case.cached);
        let disk = open(&fuse, case, aio);
        fuse.hang(case.op, true);
        let iothread = start();
        let handle = iothread.handle();
        let request = handle.run(move || async move {
            let mut op = match case.op {
                FuseOp::Read => Op::read(0, 4096),
                FuseOp::Write => Op::write(0, pattern(1, 4096)),
                FuseOp::Fallocate => Op::zeroes(0, 4096, true),
                _ => Op::flush(),
            };
            op.run(&disk).await
        });
        let begin = Instant::now();
        while fuse.count(case.op) == 0 && begin.elapsed() < limit.max(Duration::from_secs(1)) {
            thread::sleep(Duration::from_millis(1));
        }
        let came = fuse.count(case.op) > 0;
        let (answer, answered) = std::sync::mpsc::channel();
        let spawned = handle.spawn(move || async move {
            // Nobody waits any more if it was late.
            let _ = answer.send(());
        });
        spawned.expect("it runs");
        let goes_on = answered.recv_timeout(limit).is_ok();
        fuse.hang(case.op, false);
        let done = pollster::block_on(request).expect("it runs");
        done.expect("the storage answers");
        came.then_some(goes_on)
    }

    /// A file that hangs stopped every disk of its iothread, whose clients saw no error and no end.
    #[test]
    fn fuse_that_hangs_stops_no_iothread() {
        for case in cases() {
            for aio in [None, Some(Aio::IoUring)] {
                let goes_on = goes_on(case, aio, PATIENCE);
                assert!(goes_on != Some(false), "{case:?} {aio:?}");
            }
        }
    }

    /// The measurement that `file_systems.rs` refers to: what a ring does to the thread that submits.
    #[test]
    #[ignore = "measures the kernel: cargo test -p standfast-drivers --test e2e_submission measure -- --ignored --nocapture"]
    fn measure_fuse_through_a_ring() {
        let mut report = String::new();
        for case in cases() {
            let goes_on = goes_on(case, Some(Aio::IoUringAnywhere), Duration::from_millis(500));
            let said = match goes_on {
                Some(true) => "goes on",
                Some(false) => "STANDS STILL",
                None => "(not asked)",
            };
            writeln!(report, "{case:?}: {said}").expect("memory");
        }
        let mut file = std::io::stderr();
        std::io::Write::write_all(&mut file, report.as_bytes()).expect("stderr");
    }

    /// The same for a directory on any file system: the longest time that an iothread stood still, beside the
    /// longest request, while 1 MiB is written, flushed and read again and again.
    #[test]
    #[ignore = "measures a file system: STANDFAST_MEASURE=DIRECTORY, as above"]
    fn measure_a_directory() {
        let directory =
            std::env::var_os("STANDFAST_MEASURE").expect("STANDFAST_MEASURE is a directory");
        let file = tempfile::NamedTempFile::new_in(directory).expect("a file");
        file.as_file().set_len(256 << 20).expect("sparse");
        for direct in [false, true] {
            let options = FileOptions {
                filename: file.path().to_str().expect("ASCII").to_owned(),
                cache_direct: direct,
                aio: Some(Aio::IoUringAnywhere),
                ..FileOptions::default()
            };
            let disk = node(FileDriver::open_file(options).expect("it opens"));
            let data = pattern(1, 1 << 20);
            let iothread = start();
            let measured = iothread.handle().run_blocking(move || async move {
                let ticker = iothread::spawn_local(async {
                    let mut longest = Duration::ZERO;
                    for _ in 0..5000 {
                        let begin = Instant::now();
                        iothread::time::sleep(Duration::from_micros(100)).await;
                        longest = longest.max(begin.elapsed());
                    }
                    longest
                });
                let mut slowest = Duration::ZERO;
                for turn in 0..100_u64 {
                    for mut op in [
                        Op::write(turn << 20, data.clone()),
                        Op::flush(),
                        Op::read(turn << 20, 1 << 20),
                    ] {
                        let begin = Instant::now();
                        op.run(&disk).await.expect("it works");
                        slowest = slowest.max(begin.elapsed());
                    }
                }
                (ticker.await, slowest)
            });
            let (stood, slowest) = measured.expect("it runs");
            let line =
                format!("direct {direct}: stood still {stood:?}, slowest request {slowest:?}\n");
            std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes()).expect("stderr");
        }
    }

    /// Not a test of the product: that what the tests above wait for is what they say.
    #[test]
    fn a_hanging_request_is_seen() {
        let fuse = FuseFile::new(BYTES).expect("root, and /dev/fuse");
        let case = Case {
            direct: true,
            cached: false,
            op: FuseOp::Write,
        };
        let disk = open(&fuse, case, None);
        let info = disk.driver().info().engine.expect("a file has one");
        assert_eq!((info.engine, info.required), (Engine::Threads, false));
        assert!(
            info.note
                .is_some_and(|note| note.contains("does not say what it is"))
        );
        fuse.hang(FuseOp::Write, true);
        let iothread = start();
        let request = iothread
            .handle()
            .run(move || async move { Op::write(0, pattern(1, 4096)).run(&disk).await });
        until("it hangs", || fuse.count(FuseOp::Write) > 0);
        assert_eq!(iothread.handle().stats().workers, 1);
        fuse.hang(FuseOp::Write, false);
        pollster::block_on(request)
            .expect("it runs")
            .expect("written");
    }
}
