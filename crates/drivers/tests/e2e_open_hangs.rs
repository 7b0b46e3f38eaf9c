//! An image that is opened again and again, by somebody who gives up each time. Needs root and FUSE.

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};
    use std::thread;
    use std::time::{Duration, Instant};

    use standfast_drivers::file::Medium;
    use standfast_drivers::{FileDriver, FileOptions};
    use testkit::place::PATIENCE;
    use testkit::{FuseFile, FuseOp};

    fn until(what: &str, mut condition: impl FnMut() -> bool) {
        let begin = Instant::now();
        while !condition() {
            assert!(begin.elapsed() < PATIENCE, "never: {what}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// How many threads wait for storage.
    fn threads() -> usize {
        let tasks = std::fs::read_dir("/proc/self/task").expect("there are some");
        let names =
            tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
        names.filter(|name| name.trim() == "block-beside").count()
    }

    /// Threads are bounded, of all storage together: what hangs must not take them from what does not.
    #[test]
    fn what_hangs_takes_one_thread() {
        for op in [FuseOp::Open, FuseOp::GetAttr] {
            let fuse = FuseFile::new(1 << 20).expect("root, and /dev/fuse");
            let path = fuse.path();
            let options = || FileOptions {
                filename: path.to_str().expect("ASCII").to_owned(),
                ..FileOptions::default()
            };
            let before = fuse.count(op);
            fuse.hang(op, true);
            for _ in 0..20 {
                let mut opened = Box::pin(FileDriver::open(Medium::File, options()));
                let mut cx = Context::from_waker(Waker::noop());
                until("it hangs", || {
                    assert!(opened.as_mut().poll(&mut cx).is_pending());
                    fuse.count(op) > before
                });
            }
            assert_eq!(threads(), 1);
            fuse.hang(op, false);
            let opened = pollster::block_on(FileDriver::open(Medium::File, options()));
            drop(opened.expect("it answers"));
            until("no thread is left", || threads() == 0);
        }
    }
}
