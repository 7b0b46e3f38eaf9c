//! `detect-zeroes` on real files: what is written reads back the same, and zeroes take no space where the
//! storage can do that.
//!
//! Needs tmpfs.

mod common;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

    use block::{Buffers, DetectZeroes, Driver, Io, IoFuture, Node, NodeInfo, Operation};
    use standfast_drivers::file::Discard;
    use standfast_drivers::{DetectingZeroes, FileDriver, FileOptions};
    use testkit::Tmpfs;

    use super::common::format::options;
    use super::common::{Bench, Op, pattern};

    const LENGTH: u64 = 1 << 20;
    const KIB: usize = 1 << 10;

    fn detecting(path: &Path, direct: bool, mode: DetectZeroes) -> Arc<Node> {
        let driver = FileDriver::open_file(FileOptions {
            discard: match mode {
                DetectZeroes::Unmap => Discard::Unmap,
                _ => Discard::Ignore,
            },
            ..options(path, direct)
        });
        let driver = DetectingZeroes::around(Box::new(driver.expect("opens")), mode);
        Node::new("file0", driver)
    }

    /// Bytes that the storage has for it.
    fn allocated(image: &tempfile::NamedTempFile) -> u64 {
        image.as_file().sync_all().expect("durable");
        image.as_file().metadata().expect("stat").blocks() * 512
    }

    #[test]
    fn zeroes_take_no_space() {
        let bench = Bench::new();
        let tmpfs = Tmpfs::new(16 << 20).expect("a tmpfs");
        let disk = Path::new(env!("CARGO_TARGET_TMPDIR"));
        for (dir, direct) in [(tmpfs.path(), false), (disk, false), (disk, true)] {
            for mode in [DetectZeroes::Off, DetectZeroes::On, DetectZeroes::Unmap] {
                let image = tempfile::NamedTempFile::new_in(dir).expect("a file");
                image.as_file().set_len(LENGTH).expect("sparse");
                let node = detecting(image.path(), direct, mode);
                assert_eq!(node.driver().info().detect_zeroes, mode);
                assert_eq!(node.driver().name(), "file");
                let mut zeroes = Op::write(64 << 10, vec![0; 512 * KIB]);
                // Wherever the memory lies.
                zeroes.split = vec![3, 5000, 0, 255, 256];
                zeroes.fua = true;
                let mut model = vec![0; usize::try_from(LENGTH).expect("small")];
                bench.run(&node, zeroes.clone()).expect("space");
                let after = allocated(&image);
                match mode {
                    DetectZeroes::Unmap => assert_eq!(after, 0, "{dir:?} {direct}"),
                    DetectZeroes::Off => assert!(after >= 512 << 10, "{after}"),
                    // Zeroes may be allocated.
                    DetectZeroes::On => {}
                }
                let data = pattern(5, 512 * KIB);
                bench
                    .run(&node, Op::write(64 << 10, data.clone()))
                    .expect("space");
                model[64 * KIB..576 * KIB].copy_from_slice(&data);
                assert!(allocated(&image) >= 512 << 10);
                // One byte that is not zero, wherever it is, is data.
                for at in [0, 255, 256, 4096 + 255, 300_000, 512 * KIB - 1] {
                    let mut almost = zeroes.clone();
                    almost.data[at] = 1;
                    bench.run(&node, almost).expect("space");
                    model[64 * KIB..576 * KIB].fill(0);
                    model[64 * KIB + at] = 1;
                    assert!(
                        std::fs::read(image.path()).expect("readable") == model,
                        "{at}"
                    );
                    assert!(
                        allocated(&image) >= 512 << 10,
                        "what is written as data takes space"
                    );
                }
                bench.run(&node, zeroes).expect("space");
                model.fill(0);
                assert!(std::fs::read(image.path()).expect("readable") == model);
                if mode == DetectZeroes::Unmap {
                    assert_eq!(allocated(&image), 0, "it was given back");
                }
                // What covers no whole block is zeroed, too.
                image.as_file().write_all_at(&[7; 9000], 0).expect("space");
                drop(node);
                let node = detecting(image.path(), direct, mode);
                bench
                    .run(&node, Op::write(100, vec![0; 8000]))
                    .expect("space");
                model[..100].fill(7);
                model[8100..9000].fill(7);
                assert!(std::fs::read(image.path()).expect("readable") == model);
            }
        }
    }

    /// A write without memory was all zeroes.
    #[test]
    fn a_write_without_its_memory_is_refused_as_ever() {
        let bench = Bench::new();
        let image = tempfile::NamedTempFile::new().expect("a file");
        image.as_file().write_all_at(&[7; 4096], 0).expect("space");
        let node = detecting(image.path(), false, DetectZeroes::On);
        let run = move || async move {
            let write = Io {
                bytes: 4096,
                ..Io::write(0, Buffers::EMPTY)
            };
            node.submit(write).await
        };
        let handle = bench.handle();
        let error = handle.run_blocking(run).expect("it runs");
        assert_eq!(error.expect_err("refused").errno(), libc::EINVAL);
        assert_eq!(std::fs::read(image.path()).expect("readable"), [7; 4096]);
    }

    /// Says what it was sent, and looks at the memory of a write once more at its end.
    #[derive(Debug, Default)]
    struct Seen {
        zeroes: AtomicBool,
        data: AtomicU8,
    }

    #[derive(Debug)]
    struct Spy(Arc<Seen>);

    impl Driver for Spy {
        fn name(&self) -> &'static str {
            "spy"
        }
        fn info(&self) -> NodeInfo {
            NodeInfo::default()
        }
        fn length(&self) -> u64 {
            LENGTH
        }
        fn submit<'a>(&'a self, io: Io<'a>) -> IoFuture<'a> {
            IoFuture::new(async move {
                iothread::yield_now().await;
                let mut first = [0xff];
                io.buffers.copy_to(&mut first);
                let zeroes = matches!(io.op, Operation::WriteZeroes { .. });
                self.0.zeroes.store(zeroes, Ordering::Relaxed);
                self.0.data.store(first[0], Ordering::Relaxed);
                assert_eq!((io.fua, io.losses_accepted), (true, 3));
                Ok(())
            })
        }
    }

    /// The guest writes to the memory of a request that is under way: what was zero when it was looked at is
    /// written as zeroes, and what was not, as whatever it is by then. The memory is never looked at twice.
    #[test]
    fn memory_that_changes_after_it_was_looked_at() {
        let bench = Bench::new();
        for (before, after) in [(0u8, 9u8), (9, 0)] {
            let seen = Arc::<Seen>::default();
            let driver =
                DetectingZeroes::around(Box::new(Spy(Arc::clone(&seen))), DetectZeroes::On);
            let node = Node::new("spy0", driver);
            let run = move || async move {
                let memory: Box<[AtomicU8]> = (0..4096).map(|_| AtomicU8::new(before)).collect();
                let segments = [libc::iovec {
                    iov_base: memory.as_ptr().cast_mut().cast(),
                    iov_len: memory.len(),
                }];
                // SAFETY: the memory outlives the request, and all references into it are to atomics.
                let buffers = unsafe { Buffers::from_iovecs(&segments, memory.len()) };
                let io = Io {
                    fua: true,
                    losses_accepted: 3,
                    ..Io::write(0, buffers)
                };
                let request = node.submit(io);
                for byte in &memory {
                    byte.store(after, Ordering::Relaxed);
                }
                request.await
            };
            let handle = bench.handle();
            handle.run_blocking(run).expect("it runs").expect("written");
            assert_eq!(seen.zeroes.load(Ordering::Relaxed), before == 0);
            let data = if before == 0 { 0xff } else { after };
            assert_eq!(seen.data.load(Ordering::Relaxed), data);
        }
    }

    /// All of it once more, without io_uring.
    #[test]
    fn again_on_threads() {
        testkit::engine::again_on_threads();
    }
}
